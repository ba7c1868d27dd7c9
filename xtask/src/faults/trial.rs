//! One fault, once: from its beginning until all is right again, and what was lost meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::kinds::Fault;
use super::load::{Event, Kind, PATIENCE};
use super::scene::Scene;
use crate::bench::machine;

/// Time after which something is done while a fault lasts, again and again.
const MEANWHILE: Duration = Duration::from_secs(30);

/// What one trial came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Trial {
    /// Requests.
    pub(super) new: Failing,
    /// Datagrams of flows that last.
    pub(super) flows: Failing,
    /// From its end until every node was ready and every kernel right.
    pub(super) right: Duration,
    pub(super) requests: Share,
    pub(super) datagrams: Share,
    pub(super) connections: Share,
}

/// How long some failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failing {
    /// From the beginning until the last that failed while the fault lasted.
    pub(super) during: Duration,
    /// From its end until the last that failed.
    pub(super) after: Duration,
}

/// How many of how many were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) lost: usize,
    pub(super) of: usize,
}

/// Tries it.
///
/// # Errors
/// If it cannot be made, or all does not come right by itself.
pub(super) fn of(scene: &mut Scene, fault: &Fault) -> Result<Trial> {
    scene.call_anew()?;
    let standing = scene.load.standing();
    let began = Instant::now();
    (fault.begin)(scene).context("how it begins")?;
    while began.elapsed() + MEANWHILE < fault.lasts {
        sleep(MEANWHILE);
        machine::go_on()?;
        (fault.meanwhile)(scene).context("while it lasts")?;
    }
    sleep(fault.lasts.saturating_sub(began.elapsed()));
    let ended = Instant::now();
    (fault.end)(scene).context("how it ends")?;
    scene.wait_until_right()?;
    let right = ended.elapsed();
    // What was tried until now shows after our patience with it.
    sleep(PATIENCE * 2);
    Ok(tell(&scene.load.take(), standing, began, ended, right))
}

/// What it all came to. Pure.
fn tell(
    events: &[Event],
    standing: usize,
    began: Instant,
    ended: Instant,
    right: Duration,
) -> Trial {
    let events: Vec<_> = events.iter().filter(|event| event.at >= began).collect();
    let share = |kind| {
        let all = events.iter().filter(|event| event.kind == kind).count();
        let lost = events.iter().filter(|event| event.kind == kind && event.lost).count();
        match kind {
            // It counts when it begins.
            Kind::Connection => Share { lost, of: standing + all - lost },
            _ => Share { lost, of: all },
        }
    };
    let last = |kind, from: Instant, to: Option<Instant>| {
        let lost = events.iter().filter(|event| event.lost && event.kind == kind);
        let lost = lost.map(|event| event.at);
        let within = lost.filter(|at| *at >= from && to.is_none_or(|to| *at < to));
        within.max().map_or(Duration::ZERO, |at| at - from)
    };
    let failing =
        |kind| Failing { during: last(kind, began, Some(ended)), after: last(kind, ended, None) };
    Trial {
        new: failing(Kind::Request),
        flows: failing(Kind::Datagram),
        right,
        requests: share(Kind::Request),
        datagrams: share(Kind::Datagram),
        connections: share(Kind::Connection),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_on_both_sides_of_the_end() {
        let began = Instant::now();
        let at =
            |kind, seconds, lost| Event { kind, at: began + Duration::from_secs(seconds), lost };
        let events = [
            at(Kind::Request, 1, true),
            at(Kind::Request, 3, true),
            at(Kind::Request, 4, false),
            at(Kind::Datagram, 11, true),
            at(Kind::Connection, 2, true),
            at(Kind::Connection, 2, false),
        ];
        let ended = began + Duration::from_secs(10);
        let trial = tell(&events, 8, began, ended, Duration::from_secs(5));
        let second = Duration::from_secs(1);
        assert_eq!(trial.new, Failing { during: second * 3, after: Duration::ZERO });
        assert_eq!(trial.flows, Failing { during: Duration::ZERO, after: second });
        assert_eq!(trial.requests, Share { lost: 2, of: 3 });
        assert_eq!(trial.datagrams, Share { lost: 1, of: 1 });
        assert_eq!(trial.connections, Share { lost: 1, of: 9 });
        let quiet = tell(&events[2..3], 8, began, ended, Duration::ZERO);
        assert_eq!((quiet.new, quiet.flows), (Failing::default(), Failing::default()));
    }
}
