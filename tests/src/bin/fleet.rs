//! Many agents in one process, each the real control plane over TLS and the real loop, over a
//! kernel of memory: `fleet MANAGER TOKEN DIRECTORY NODES NETWORK SERVICE`. The first few have a
//! workload each, a backend of the service. Says `ready` when all have joined; from then on,
//! whenever all have applied a newer revision: the revision, and when (CLOCK_MONOTONIC, in ns)
//! the first, the middle one, and the last of them had.

use std::collections::{BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use netagent::api::types::{CreateEndpoint, JoinRequest, Serve};
use netagent::cluster::{Cluster, ClusterConfig};
use netagent::facts::{Host, HostReader, Link};
use netagent::model::{
    Attachment, Datapath, Health, Hold, Ipsec, Name, ServiceId, Serving, Workload, WorkloadId,
};
use netagent::plan::{Me, Op, State};
use netagent::reconcile::{Inputs, Kernel, Reconciler};
use nix::time::{ClockId, clock_gettime};
use tokio::runtime::{self, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};

/// Address of the first node but one.
const FIRST: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 0);
/// Nodes that connect at the same time: they come from one address, of which a manager takes
/// only so many connections at once.
const JOINING: usize = 16;

/// How long a node may take to hear of its manager.
const FOLLOWING: Duration = Duration::from_secs(60);
/// How often a node tries to join.
const JOINS: usize = 20;
/// Nodes with a backend.
const BACKENDS: usize = 10;

/// Who has applied what, and when.
type Applied = (usize, u64, i64);

#[tokio::main]
async fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let [manager, token, directory, nodes, network, service] = &words[..] else {
        anyhow::bail!("fleet MANAGER TOKEN DIRECTORY NODES NETWORK SERVICE");
    };
    let nodes = nodes.parse()?;
    let (sender, applied) = mpsc::unbounded_channel();
    let turns = Semaphore::new(JOINING);
    let all = (0..nodes).map(|number| {
        let request = JoinRequest {
            token: token.clone(),
            manager: manager.clone(),
            advertise: Some(address(number)),
            local: None,
        };
        let config = config(number, PathBuf::from(directory).join(number.to_string()));
        let turns = &turns;
        async move {
            let _turn = turns.acquire().await?;
            join(config.clone(), request).await?;
            anyhow::Ok(config)
        }
    });
    // Only when all have joined do they follow, and when all follow, work: with each node that is
    // new to them, all others would plan anew.
    let configs = futures::future::try_join_all(all).await?;
    let follow = configs.into_iter().map(async |config| {
        let _turn = turns.acquire().await?;
        let cluster = Cluster::open(config).await?;
        cluster.caught_up(FOLLOWING).await;
        anyhow::Ok(cluster)
    });
    let clusters = futures::future::try_join_all(follow).await?;
    let loops = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut agents = Vec::new();
    for (number, cluster) in clusters.iter().enumerate() {
        agents.push(work(number, cluster, &loops, sender.clone())?);
    }
    for (number, (cluster, workloads)) in clusters.iter().zip(&agents).enumerate().take(BACKENDS) {
        let workload = workload(number, cluster, network, service).await?;
        workloads.send_replace(Arc::new(vec![workload]));
    }
    println!("ready");
    tell(nodes, applied).await;
    drop((clusters, agents));
    loops.shutdown_background();
    Ok(())
}

fn address(number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).expect("few nodes");
    Ipv4Addr::from(u32::from(FIRST) + number + 1)
}

fn config(number: usize, data_dir: PathBuf) -> ClusterConfig {
    ClusterConfig {
        data_dir,
        hostname: format!("f{number}"),
        uplink: None,
        datapath: Datapath::Ebpf,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        host: Arc::new(Fixed(address(number))),
        ipsec: watch::channel(Ipsec::default()).1,
    }
}

/// Makes the node a member, and leaves it alone.
async fn join(config: ClusterConfig, request: JoinRequest) -> Result<()> {
    let cluster = Cluster::open(config.clone()).await?;
    // All of them want to at once, and a machine may be busy.
    for _ in 1..JOINS {
        if cluster.join(request.clone()).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    if cluster.identity().is_none() {
        let joined = cluster.join(request).await;
        joined.with_context(|| format!("{} cannot join", config.hostname))?;
    }
    cluster.close().await;
    Ok(())
}

/// Starts the loop of a node, over the workloads that it is told. Loops have a thread of their own:
/// that one node plans must not keep another from telling its manager that it is there.
fn work(
    number: usize,
    cluster: &Cluster,
    loops: &Runtime,
    sender: mpsc::UnboundedSender<Applied>,
) -> Result<watch::Sender<Arc<Vec<Workload>>>> {
    let record = cluster.identity().context("a node that has joined is a member")?;
    let (workloads, workloads_seen) = watch::channel(Arc::default());
    let (me, me_seen) = watch::channel(Some(Me {
        id: record.node.clone(),
        vtep: record.address,
        advertised: record.address,
        uplink: "eth0".to_owned(),
        neighbour_bits: 32,
        addresses: BTreeSet::from([record.address]),
        datapath: Datapath::Ebpf,
        ipvs: false,
        ipsec: Ipsec::default(),
        object: String::new(),
    }));
    let (unreachable, unreachable_seen) = watch::channel(BTreeSet::new());
    let (changes, changes_seen) = watch::channel(());
    let inputs = Inputs {
        snapshot: cluster.subscribe(),
        workloads: workloads_seen,
        me: me_seen,
        unreachable: unreachable_seen,
        changes: changes_seen,
    };
    let (reconciler, handle) = Reconciler::new(Memory::default(), inputs);
    loops.spawn(reconciler.run());
    let mut outcome = handle.outcome();
    let reporting = cluster.clone();
    tokio::spawn(async move {
        // They live as long as the loop.
        let _inputs = (me, unreachable, changes, handle);
        while outcome.changed().await.is_ok() {
            let revision = outcome.borrow_and_update().applied;
            reporting.report_applied(revision);
            let _ = sender.send((number, revision, now()));
        }
    });
    Ok(workloads)
}

async fn workload(
    number: usize,
    cluster: &Cluster,
    network: &str,
    service: &str,
) -> Result<Workload> {
    let (id, name) = (WorkloadId::new(), Name::try_from(format!("w{number}"))?);
    let request = CreateEndpoint {
        network: network.to_owned(),
        node: cluster.identity().context("it is a member")?.node,
        workload: id.clone(),
        name: name.clone(),
        aliases: vec![],
        address: None,
        serve: Some(Serve { service: service.to_owned(), weight: 1, health: Health::Healthy }),
        id: None,
    };
    let endpoint = cluster.create_endpoint(&request).await?;
    let service: ServiceId = endpoint.task.clone().context("it serves")?.service;
    Ok(Workload {
        id,
        name,
        netns: PathBuf::from("/run/netns/none"),
        hold: Hold::Path { inode: 0 },
        mounted: false,
        serving: Some(Serving { service, health_check: None }),
        attachments: vec![Attachment { interface: "eth0".to_owned(), endpoint }],
    })
}

/// Tells of every revision that all have come to.
async fn tell(nodes: usize, mut applied: mpsc::UnboundedReceiver<Applied>) {
    let mut heard = vec![VecDeque::<(u64, i64)>::from([(0, 0)]); nodes];
    let mut told = 0;
    while let Some((number, revision, when)) = applied.recv().await {
        heard[number].push_back((revision, when));
        let newest = |of: &VecDeque<(u64, i64)>| of.back().map_or(0, |(revision, _)| *revision);
        let all = heard.iter().map(newest).min().unwrap_or(0);
        if all <= told {
            continue;
        }
        told = all;
        let mut times: Vec<_> = heard
            .iter_mut()
            .filter_map(|of| {
                while of.front().is_some_and(|(revision, _)| *revision < all) {
                    of.pop_front();
                }
                of.front().map(|(_, when)| *when)
            })
            .collect();
        times.sort_unstable();
        println!("{all} {} {} {}", times[0], times[times.len() / 2], times[times.len() - 1]);
    }
}

fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

/// A host with one interface.
struct Fixed(Ipv4Addr);

#[async_trait]
impl HostReader for Fixed {
    async fn read(&self) -> Result<Host> {
        let link = Link {
            name: "eth0".to_owned(),
            mtu: 1500,
            up: true,
            loopback: false,
            addresses: vec![self.0],
        };
        Ok(Host { links: vec![link], routes: vec![] })
    }
}

/// A kernel that does as it is told.
#[derive(Default)]
struct Memory(State);

impl Kernel for Memory {
    async fn observe(&mut self, _: &BTreeSet<PathBuf>) -> Result<State> {
        Ok(self.0.clone())
    }

    async fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Put(key, value) => self.0.insert(key.clone(), value.clone()),
            Op::Delete(key) => self.0.remove(key),
        };
        Ok(())
    }
}
