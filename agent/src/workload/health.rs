//! Health checks: whether a workload may take its service's connections. How often it
//! is looked at and what the results mean is decided here; the looking is `probe`'s.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::netns::Netns;
pub(super) use super::probe::Probe;
use crate::model::{Health, HealthCheck, Workload};

/// Longest pause between two checks of what has not been healthy yet: it is waited for.
const EAGER: Duration = Duration::from_secs(1);

/// What the results of checks say, one after the other.
#[derive(Debug)]
struct Judge {
    health: Health,
    /// Failures in a row.
    failures: u32,
    /// As many make it unhealthy.
    retries: u32,
    /// Whether it was healthy ever.
    succeeded: bool,
}

impl Judge {
    fn new(health: Health, retries: u32) -> Self {
        Self { health, failures: 0, retries, succeeded: health == Health::Healthy }
    }

    /// Notes a result. A failure of a workload that has not succeeded yet means nothing
    /// in its `start_period`; one success ends that.
    fn note(&mut self, passed: bool, start_period: bool) -> Health {
        if passed {
            (self.succeeded, self.failures, self.health) = (true, 0, Health::Healthy);
        } else if self.succeeded || !start_period {
            self.failures = self.failures.saturating_add(1);
            if self.failures >= self.retries {
                self.health = Health::Unhealthy;
            }
        }
        self.health
    }

    /// Time until the next check.
    fn pause(&self, interval: Duration) -> Duration {
        if self.succeeded { interval } else { interval.min(EAGER) }
    }
}

/// Checks a workload for ever, at the `addresses` that it has then.
pub(super) async fn check(
    check: HealthCheck,
    workload: Workload,
    netns: Netns,
    addresses: impl Fn() -> Vec<Ipv4Addr>,
    health: watch::Sender<Health>,
) {
    let probe = match Probe::of(&check) {
        Ok(probe) => probe,
        Err(reason) => {
            return warn!(workload = %workload.name, "its record's health check: {reason}");
        }
    };
    let [interval, timeout, start_period] =
        [check.interval_ms, check.timeout_ms, check.start_period_ms].map(Duration::from_millis);
    let start = Instant::now();
    let was = *health.borrow();
    let mut judge = Judge::new(was, check.retries);
    loop {
        let begun = start.elapsed();
        let result = probe.look(&workload.hold, &netns, &addresses(), timeout).await;
        let now = judge.note(result.is_ok(), begun < start_period);
        if let Err(reason) = &result {
            debug!(workload = %workload.name, "health check failed: {reason}");
        }
        if health.send_if_modified(|health| std::mem::replace(health, now) != now) {
            match result {
                Ok(()) => info!(workload = %workload.name, "healthy"),
                Err(reason) => warn!(workload = %workload.name, "{now}: {reason}"),
            }
        }
        sleep(judge.pause(interval)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::{Healthy, Starting, Unhealthy};

    fn judged(mut judge: Judge, results: &[(bool, bool)]) -> Vec<Health> {
        results.iter().map(|(passed, start_period)| judge.note(*passed, *start_period)).collect()
    }

    #[test]
    fn failures_in_a_row_are_needed_and_one_success_heals() {
        let results = [true, false, false, true, false, false, false, false, true];
        let results = results.map(|passed| (passed, false));
        assert_eq!(
            judged(Judge::new(Starting, 3), &results),
            [Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy, Unhealthy, Healthy]
        );
    }

    #[test]
    fn it_starts_until_the_first_success() {
        let failing = [(false, true), (false, true), (false, false), (false, false)];
        assert_eq!(
            judged(Judge::new(Starting, 2), &failing),
            [Starting, Starting, Starting, Unhealthy]
        );
        // A success ends the start period, whatever is left of it.
        let early = [(true, true), (false, true), (false, true)];
        assert_eq!(judged(Judge::new(Starting, 2), &early), [Healthy, Healthy, Unhealthy]);
        assert_eq!(judged(Judge::new(Starting, 1), &[(false, false)]), [Unhealthy]);
    }

    #[test]
    fn an_agent_that_restarts_goes_on_with_what_it_said_last() {
        let failing = [(false, true), (false, true)];
        assert_eq!(judged(Judge::new(Healthy, 2), &failing), [Healthy, Unhealthy]);
        assert_eq!(judged(Judge::new(Unhealthy, 2), &failing), [Unhealthy, Unhealthy]);
        assert_eq!(judged(Judge::new(Unhealthy, 2), &[(true, false)]), [Healthy]);
    }

    #[test]
    fn what_has_not_succeeded_yet_is_looked_at_often() {
        let (long, short) = (Duration::from_secs(10), Duration::from_millis(100));
        let mut judge = Judge::new(Starting, 3);
        assert_eq!(judge.pause(long), EAGER);
        assert_eq!(judge.pause(short), short);
        judge.note(true, false);
        assert_eq!(judge.pause(long), long);
        judge.note(false, false);
        assert_eq!(judge.pause(long), long);
    }
}
