//! What the eBPF datapath is to reach, as ratios within a run, and whether it did. Pure.

use super::stats::{Samples, Summary};

/// One aim.
pub(crate) struct Goal {
    pub(crate) title: &'static str,
    of: Formula,
    pub(crate) ambitious: f64,
    pub(crate) stretch: f64,
    /// Where a prototype saw the end.
    pub(crate) limit: &'static str,
}

enum Formula {
    /// Of a measure, one variant by another.
    Ratio(&'static str, &'static str, &'static str),
    /// Of a measure, what a variant adds to a base by what another adds: less is better.
    Added { measure: &'static str, variant: &'static str, other: &'static str, base: &'static str },
}

const fn ratio(
    title: &'static str,
    of: (&'static str, &'static str, &'static str),
    (ambitious, stretch): (f64, f64),
    limit: &'static str,
) -> Goal {
    let (measure, variant, base) = of;
    Goal { title, of: Formula::Ratio(measure, variant, base), ambitious, stretch, limit }
}

pub(crate) const GOALS: &[Goal] = &[
    ratio("overlay packets/s ÷ raw", ("udp", "ebpf", "raw"), (0.75, 0.80), "0.85"),
    ratio("overlay packets/s ÷ bridge+vxlan", ("udp", "ebpf", "bridge"), (1.45, 1.55), "1.7"),
    ratio(
        "overlay packets/s ÷ Docker-like layout",
        ("udp", "ebpf", "docker-like"),
        (1.8, 1.95),
        "2.1",
    ),
    Goal {
        title: "added round trip ÷ what bridge+vxlan adds",
        of: Formula::Added { measure: "rtt", variant: "ebpf", other: "bridge", base: "raw" },
        ambitious: 0.45,
        stretch: 0.33,
        limit: "0.33",
    },
    ratio("TCP, one CPU ÷ raw", ("tcp1", "ebpf", "raw"), (0.88, 0.92), "1.0"),
    ratio("TCP, two CPUs ÷ bridge+vxlan", ("tcp2", "ebpf", "bridge"), (1.08, 1.15), "noisy"),
    ratio(
        "TCP, one CPU, uplink without TSO ÷ raw",
        ("tcp1-cut", "ebpf", "raw"),
        (0.85, 0.90),
        "0.91",
    ),
    ratio("connections/s ÷ bridge+vxlan", ("connections", "ebpf", "bridge"), (1.15, 1.25), "1.5"),
    ratio(
        "same host packets/s ÷ bridge",
        ("udp", "ebpf-same", "bridge-same"),
        (1.08, 1.15),
        "1.16",
    ),
    ratio("virtual address packets/s ÷ direct", ("udp", "ebpf-vip", "ebpf"), (0.92, 0.97), "0.99"),
    ratio(
        "published port packets/s ÷ DNAT and masquerading",
        ("udp", "published", "iptables"),
        (1.5, 1.65),
        "1.64",
    ),
    ratio(
        "published port connections/s ÷ DNAT and masquerading",
        ("connections", "published", "iptables"),
        (1.4, 1.55),
        "1.56",
    ),
];

/// How far a goal was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    Missed,
    Ambitious,
    Stretch,
}

impl Reached {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Missed => "missed",
            Self::Ambitious => "ambitious",
            Self::Stretch => "stretch",
        }
    }
}

impl Goal {
    /// What was measured, a value a round; none if a variant or measure was left out.
    pub(crate) fn measured(&self, samples: &Samples) -> Option<Summary> {
        Summary::of(&match self.of {
            Formula::Ratio(measure, variant, base) => samples.ratios(measure, variant, base),
            Formula::Added { measure, variant, other, base } => {
                samples.added(measure, variant, other, base)
            }
        })
    }

    /// Judged by the median.
    pub(crate) fn reached(&self, median: f64) -> Reached {
        let reaches = |aim: f64| match self.of {
            Formula::Ratio(..) => median >= aim,
            Formula::Added { .. } => median <= aim,
        };
        if reaches(self.stretch) {
            Reached::Stretch
        } else if reaches(self.ambitious) {
            Reached::Ambitious
        } else {
            Reached::Missed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::Sample;
    use super::super::{VARIANTS, measures::MEASURES};
    use super::*;

    #[test]
    fn goals_name_what_is_measured() {
        let is_variant = |id| VARIANTS.iter().any(|variant| variant.id == id);
        for goal in GOALS {
            let (measure, variants) = match goal.of {
                Formula::Ratio(measure, variant, base) => (measure, vec![variant, base]),
                Formula::Added { measure, variant, other, base } => {
                    (measure, vec![variant, other, base])
                }
            };
            assert!(MEASURES.iter().any(|m| m.id == measure), "{}", goal.title);
            assert!(variants.into_iter().all(is_variant), "{}", goal.title);
        }
    }

    #[test]
    fn more_is_better_but_for_what_is_added() {
        let pps = &GOALS[0];
        assert_eq!(pps.reached(0.74), Reached::Missed);
        assert_eq!(pps.reached(0.75), Reached::Ambitious);
        assert_eq!(pps.reached(0.9), Reached::Stretch);
        let added = GOALS.iter().find(|goal| matches!(goal.of, Formula::Added { .. })).unwrap();
        assert_eq!(added.reached(0.5), Reached::Missed);
        assert_eq!(added.reached(0.4), Reached::Ambitious);
        assert_eq!(added.reached(0.3), Reached::Stretch);
    }

    #[test]
    fn a_goal_is_measured_by_the_median_of_its_rounds() {
        let mut samples = Samples::default();
        for (round, ours) in [70.0, 90.0, 80.0].into_iter().enumerate() {
            for (variant, value) in [("ebpf", ours), ("raw", 100.0)] {
                samples.0.push(Sample { round, measure: "udp", variant, value });
            }
        }
        assert_eq!(GOALS[0].measured(&samples).unwrap().median, 0.8);
        assert!(GOALS[1].measured(&samples).is_none());
    }
}
