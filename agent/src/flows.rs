//! Keeps the flows that the datapath remembers true: goes through them every half minute,
//! and at once when a backend is gone, so that its clients learn it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::kernel::Flows;
use crate::reconcile::Outcome;

/// Time between two looks at all flows.
const EVERY: Duration = Duration::from_secs(30);

/// Runs until the reconciler is gone, after whose passes it looks for backends that have
/// gone. `max` is the size that the table was asked to have.
pub async fn follow(flows: Flows, max: Option<u32>, mut outcome: watch::Receiver<Outcome>) {
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
    let mut writes = 0;
    loop {
        let always = tokio::select! {
            changed = outcome.changed() => if changed.is_err() { return } else { false },
            _ = pause.tick() => true,
        };
        let written = std::mem::replace(&mut writes, outcome.borrow_and_update().writes);
        let result = match always || written != writes {
            true => look(&flows, &mut known, always).await,
            false => Ok(()),
        };
        if let Err(error) = result {
            warn!("{error:#}");
        }
    }
}

type Backends = HashSet<(u32, Ipv4Addr, Ipv4Addr)>;

/// Goes through the flows if one of the backends that were `known` is gone, or `always`.
async fn look(flows: &Flows, known: &mut Backends, always: bool) -> Result<()> {
    let now = flows.backends().await?;
    let before = std::mem::replace(known, now);
    if always || !before.is_subset(known) {
        let swept = flows.sweep().await?;
        debug!(?swept, "went through the flows");
    }
    Ok(())
}
