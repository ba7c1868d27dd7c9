//! The daemon: opens the parts, wires them, and waits to be told to stop. It
//! decides nothing. Stopping leaves everything in the kernel as it is.

use std::fs::{DirBuilder, File};
use std::io::IsTerminal as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{Flock, FlockArg};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::api::listen;
use crate::api::server::{self, App};
use crate::api::this_node::ThisNode;
use crate::cli::agent::{AgentArgs, Balancer, LogFormat};
use crate::cluster::{self, Cluster, ClusterConfig};
use crate::facts::{Changes, HostReader as _, Netlink};
use crate::flows;
use crate::kernel::{self, Flows, IpvsError, Kernel, KernelConfig, Logs, Probes};
use crate::model::{Datapath, Ipsec};
use crate::paths::{self, Told};
use crate::plan::Me;
use crate::reconcile::{self, Inputs, Outcome, Reconciler};
use crate::workload::{Records, Workloads};

/// How long the first pass waits for a manager. Without one it goes by the snapshot on
/// disk, which may be a moment older than the kernel.
const FIRST_SNAPSHOT: Duration = Duration::from_secs(3);

/// How long to wait after a change of the host's network for those that come with it.
const HOST_SETTLED: Duration = Duration::from_millis(200);

/// Runs the daemon, or removes every trace of it with `--teardown`.
///
/// # Errors
/// If a part cannot be opened: another agent has the same data directory, the socket
/// cannot be made, what is stored is damaged.
pub fn run(args: &AgentArgs) -> Result<()> {
    log_to_stderr(args.log_format)?;
    let _lock = lock(&args.data_dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let config = KernelConfig {
            run_dir: args.run_dir.clone(),
            bpf_dir: args.bpf_dir.clone(),
            object: kernel::object(),
            max_flows: args.max_flows,
            without_tcx: false,
        };
        let kernel = Kernel::open(config).await?;
        if args.teardown { teardown(kernel).await } else { serve(args, kernel).await }
    })
}

async fn teardown(mut kernel: Kernel) -> Result<()> {
    kernel.teardown().await?;
    info!("nothing of netagent is left in the kernel");
    Ok(())
}

/// Decides between IPVS and the eBPF programs where that is left to us.
///
/// # Errors
/// If IPVS is asked for and there is none.
async fn balancer(args: &AgentArgs, kernel: &Kernel) -> Result<Balancer> {
    match (args.lb, args.datapath) {
        (Balancer::Ipvs, Datapath::Kernel) => {
            bail!("--lb ipvs needs --datapath ebpf: the kernel datapath carries no services")
        }
        (Balancer::Ebpf, _) | (_, Datapath::Kernel) => return Ok(Balancer::Ebpf),
        _ => {}
    }
    match kernel.has_ipvs().await {
        Ok(()) => Ok(Balancer::Ipvs),
        Err(error) if args.lb == Balancer::Ipvs => Err(error).context("--lb ipvs"),
        Err(IpvsError::Missing) => {
            info!("this kernel has no IPVS: the eBPF programs balance alone");
            Ok(Balancer::Ebpf)
        }
        Err(error) => Err(error).context("looking for IPVS (--lb ebpf does without)"),
    }
}

/// Why this node cannot guard encrypted networks, whatever its kernel can do.
fn unguarded(args: &AgentArgs) -> Option<String> {
    (args.datapath == Datapath::Kernel).then(|| {
        "it runs the kernel datapath, in which nothing would keep packets from leaving in clear: \
         start its agent with --datapath ebpf"
            .to_owned()
    })
}

async fn serve(args: &AgentArgs, kernel: Kernel) -> Result<()> {
    let args = &AgentArgs { lb: balancer(args, &kernel).await?, ..args.clone() };
    kernel.find_ipsec(unguarded(args)).await?;
    let ipsec = kernel.ipsec();
    let hostname = match &args.hostname {
        Some(name) => name.clone(),
        None => nix::unistd::gethostname()?
            .into_string()
            .map_err(|name| anyhow!("the host name {name:?} is not text"))?,
    };
    let cluster = Cluster::open(ClusterConfig {
        data_dir: args.data_dir.clone(),
        hostname,
        uplink: args.uplink.clone(),
        datapath: args.datapath,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, cluster::PORT)),
        host: Arc::new(Netlink),
        ipsec: ipsec.clone(),
    })
    .await?;

    let records = Records::load(&args.data_dir)?;
    let me = watch::Sender::new(who(&cluster, args, &ipsec, None).await);
    let changes = Changes::follow()?;
    let told = Told { paths: watch::Sender::default(), unreachable: watch::Sender::default() };
    let seen = paths::seen(cluster.subscribe(), told.unreachable.subscribe());
    kernel::follow_ipsec(changes.told.clone()).context("following changes of IPsec")?;
    let inputs = Inputs {
        snapshot: cluster.subscribe(),
        workloads: records.subscribe(),
        me: me.subscribe(),
        unreachable: told.unreachable.subscribe(),
        changes: changes.ours,
    };
    let (reconciler, reconcile) = Reconciler::new(kernel, inputs);
    let workloads =
        Workloads::open(records, args.run_dir.clone(), cluster.clone(), seen, reconcile.clone())
            .await;
    let (known, unreachable) = (told.paths.subscribe(), told.unreachable.subscribe());
    let probes = Probes::new(&args.bpf_dir);
    tokio::spawn(paths::follow(probes, cluster.subscribe(), me.subscribe(), told));
    // Only now: the first pass must know every workload that is here.
    let following =
        tokio::spawn(follow_identity(cluster.clone(), args.clone(), me, changes.host, ipsec));
    tokio::spawn({
        let cluster = cluster.clone();
        async move {
            cluster.caught_up(FIRST_SNAPSHOT).await;
            reconciler.run().await;
        }
    });
    tokio::spawn(report(cluster.clone(), reconcile.outcome()));
    tokio::spawn(follow_programs(Logs::new(&args.bpf_dir)));
    let flows_of =
        flows::Inputs { outcome: reconcile.outcome(), snapshot: cluster.subscribe(), unreachable };
    tokio::spawn(flows::follow(Flows::new(&args.bpf_dir), args.max_flows, flows_of));

    let socket = args.run_dir.join("netagent.sock");
    let listener = listen::bind_unix(&socket).await?;
    let node = ThisNode { workloads, reconcile, bpf_dir: args.bpf_dir.clone(), paths: known };
    let app = App { cluster: cluster.clone(), node: Some(node) };
    let router = server::router(app);
    tokio::spawn(listen::serve_tls(cluster.clone(), router.clone()));
    tokio::spawn(listen::serve_unix(listener, router));
    info!(socket = %socket.display(), datapath = %args.datapath, "ready");
    // Not under systemd there is nobody to notify.
    let _ = sd_notify::notify(&[NotifyState::Ready]);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {},
        _ = interrupt.recv() => {},
    }
    info!("stopping; what is in the kernel stays");
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    // Closing writes down the newest snapshot, and looks like leaving: nobody may act on it.
    following.abort();
    drop(following.await);
    cluster.close().await;
    Ok(())
}

/// Who this node is now. What cannot be found out leaves it as it `was`: a kernel
/// state is not to be thrown away on a doubt.
async fn who(
    cluster: &Cluster,
    args: &AgentArgs,
    ipsec: &watch::Receiver<Ipsec>,
    was: Option<Me>,
) -> Option<Me> {
    let record = cluster.identity()?;
    let snapshot = cluster.snapshot();
    if snapshot.revision > 0 && !snapshot.nodes.contains_key(&record.node) {
        warn!("this node is no member of its cluster any more: removing its networks");
        return None;
    }
    let uplink = match &args.uplink {
        Some(uplink) => Ok(Some(uplink.clone())),
        None => cluster.uplink().await,
    };
    let (host, own) = (Netlink.read().await, record.addresses().own());
    match uplink.and_then(|uplink| Ok((uplink, host?))) {
        Ok((uplink, host)) => Some(Me {
            id: record.node,
            vtep: own,
            advertised: record.address,
            neighbour_bits: host.neighbour_bits(uplink.as_deref()?, own),
            uplink: uplink?,
            addresses: host.own_addresses(),
            datapath: args.datapath,
            ipvs: args.lb == Balancer::Ipvs,
            ipsec: ipsec.borrow().clone(),
            object: kernel::object_digest(),
        }),
        Err(error) => {
            warn!("{error:#}");
            was
        }
    }
}

/// Says who this node is when that has changed: with the cluster, or with the host's
/// addresses and routes.
async fn follow_identity(
    cluster: Cluster,
    args: AgentArgs,
    me: watch::Sender<Option<Me>>,
    mut host: watch::Receiver<()>,
    mut ipsec: watch::Receiver<Ipsec>,
) {
    let mut snapshots = cluster.subscribe();
    let mut pause = tokio::time::interval(Duration::from_secs(30));
    loop {
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            Ok(()) = host.changed() => tokio::time::sleep(HOST_SETTLED).await,
            Ok(()) = ipsec.changed() => {}
            _ = pause.tick() => if me.borrow().is_none() { continue },
        }
        let was = me.borrow().clone();
        let now = who(&cluster, &args, &ipsec, was.clone()).await;
        if now != was {
            me.send_replace(now);
        }
    }
}

/// Tells the cluster which revision this node's kernel reflects.
async fn report(cluster: Cluster, mut outcome: watch::Receiver<Outcome>) {
    while outcome.changed().await.is_ok() {
        let applied = outcome.borrow_and_update().applied;
        cluster.report_applied(applied);
    }
}

/// Logs what the eBPF programs report. They say little, so a look a second is enough.
async fn follow_programs(mut logs: Logs) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if let Err(error) = logs.flush() {
            warn!("{error:#}");
        }
    }
}

/// One agent for one data directory; the kernel drops the lock with the process.
///
/// # Errors
/// If one runs, or the directory cannot be made.
pub(crate) fn lock(data_dir: &Path) -> Result<Flock<File>> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data_dir)
        .with_context(|| format!("making {}", data_dir.display()))?;
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| {
        anyhow!("another agent runs with data directory {}: stop it first", data_dir.display())
    })
}

/// `RUST_LOG` chooses what is logged. Netlink messages never are: they may carry keys.
fn log_to_stderr(format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info"))
        .add_directive("netlink_proto=warn".parse()?);
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

impl reconcile::Kernel for Kernel {
    async fn observe(
        &mut self,
        namespaces: &std::collections::BTreeSet<std::path::PathBuf>,
    ) -> Result<crate::plan::State> {
        Kernel::observe(self, namespaces).await
    }

    async fn apply(&mut self, op: &crate::plan::Op) -> Result<()> {
        Ok(Kernel::apply(self, op).await?)
    }
}
