//! Makes the kernel what the plan says, again and again.
//!
//! Level-triggered: a pass takes the newest snapshot and workloads, asks the pure
//! plan for the whole state, and applies the difference to what the kernel has.
//! Between full passes the loop trusts its own record of the kernel; every few seconds
//! (at most [`FULL_PASS`]) and after any failure it looks again, and what it then has to mend
//! although nothing was asked for is drift: counted and logged.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::model::{NodeId, Snapshot, Workload};
use crate::plan::{self, Me, Op, State};

/// Time between two full looks at the kernel at most.
pub const FULL_PASS: Duration = Duration::from_secs(30);
/// Time after which a failed pass is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Time after which to look at the kernel when it told of a change: what one command does
/// is seen at once.
const SETTLED: Duration = Duration::from_millis(300);
/// Time between two full looks at least, however much changes. Our own changes are told
/// too.
const REST: Duration = Duration::from_secs(5);
/// So many times as long as a full look took, none follows it unless there is a reason: looking
/// takes a percent of a processor at most, and of most nodes much less.
const PATIENCE: u32 = 100;

/// The kernel as the loop sees it.
pub trait Kernel: Send + 'static {
    /// Everything of ours, in the host's namespace and in `namespaces`.
    fn observe(
        &mut self,
        namespaces: &BTreeSet<PathBuf>,
    ) -> impl Future<Output = Result<State>> + Send;

    /// Makes one change. Must be idempotent.
    fn apply(&mut self, op: &Op) -> impl Future<Output = Result<()>> + Send;
}

/// What a pass works from.
#[derive(Clone)]
pub struct Inputs {
    /// The cluster.
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    /// The workloads of this node.
    pub workloads: watch::Receiver<Arc<Vec<Workload>>>,
    /// Who this node is; `None` in no cluster.
    pub me: watch::Receiver<Option<Me>>,
    /// Nodes that packets of this node do not reach.
    pub unreachable: watch::Receiver<BTreeSet<NodeId>>,
    /// Told when something of ours in the kernel has changed, by whomever; as far as the
    /// kernel tells. Without it the next full look finds it.
    pub changes: watch::Receiver<()>,
}

/// What the passes so far came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Outcome {
    /// Revision of the snapshot that the kernel reflects.
    pub applied: u64,
    /// Passes so far.
    pub passes: u64,
    /// Changes made to the kernel so far.
    pub writes: u64,
    /// Of these, changes that only put back what somebody else had altered.
    pub drift: u64,
    /// What the last pass failed at.
    pub errors: Vec<String>,
}

/// The kernel held against the plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verified {
    /// What the passes came to.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What differs now, a line each; the next full pass mends it.
    pub differences: Vec<String>,
}

/// What others ask of the loop.
enum Request {
    Settle(oneshot::Sender<Result<(), String>>),
    Verify(oneshot::Sender<Result<Verified, String>>),
}

/// Asks the loop for a pass.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::UnboundedSender<Request>,
    outcome: watch::Receiver<Outcome>,
}

impl Handle {
    /// Waits for a pass that began after this call.
    ///
    /// # Errors
    /// What the pass failed at; everything else that it had to do is done.
    pub async fn settle(&self) -> Result<()> {
        self.ask(Request::Settle).await
    }

    /// Looks at the kernel and tells what differs from the plan; mends nothing.
    ///
    /// # Errors
    /// If the kernel cannot be looked at.
    pub async fn verify(&self) -> Result<Verified> {
        self.ask(Request::Verify).await
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Request,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let stopped = || anyhow!("the agent is stopping");
        self.requests.send(request(reply)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?.map_err(|errors| anyhow!(errors))
    }

    /// Follows what the passes come to.
    #[must_use]
    pub fn outcome(&self) -> watch::Receiver<Outcome> {
        self.outcome.clone()
    }
}

/// The loop; [`Reconciler::run`] drives it.
pub struct Reconciler<K> {
    kernel: K,
    inputs: Inputs,
    requests: mpsc::UnboundedReceiver<Request>,
    outcome: watch::Sender<Outcome>,
    /// What the kernel has, as far as we know; `None` when we must look.
    have: Option<State>,
    /// What the last pass wanted and got; `None` after a failure.
    wanted: Option<State>,
    /// Time until the next full look.
    pause: Duration,
}

impl<K: Kernel> Reconciler<K> {
    /// A loop over `kernel`, and the handle to it.
    pub fn new(kernel: K, inputs: Inputs) -> (Self, Handle) {
        let (sender, requests) = mpsc::unbounded_channel();
        let (outcome, receiver) = watch::channel(Outcome::default());
        let handle = Handle { requests: sender, outcome: receiver };
        (Self { kernel, inputs, requests, outcome, have: None, wanted: None, pause: REST }, handle)
    }

    /// Runs until every handle and input is gone.
    pub async fn run(mut self) {
        let mut next_full = Instant::now();
        let mut last_full = None;
        let mut told = true;
        loop {
            let mut requests = Vec::new();
            tokio::select! {
                biased;
                request = self.requests.recv() => match request {
                    Some(request) => requests.push(request),
                    None => return,
                },
                changed = self.inputs.snapshot.changed() => if changed.is_err() { return },
                changed = self.inputs.workloads.changed() => if changed.is_err() { return },
                changed = self.inputs.me.changed() => if changed.is_err() { return },
                changed = self.inputs.unreachable.changed() => if changed.is_err() { return },
                changed = self.inputs.changes.changed(), if told => {
                    told = changed.is_ok();
                    if told {
                        let rested = last_full.map(|full| full + REST);
                        let look = Instant::now() + SETTLED;
                        next_full = next_full.min(rested.map_or(look, |rested| look.max(rested)));
                    }
                    continue;
                }
                () = sleep_until(next_full) => self.have = None,
            }
            while let Ok(request) = self.requests.try_recv() {
                requests.push(request);
            }
            // A look at what differs comes before the pass that mends it.
            let mut settling = Vec::new();
            for request in requests {
                // Whoever asked may have gone away meanwhile.
                match request {
                    Request::Settle(reply) => settling.push(reply),
                    Request::Verify(reply) => drop(reply.send(self.verify().await)),
                }
            }
            let full = self.have.is_none();
            let result = self.pass().await;
            let now = Instant::now();
            last_full = if full { Some(now) } else { last_full };
            let soon = now + if result.is_ok() { self.pause } else { RETRY };
            next_full = if full || result.is_err() { soon } else { next_full.min(soon) };
            for reply in settling {
                drop(reply.send(result.clone()));
            }
        }
    }

    /// The newest workloads, and what the inputs ask for: nothing of a member that has
    /// no snapshot yet.
    fn want(&mut self) -> (Arc<Vec<Workload>>, Option<Want>) {
        let snapshot = self.inputs.snapshot.borrow_and_update().clone();
        let snapshot = snapshot.seen(&self.inputs.unreachable.borrow_and_update());
        let workloads = self.inputs.workloads.borrow_and_update().clone();
        let want = match &*self.inputs.me.borrow_and_update() {
            // It may have seen a snapshot already, but reflects no revision.
            None => Some(Want { state: State::new(), revision: 0 }),
            // One that has just joined knows its cluster, but none of the other members.
            Some(_) if snapshot.cluster.is_none() || snapshot.revision == 0 => None,
            Some(me) => {
                let state = plan::desired(&snapshot, &workloads, me);
                Some(Want { state, revision: snapshot.revision })
            }
        };
        (workloads, want)
    }

    async fn look(&mut self, workloads: &[Workload]) -> Result<State, String> {
        let namespaces = workloads.iter().map(|w| w.netns.clone()).collect();
        self.kernel.observe(&namespaces).await.map_err(|e| format!("{e:#}"))
    }

    async fn verify(&mut self) -> Result<Verified, String> {
        let (workloads, want) = self.want();
        let have = self.look(&workloads).await?;
        let ops = want.map(|want| plan::diff(&want.state, &have)).unwrap_or_default();
        let differences = ops.iter().map(ToString::to_string).collect();
        Ok(Verified { outcome: self.outcome.borrow().clone(), differences })
    }

    /// One pass: fetch, compute, execute. Never stops at the first failure.
    async fn pass(&mut self) -> Result<(), String> {
        let (workloads, want) = self.want();
        let Some(Want { state: want, revision }) = want else {
            debug!("a member without a snapshot yet: leaving the kernel as it is");
            return Ok(());
        };
        let (mut have, looked) = match self.have.take() {
            Some(have) => (have, false),
            None => {
                let began = Instant::now();
                let have = self.look(&workloads).await?;
                self.pause = (began.elapsed() * PATIENCE).clamp(REST, FULL_PASS);
                (have, true)
            }
        };
        let ops = plan::diff(&want, &have);
        let drift = looked && self.wanted.as_ref() == Some(&want);
        let mut errors = Vec::new();
        for op in &ops {
            debug!(%op, "apply");
            match self.kernel.apply(op).await {
                Ok(()) => record(&mut have, op),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        if drift && !ops.is_empty() {
            warn!(changes = ops.len(), first = %ops[0], "mended what somebody else had altered");
        } else if !ops.is_empty() {
            info!(changes = ops.len(), revision, "applied");
        }
        for error in &errors {
            warn!("{error}");
        }
        self.outcome.send_modify(|outcome| {
            outcome.passes += 1;
            outcome.writes += ops.len() as u64;
            outcome.drift += if drift { ops.len() as u64 } else { 0 };
            outcome.errors.clone_from(&errors);
            if errors.is_empty() {
                outcome.applied = revision;
            }
        });
        if errors.is_empty() {
            self.have = Some(have);
            self.wanted = Some(want);
            Ok(())
        } else {
            // What was not done is not drift when it is done later.
            self.wanted = None;
            Err(errors.join("; "))
        }
    }
}

/// What the kernel should be, and the revision that it then reflects.
struct Want {
    state: State,
    revision: u64,
}

/// Keeps our record of the kernel true after `op`.
fn record(have: &mut State, op: &Op) {
    match op {
        Op::Put(key, value) => have.insert(key.clone(), value.clone()),
        Op::Delete(key) => have.remove(key),
    };
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::plan::fixture;

    /// A kernel of memory; shared, so that a test can damage it.
    #[derive(Clone, Default)]
    struct Fake {
        state: Arc<Mutex<State>>,
        log: Arc<Mutex<Vec<Op>>>,
        fail: Arc<Mutex<bool>>,
    }

    impl Kernel for Fake {
        async fn observe(&mut self, _: &BTreeSet<PathBuf>) -> Result<State> {
            Ok(self.state.lock().unwrap().clone())
        }

        async fn apply(&mut self, op: &Op) -> Result<()> {
            if *self.fail.lock().unwrap() {
                return Err(anyhow!("refused"));
            }
            record(&mut self.state.lock().unwrap(), op);
            self.log.lock().unwrap().push(op.clone());
            Ok(())
        }
    }

    struct Bench {
        kernel: Fake,
        handle: Handle,
        snapshot: watch::Sender<Arc<Snapshot>>,
        workloads: watch::Sender<Arc<Vec<Workload>>>,
        me: watch::Sender<Option<Me>>,
        unreachable: watch::Sender<BTreeSet<NodeId>>,
        changes: watch::Sender<()>,
    }

    fn start(kernel: Fake) -> Bench {
        start_in(fixture::two_nodes(), kernel)
    }

    fn start_in(world: fixture::World, kernel: Fake) -> Bench {
        let (snapshot, snapshot_rx) = watch::channel(Arc::new(world.snapshot));
        let (workloads, workloads_rx) = watch::channel(Arc::new(world.workloads));
        let (me, me_rx) = watch::channel(Some(world.me));
        let (unreachable, unreachable_rx) = watch::channel(BTreeSet::new());
        let (changes, changes_rx) = watch::channel(());
        let inputs = Inputs {
            snapshot: snapshot_rx,
            workloads: workloads_rx,
            me: me_rx,
            unreachable: unreachable_rx,
            changes: changes_rx,
        };
        let (reconciler, handle) = Reconciler::new(kernel.clone(), inputs);
        tokio::spawn(reconciler.run());
        Bench { kernel, handle, snapshot, workloads, me, unreachable, changes }
    }

    #[tokio::test]
    async fn settles_and_then_writes_nothing() {
        let bench = start(Fake::default());
        bench.handle.settle().await.unwrap();
        assert!(!bench.kernel.state.lock().unwrap().is_empty());
        bench.kernel.log.lock().unwrap().clear();
        bench.handle.settle().await.unwrap();
        assert_eq!(*bench.kernel.log.lock().unwrap(), []);
        // Another agent over the same kernel: a restart.
        let world = fixture::World {
            snapshot: (**bench.snapshot.borrow()).clone(),
            workloads: (**bench.workloads.borrow()).clone(),
            me: bench.me.borrow().clone().unwrap(),
        };
        let again = start_in(world, bench.kernel.clone());
        again.handle.settle().await.unwrap();
        assert_eq!(*again.kernel.log.lock().unwrap(), []);
    }

    #[tokio::test]
    async fn one_new_endpoint_is_one_write() {
        let bench = start(Fake::default());
        bench.handle.settle().await.unwrap();
        bench.kernel.log.lock().unwrap().clear();
        bench.snapshot.send_modify(|s| fixture::add_remote(Arc::make_mut(s), 77));
        bench.handle.settle().await.unwrap();
        assert_eq!(bench.kernel.log.lock().unwrap().len(), 1);
        assert_eq!(bench.handle.outcome().borrow().applied, bench.snapshot.borrow().revision);
    }

    #[tokio::test]
    async fn a_node_that_cannot_be_reached_gets_no_new_flows_until_it_can() {
        let mut world = fixture::two_nodes();
        fixture::add_service(&mut world.snapshot, 200);
        let there = world.snapshot.nodes.keys().find(|id| **id != world.me.id).cloned();
        let bench = start_in(world, Fake::default());
        let eligible = || {
            let state = bench.kernel.state.lock().unwrap();
            let eligible = |value: &&plan::Value| {
                matches!(value, plan::Value::Endpoint { eligible: true, .. })
            };
            state.values().filter(eligible).count()
        };
        bench.handle.settle().await.unwrap();
        assert_eq!(eligible(), 2);
        bench.unreachable.send_replace(there.into_iter().collect());
        bench.handle.settle().await.unwrap();
        assert_eq!(eligible(), 1);
        bench.unreachable.send_replace([].into());
        bench.handle.settle().await.unwrap();
        assert_eq!(eligible(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn drift_is_mended_and_counted() {
        let bench = start(Fake::default());
        bench.handle.settle().await.unwrap();
        let lost = bench.kernel.state.lock().unwrap().pop_last().unwrap();
        assert_eq!(bench.handle.verify().await.unwrap().differences.len(), 1);
        tokio::time::sleep(FULL_PASS * 2).await;
        assert_eq!(bench.kernel.state.lock().unwrap().get(&lost.0), Some(&lost.1));
        assert_eq!(bench.handle.outcome().borrow().drift, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn drift_that_the_kernel_tells_of_is_mended_at_once() {
        let bench = start(Fake::default());
        bench.handle.settle().await.unwrap();
        tokio::time::sleep(REST).await;
        let lost = bench.kernel.state.lock().unwrap().pop_last().unwrap();
        bench.changes.send(()).unwrap();
        tokio::time::sleep(SETTLED * 2).await;
        assert_eq!(bench.kernel.state.lock().unwrap().get(&lost.0), Some(&lost.1));
        // However often it tells, the looks at it are few.
        let before = bench.handle.outcome().borrow().passes;
        for _ in 0..100 {
            bench.changes.send(()).unwrap();
            tokio::time::sleep(Duration::from_millis(90)).await;
        }
        let passes = bench.handle.outcome().borrow().passes - before;
        assert!((1..=2).contains(&passes), "{passes} passes in nine seconds");
        // Nobody to tell any more.
        drop(bench.changes);
        bench.handle.settle().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_and_tried_again() {
        let bench = start(Fake::default());
        *bench.kernel.fail.lock().unwrap() = true;
        assert!(bench.handle.settle().await.unwrap_err().to_string().contains("refused"));
        assert_eq!(bench.handle.outcome().borrow().applied, 0);
        *bench.kernel.fail.lock().unwrap() = false;
        tokio::time::sleep(RETRY * 2).await;
        assert!(bench.handle.outcome().borrow().errors.is_empty());
        assert!(!bench.kernel.state.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn leaving_removes_everything_but_a_missing_snapshot_nothing() {
        let bench = start(Fake::default());
        bench.handle.settle().await.unwrap();
        let before = bench.kernel.state.lock().unwrap().clone();
        bench.snapshot.send_replace(Arc::default());
        bench.handle.settle().await.unwrap();
        assert_eq!(*bench.kernel.state.lock().unwrap(), before);
        bench.workloads.send_replace(Arc::default());
        bench.me.send_replace(None);
        bench.handle.settle().await.unwrap();
        assert!(bench.kernel.state.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn who_does_not_know_itself_yet_has_applied_nothing() {
        let world = fixture::two_nodes();
        let me = world.me.clone();
        let bench = start(Fake::default());
        bench.me.send_replace(None);
        bench.handle.settle().await.unwrap();
        assert_eq!(bench.handle.outcome().borrow().applied, 0);
        bench.me.send_replace(Some(me));
        bench.handle.settle().await.unwrap();
        assert_eq!(bench.handle.outcome().borrow().applied, world.snapshot.revision);
    }
}
