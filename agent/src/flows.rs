//! Keeps the flows that the datapath remembers true: goes through them every half minute,
//! and at once when a backend is gone or its node cannot be reached, so that its clients
//! learn it or find another.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::kernel::Flows;
use crate::model::{NodeId, Snapshot};
use crate::plan::flow::{GIVEN_UP, Lost};
use crate::reconcile::Outcome;

/// Time between two looks at all flows.
const EVERY: Duration = Duration::from_secs(30);

/// What the flows depend on.
pub struct Inputs {
    /// What the passes of the reconciler come to: after each, backends may have gone.
    pub outcome: watch::Receiver<Outcome>,
    /// The cluster.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Nodes that packets of this node do not reach.
    pub unreachable: watch::Receiver<BTreeSet<NodeId>>,
}

/// Runs until the reconciler is gone. `max` is the size that the table was asked to have.
pub async fn follow(flows: Flows, max: Option<u32>, inputs: Inputs) {
    let Inputs { mut outcome, snapshot, mut unreachable } = inputs;
    match flows.capacity().await {
        Ok(Some(size)) if max.is_some_and(|max| max != size) => warn!(
            "the table of flows keeps its {size} entries, or flows would break: --max-flows \
             takes effect after a restart of the host or `netagent agent --teardown`"
        ),
        Ok(_) => {}
        Err(error) => warn!("{error:#}"),
    }
    let mut pause = interval(EVERY);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = Backends::new();
    let mut since = BTreeMap::new();
    let mut writes = 0;
    loop {
        let (look_in, always) = tokio::select! {
            changed = outcome.changed() => if changed.is_err() { return } else { (false, false) },
            changed = unreachable.changed() => if changed.is_err() { return } else { (true, false) },
            _ = pause.tick() => (true, true),
        };
        let written = std::mem::replace(&mut writes, outcome.borrow_and_update().writes);
        let lost = lost(&mut since, &unreachable.borrow_and_update(), &snapshot.borrow());
        let result = match look_in || written != writes {
            true => look(&flows, &mut known, lost, always).await,
            false => Ok(()),
        };
        if let Err(error) = result {
            warn!("{error:#}");
        }
    }
}

type Backends = HashSet<(u32, Ipv4Addr, Ipv4Addr)>;

/// The nodes that are lost, given `since` when each of them is.
fn lost(
    since: &mut BTreeMap<NodeId, Instant>,
    unreachable: &BTreeSet<NodeId>,
    snapshot: &Snapshot,
) -> Lost {
    let now = Instant::now();
    since.retain(|id, _| unreachable.contains(id));
    for id in unreachable {
        since.entry(id.clone()).or_insert(now);
    }
    let vteps = |least: Duration| {
        let long = since.iter().filter(|(_, since)| now.duration_since(**since) >= least);
        long.filter_map(|(id, _)| Some(snapshot.nodes.get(id)?.address.octets())).collect()
    };
    Lost { now: vteps(Duration::ZERO), for_good: vteps(GIVEN_UP) }
}

/// Goes through the flows if one of the backends that were `known` is gone, or `always`.
async fn look(flows: &Flows, known: &mut Backends, lost: Lost, always: bool) -> Result<()> {
    let now = flows.backends(lost.clone()).await?;
    let before = std::mem::replace(known, now);
    if always || !before.is_subset(known) {
        let swept = flows.sweep(lost).await?;
        debug!(?swept, "went through the flows");
    }
    Ok(())
}
