//! Finds out which nodes packets of this one reach: probes them all, again and again, and
//! tells who cannot be reached. [`plan::path`](crate::plan::path) concludes,
//! [`Probes`] sends and reads; the answers are the other nodes' datapaths', so that an
//! agent's restart never looks like a node's death, and what is probed is the path itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::kernel::Probes;
use crate::model::{Datapath, Node, NodeId, Path, Reach, Snapshot};
use crate::plan::Me;
use crate::plan::path::{Watch, round};

/// What is told.
pub struct Told {
    /// Every other node, by what is known of the path to it.
    pub paths: watch::Sender<Arc<BTreeMap<NodeId, Path>>>,
    /// Those that cannot be reached.
    pub unreachable: watch::Sender<BTreeSet<NodeId>>,
}

/// A peer, and how the path to it was when that was logged last.
#[derive(Default)]
struct Peer {
    watch: Watch,
    /// Since when it cannot be reached.
    lost: Option<Instant>,
    blocked_above: Option<u16>,
}

/// Probes the members of `snapshot` until that has no end any more.
pub async fn follow(
    mut probes: Probes,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    me: watch::Receiver<Option<Me>>,
    told: Told,
) {
    let mut peers = BTreeMap::new();
    let mut complaint: Option<String> = None;
    while snapshot.has_changed().is_ok() {
        // Not all nodes at the same time.
        sleep(round(peers.len()).mul_f64(rand::random_range(0.9..1.0))).await;
        let (snapshot, me) = (snapshot.borrow().clone(), me.borrow().clone());
        let result = match &me {
            Some(me) if me.datapath == Datapath::Ebpf => {
                probe(&mut probes, &mut peers, &snapshot, me)
            }
            _ => {
                peers.clear();
                Ok(())
            }
        };
        // What lasts is said once.
        let failed = result.err().map(|error| format!("probing the other nodes: {error:#}"));
        if failed != complaint {
            failed.iter().for_each(|failed| warn!("{failed}"));
        }
        complaint = failed;
        tell(&peers, &snapshot, me.as_ref(), &told);
    }
}

/// One round.
fn probe(
    probes: &mut Probes,
    peers: &mut BTreeMap<NodeId, Peer>,
    snapshot: &Snapshot,
    me: &Me,
) -> Result<()> {
    let members: Vec<_> = snapshot.nodes.values().filter(|node| is_probed(node, me)).collect();
    peers.retain(|id, _| members.iter().any(|node| node.id == *id));
    let Some(records) = probes.read()? else {
        // Nothing here could take an answer.
        peers.clear();
        return Ok(());
    };
    let by_vtep: BTreeMap<_, _> =
        members.iter().map(|node| (node.address.octets(), &node.id)).collect();
    for record in records {
        let Some(id) = by_vtep.get(&record.vtep) else { continue };
        let Some(peer) = peers.get_mut(*id) else { continue };
        match record.is_answer() {
            true => peer.watch.returned(record.id, std::time::Duration::from_nanos(record.at)),
            false => peer.watch.heard(),
        }
    }
    let port = snapshot.cluster.as_ref().map_or(netagent_common::VXLAN_PORT, |c| c.data_path_port);
    let mtu = snapshot.nodes.get(&me.id).map_or(u16::MAX, |node| node.mtu);
    for node in members {
        let peer = peers.entry(node.id.clone()).or_default();
        for size in peer.watch.round(mtu.min(node.mtu)) {
            let (id, to) = (rand::random(), SocketAddrV4::new(node.address, port));
            match probes.send(me.vtep, to, id, size) {
                Ok(at) => peer.watch.sent(id, size, at),
                // As one that is lost.
                Err(error) => debug!(size, "probing node {}: {error:#}", node.hostname),
            }
        }
        peer.log(node, port);
    }
    Ok(())
}

/// Whether the node is another, whose datapath answers.
fn is_probed(node: &Node, me: &Me) -> bool {
    node.id != me.id && node.datapath == Datapath::Ebpf
}

impl Peer {
    /// Says what has changed.
    fn log(&mut self, node: &Node, port: u16) {
        let who = format!("node {} ({})", node.hostname, node.address);
        let remark = || self.watch.path(port).remark.unwrap_or_default();
        match (self.lost, self.watch.reach()) {
            (None, Reach::Unreachable) => {
                warn!("{who} does not answer on UDP port {port}: {}", remark());
                self.lost = Some(Instant::now());
            }
            (Some(since), Reach::Reachable) => {
                let seconds = since.elapsed().as_secs();
                info!("{who} answers on UDP port {port} again, after {seconds} s");
                self.lost = None;
            }
            _ => {}
        }
        let blocked_above = self.watch.blocked_above();
        if blocked_above != self.blocked_above && self.watch.reach() == Reach::Reachable {
            match blocked_above {
                Some(_) => warn!("{who}: {}", remark()),
                None => info!("{who}: packets of every size get there and back again"),
            }
            self.blocked_above = blocked_above;
        }
    }
}

fn tell(peers: &BTreeMap<NodeId, Peer>, snapshot: &Snapshot, me: Option<&Me>, told: &Told) {
    let port = snapshot.cluster.as_ref().map_or(netagent_common::VXLAN_PORT, |c| c.data_path_port);
    let path = |node: &Node| match me {
        Some(me) if me.id == node.id => None,
        Some(me) if me.datapath == Datapath::Ebpf && is_probed(node, me) => Some(
            peers.get(&node.id).map_or_else(|| Watch::default().path(port), |p| p.watch.path(port)),
        ),
        _ => Some(Path::UNPROBED),
    };
    let paths = snapshot.nodes.iter().filter_map(|(id, node)| Some((id.clone(), path(node)?)));
    told.paths.send_replace(Arc::new(paths.collect()));
    let lost = peers.iter().filter(|(_, peer)| peer.watch.reach() == Reach::Unreachable);
    let lost: BTreeSet<_> = lost.map(|(id, _)| id.clone()).collect();
    told.unreachable.send_if_modified(|known| {
        let new = *known != lost;
        *known = lost;
        new
    });
}

/// Follows `snapshot` as this node sees it, which cannot reach some of the others.
#[must_use]
pub fn seen(
    mut snapshot: watch::Receiver<Arc<Snapshot>>,
    mut unreachable: watch::Receiver<BTreeSet<NodeId>>,
) -> watch::Receiver<Arc<Snapshot>> {
    let newest = move |snapshot: &mut watch::Receiver<Arc<Snapshot>>,
                       unreachable: &mut watch::Receiver<BTreeSet<NodeId>>| {
        snapshot.borrow_and_update().clone().seen(&unreachable.borrow_and_update())
    };
    let (sender, receiver) = watch::channel(newest(&mut snapshot, &mut unreachable));
    tokio::spawn(async move {
        loop {
            let changed = tokio::select! {
                changed = snapshot.changed() => changed,
                changed = unreachable.changed() => changed,
            };
            if changed.is_err() || sender.send(newest(&mut snapshot, &mut unreachable)).is_err() {
                return;
            }
        }
    });
    receiver
}
