//! What is to happen, and when: a function of the seed alone. Pure; whether a deed succeeds in
//! the middle of others is not known here and does not matter.

use std::fmt;
use std::time::Duration;

/// Networks that are there from the beginning, and as many that come and go.
pub(super) const NETWORKS: usize = 2;
/// The same of services.
pub(super) const SERVICES: usize = 3;
/// Schedulers that a service is given in turn.
const SCHEDULERS: [&str; 6] = ["rr", "wrr", "lc", "wlc", "sh", "mh"];

/// Something done to the cluster. Nodes are numbered from 1, the manager is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Deed {
    KillAgent(usize),
    StartAgent(usize),
    Freeze(usize),
    Thaw(usize),
    Cut(usize),
    Mend(usize),
    /// The workload of this slot starts on a node: on a network, or as a backend of a service.
    Start {
        slot: usize,
        node: usize,
        place: Place,
    },
    /// It ends: killed, or asked to.
    End {
        slot: usize,
        killed: bool,
    },
    CreateNetwork(usize),
    RemoveNetwork(usize),
    CreateService(usize),
    RemoveService(usize),
    Schedule {
        service: usize,
        scheduler: &'static str,
    },
}

/// Where a workload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Network(usize),
    Service(usize),
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillAgent(n) => write!(f, "kill -9 the agent of n{n}"),
            Self::StartAgent(n) => write!(f, "start the agent of n{n}"),
            Self::Freeze(n) => write!(f, "freeze the agent of n{n}"),
            Self::Thaw(n) => write!(f, "thaw the agent of n{n}"),
            Self::Cut(n) => write!(f, "cut the link of n{n}"),
            Self::Mend(n) => write!(f, "mend the link of n{n}"),
            Self::Start { slot, node, place: Place::Network(network) } => {
                write!(f, "start w{slot} on n{node} in net{network}")
            }
            Self::Start { slot, node, place: Place::Service(service) } => {
                write!(f, "start w{slot} on n{node} for web{service}")
            }
            Self::End { slot, killed: true } => write!(f, "kill w{slot}"),
            Self::End { slot, killed: false } => write!(f, "end w{slot}"),
            Self::CreateNetwork(n) => write!(f, "create net{n}"),
            Self::RemoveNetwork(n) => write!(f, "remove net{n}"),
            Self::CreateService(n) => write!(f, "create web{n}"),
            Self::RemoveService(n) => write!(f, "remove web{n}"),
            Self::Schedule { service, scheduler } => {
                write!(f, "schedule web{service} by {scheduler}")
            }
        }
    }
}

/// Workloads that there can be on so many nodes.
pub(super) fn slots(nodes: usize) -> usize {
    nodes * 3
}

/// All deeds with their times, in order.
pub(super) fn of(seed: u64, nodes: usize, lasts: Duration) -> Vec<(Duration, Deed)> {
    let mut random = Random(seed);
    let mut deeds = Vec::new();
    let mut now = Duration::ZERO;
    while now < lasts {
        now += Duration::from_millis(random.below(600) as u64);
        let node = 1 + random.below(nodes);
        let later = now + Duration::from_millis(random.below(8000) as u64);
        let slot = random.below(slots(nodes));
        let (network, service) = (random.below(NETWORKS * 2), random.below(SERVICES * 2));
        let coming = |at: usize, all: usize| all + at % all;
        match random.below(100) {
            0..8 => deeds.extend([(now, Deed::KillAgent(node)), (later, Deed::StartAgent(node))]),
            8..14 => deeds.extend([(now, Deed::Freeze(node)), (later, Deed::Thaw(node))]),
            14..20 => deeds.extend([(now, Deed::Cut(node)), (later, Deed::Mend(node))]),
            20..55 => {
                let place = match random.below(2) {
                    0 => Place::Network(network),
                    _ => Place::Service(service),
                };
                deeds.push((now, Deed::Start { slot, node, place }));
            }
            55..85 => deeds.push((now, Deed::End { slot, killed: random.below(2) == 0 })),
            85..88 => deeds.push((now, Deed::CreateNetwork(coming(network, NETWORKS)))),
            88..91 => deeds.push((now, Deed::RemoveNetwork(coming(network, NETWORKS)))),
            91..94 => deeds.push((now, Deed::CreateService(coming(service, SERVICES)))),
            94..96 => deeds.push((now, Deed::RemoveService(coming(service, SERVICES)))),
            _ => {
                let scheduler = SCHEDULERS[random.below(SCHEDULERS.len())];
                deeds.push((now, Deed::Schedule { service, scheduler }));
            }
        }
    }
    // Of those at one moment the earlier decided comes first.
    deeds.sort_by_key(|(at, _)| *at);
    deeds
}

/// SplitMix64: the same numbers for a seed for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((bits ^ (bits >> 31)) % limit as u64).expect("it is less than the limit")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let minute = Duration::from_secs(60);
        let plan = of(7, 6, minute);
        assert_eq!(plan, of(7, 6, minute));
        assert_ne!(plan, of(8, 6, minute));
        assert!(plan.is_sorted_by_key(|(at, _)| *at));
        for (_, deed) in &plan {
            match deed {
                Deed::KillAgent(node) | Deed::Cut(node) => assert!((1..=6).contains(node)),
                Deed::Start { slot, node, .. } => {
                    assert!(*slot < slots(6) && (1..=6).contains(node));
                }
                Deed::RemoveNetwork(n) | Deed::CreateNetwork(n) => assert!(*n >= NETWORKS),
                Deed::RemoveService(n) | Deed::CreateService(n) => assert!(*n >= SERVICES),
                _ => {}
            }
        }
        let kinds = ["kill -9", "freeze", "cut", "start w", "end w", "create net", "remove web"];
        for kind in kinds {
            assert!(plan.iter().any(|(_, deed)| deed.to_string().starts_with(kind)), "no {kind}");
        }
    }
}
