//! What the tests work with: an agent's parts over a kernel of memory, processes in
//! namespaces of their own, and requests.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Result, bail};
use netagent::api::types::{Attach, CreateWorkload, InitRequest, WorkloadReady};
use netagent::cluster::{Cluster, ClusterConfig, Error};
use netagent::facts::{Host, HostReader, Link};
use netagent::model::{Datapath, Ipsec, NodeId, Snapshot};
use netagent::plan::{Key, Me, Op, State};
use netagent::reconcile::{Handle, Inputs, Kernel, Reconciler};
use netagent::workload::{Records, Workloads};
use netagent_tests::lab::{eventually, must};
use tokio::runtime::Runtime;
use tokio::sync::watch;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);

/// A host with one link.
struct OneLink;

#[async_trait::async_trait]
impl HostReader for OneLink {
    async fn read(&self) -> Result<Host> {
        let link = Link {
            name: "eth0".to_owned(),
            mtu: 1500,
            up: true,
            loopback: false,
            addresses: vec![ADDRESS],
        };
        Ok(Host { links: vec![link], routes: Vec::new() })
    }
}

/// A kernel that remembers what it is told, and refuses when it is told to.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) state: Arc<Mutex<State>>,
    /// Refuses to make what has this in its description.
    refuse: Arc<Mutex<Option<String>>>,
}

impl Memory {
    pub(crate) fn refuse(&self, text: Option<&str>) {
        *self.refuse.lock().expect("no panic") = text.map(str::to_owned);
    }

    /// Links of endpoints.
    pub(crate) fn links(&self) -> usize {
        let state = self.state.lock().expect("no panic");
        let is_endpoint = |key: &&Key| matches!(key, Key::Link(_, name) if name != "na-vxlan");
        state.keys().filter(is_endpoint).count()
    }
}

impl Kernel for Memory {
    async fn observe(&mut self, _: &BTreeSet<PathBuf>) -> Result<State> {
        Ok(self.state.lock().expect("no panic").clone())
    }

    async fn apply(&mut self, op: &Op) -> Result<()> {
        let mut state = self.state.lock().expect("no panic");
        let refuse = self.refuse.lock().expect("no panic").clone();
        let is_refused = || refuse.is_some_and(|text| op.to_string().contains(&text));
        match op {
            Op::Put(..) if is_refused() => bail!("the kernel says no to {op}"),
            Op::Put(key, value) => drop(state.insert(key.clone(), value.clone())),
            Op::Delete(key) => drop(state.remove(key)),
        }
        Ok(())
    }
}

/// One agent's parts.
pub(crate) struct Agent {
    pub(crate) runtime: Runtime,
    cluster: Cluster,
    pub(crate) workloads: Workloads,
    pub(crate) kernel: Memory,
    dir: tempfile::TempDir,
    pub(crate) handle: Handle,
    /// The loop ends without it.
    _inputs: (watch::Sender<Option<Me>>, watch::Sender<BTreeSet<NodeId>>),
}

impl Agent {
    /// The manager of a new cluster with the networks `shop` and `blog`.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::open(dir, Memory::default(), true)
    }

    /// An agent over what an earlier one left.
    pub(crate) fn open(dir: tempfile::TempDir, kernel: Memory, new: bool) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (data, run) = (dir.path().join("data"), dir.path().join("run"));
        fs::create_dir_all(&data).expect("a directory");
        let config = ClusterConfig {
            data_dir: data.clone(),
            hostname: "n1".to_owned(),
            uplink: None,
            datapath: Datapath::Ebpf,
            version: "0".to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            host: Arc::new(OneLink),
            ipsec: watch::channel(Ipsec::default()).1,
        };
        let (cluster, workloads, handle, inputs) = runtime.block_on(async {
            let cluster = Cluster::open(config).await.expect("a control plane");
            if new {
                cluster.init(InitRequest::default()).await.expect("a cluster");
                for network in ["shop", "blog"] {
                    let request = serde_json::from_value(serde_json::json!({"name": network}));
                    cluster.create_network(&request.expect("a request")).await.expect("a network");
                }
            }
            let records = Records::load(&data).expect("records");
            let me = Me {
                id: cluster.identity().expect("a member").node,
                vtep: ADDRESS,
                advertised: ADDRESS,
                uplink: "eth0".to_owned(),
                neighbour_bits: 24,
                addresses: [ADDRESS].into(),
                datapath: Datapath::Ebpf,
                ipvs: false,
                ipsec: Ipsec::default(),
                object: "digest".to_owned(),
            };
            let me = watch::Sender::new(Some(me));
            let unreachable = watch::Sender::default();
            let inputs = Inputs {
                snapshot: cluster.subscribe(),
                workloads: records.subscribe(),
                me: me.subscribe(),
                unreachable: unreachable.subscribe(),
                changes: watch::channel(()).1,
            };
            let (reconciler, handle) = Reconciler::new(kernel.clone(), inputs);
            tokio::spawn(reconciler.run());
            let mut outcome = handle.outcome();
            let reporting = cluster.clone();
            tokio::spawn(async move {
                while outcome.changed().await.is_ok() {
                    reporting.report_applied(outcome.borrow_and_update().applied);
                }
            });
            let (own, seen) = (cluster.clone(), cluster.subscribe());
            let workloads = Workloads::open(records, run, own, seen, handle.clone()).await;
            (cluster, workloads, handle, (me, unreachable))
        });
        Self { runtime, cluster, workloads, kernel, dir, handle, _inputs: inputs }
    }

    /// Ends, without a word to anybody, and starts again.
    pub(crate) fn restart(self, meanwhile: impl FnOnce()) -> Self {
        let Self { runtime, cluster, workloads, kernel, dir, .. } = self;
        drop(workloads);
        runtime.block_on(cluster.close());
        runtime.shutdown_background();
        drop(cluster);
        meanwhile();
        Self::open(dir, kernel, false)
    }

    pub(crate) fn create(&self, request: CreateWorkload) -> Result<WorkloadReady, Error> {
        self.runtime.block_on(self.workloads.create(request))
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.cluster.snapshot()
    }

    pub(crate) fn run_files(&self) -> usize {
        fs::read_dir(self.dir.path().join("run/workloads")).map_or(0, Iterator::count)
    }

    /// Waits until no trace of any workload is left.
    pub(crate) fn empty(&self) {
        eventually("all is released", || {
            self.workloads.list().is_empty()
                && self.snapshot().endpoints.is_empty()
                && self.kernel.links() == 0
                && self.run_files() == 0
        });
    }
}

/// `sleep` in a network and a mount namespace of its own; killed when dropped.
pub(crate) struct Sleeper(pub(crate) Child);

impl Sleeper {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--propagation", "unchanged", "sleep", "infinity"]);
        let child = command.spawn().expect("unshare");
        let comm = format!("/proc/{}/comm", child.id());
        eventually("sleep runs", || fs::read_to_string(&comm).is_ok_and(|c| c == "sleep\n"));
        Self(child)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    pub(crate) fn inside(&self, line: &[&str]) -> Result<Output> {
        inside(self.pid(), line)
    }

    pub(crate) fn short(&self, name: &str) -> String {
        must(self.inside(&["dig", "+time=2", "+tries=2", "+short", name])).trim().to_owned()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may have been killed by the test.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn inside(pid: i32, line: &[&str]) -> Result<Output> {
    let pid = pid.to_string();
    Ok(Command::new("nsenter").args(["--target", &pid, "--net", "--mount"]).args(line).output()?)
}

/// A named network namespace; deleted when dropped.
pub(crate) struct Named(pub(crate) String);

impl Named {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("t-wl-{}-{number}", std::process::id());
        must(Ok(Command::new("ip").args(["netns", "add", &name]).output().expect("ip")));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    pub(crate) fn delete(&self) {
        must(Ok(Command::new("ip").args(["netns", "del", &self.0]).output().expect("ip")));
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.path().exists() {
            self.delete();
        }
    }
}

pub(crate) fn attach(network: &str, alias: &str) -> Attach {
    let aliases = vec![alias.parse().expect("a name")];
    Attach { network: network.to_owned(), aliases, address: None }
}

/// As `netagent run` asks.
pub(crate) fn for_process(sleeper: &Sleeper, name: &str, networks: &[&str]) -> CreateWorkload {
    CreateWorkload {
        name: Some(name.parse().expect("a name")),
        pid: Some(sleeper.pid()),
        netns: None,
        mount: true,
        networks: networks.iter().map(|n| attach(n, &format!("{name}-on-{n}"))).collect(),
        serve: None,
        health_check: None,
    }
}

pub(crate) fn for_path(named: &Named, name: &str) -> CreateWorkload {
    CreateWorkload {
        name: Some(name.parse().expect("a name")),
        pid: None,
        netns: Some(named.path()),
        mount: false,
        networks: vec![attach("shop", "alias")],
        serve: None,
        health_check: None,
    }
}
