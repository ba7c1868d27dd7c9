//! What a node concludes from its probes of another: whether packets get there and back, how
//! long they take, and how large they may be. Time is told in rounds, in each of which
//! a peer gets one small probe, and while its path's MTU is looked for a large one. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use netagent_common::{Probe, VXLAN_OVERHEAD};

use crate::model::{Path, Reach};

/// Time of a round.
pub const ROUND: Duration = Duration::from_millis(400);
/// Peers that are probed in such rounds; of more each is probed less often, so that a node
/// never sends more than 250 probes a second.
const PEERS_AT_ONCE: u32 = 100;
/// Probes in a row without an answer after which a node is unreachable: 1.2 s, and up to one
/// round more since the path broke.
const LOST: u32 = 3;
/// The same for a path by which nothing came back yet, 30 s: one of the two nodes, which may
/// have joined in this moment, is loading its programs.
const LOST_AT_FIRST: u32 = 75;
/// Probes in a row that are answered when an unreachable node is reachable again.
const ANSWERED: u32 = 2;
/// Rounds without a request of the other node after which it is not heard. Fewer than
/// [`LOST`], so that of a node that is off nobody says that it was.
const SILENT: u32 = 2;
/// Large probes of one size without an answer after which packets of this size are blocked.
const TRIES: u8 = 3;
/// Rounds between two looks at the path's MTU: 30 s.
const MTU_EVERY: u32 = 75;
/// Requests whose answers are awaited; what comes later than so many is of no interest.
const AWAITED: usize = 16;
/// Bytes of the underlay's IP packet that a probe is in, without anything behind it.
pub const SMALLEST: u16 = VXLAN_OVERHEAD + Probe::LEN as u16;

/// Number of a probe.
pub type Id = [u8; 8];

/// Time of a round with so many peers.
#[must_use]
pub fn round(peers: usize) -> Duration {
    let peers = u32::try_from(peers).unwrap_or(u32::MAX).max(PEERS_AT_ONCE);
    ROUND * peers / PEERS_AT_ONCE
}

/// The path to one peer.
#[derive(Clone, Debug)]
pub struct Watch {
    reach: Reach,
    /// Small probes since the last answer to one.
    unanswered: u32,
    /// Answers to small probes since one was not answered.
    answered: u32,
    /// Rounds since a request of the peer's came in.
    silent: u32,
    round_trip: Option<Duration>,
    awaited: VecDeque<Awaited>,
    mtu: Mtu,
}

/// A request that may yet be answered.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    id: Id,
    size: u16,
    at: Duration,
}

/// What is known of the path's MTU. Sizes are those of the underlay's IP packets, in bytes.
#[derive(Clone, Debug, Default)]
struct Mtu {
    /// What both uplinks take.
    full: u16,
    found: Option<u16>,
    search: Option<Search>,
    /// Rounds until the next search.
    rest: u32,
}

/// A search: the largest size that passes is `passes` or more, and less than `fails`.
#[derive(Clone, Copy, Debug)]
struct Search {
    passes: u16,
    fails: u16,
    size: u16,
    tries: u8,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            reach: Reach::Unknown,
            unanswered: 0,
            answered: 0,
            silent: u32::MAX,
            round_trip: None,
            awaited: VecDeque::new(),
            mtu: Mtu::default(),
        }
    }
}

impl Watch {
    /// A round is over, and another begins: judges what came back, and gives the sizes of the
    /// probes to send. `full` is the size that both uplinks take.
    pub fn round(&mut self, full: u16) -> Vec<u16> {
        let patience = if self.reach == Reach::Unknown { LOST_AT_FIRST } else { LOST };
        if self.unanswered > 0 {
            self.answered = 0;
        }
        if self.unanswered >= patience {
            self.reach = Reach::Unreachable;
        }
        let lossless = self.unanswered == 0;
        self.unanswered = self.unanswered.saturating_add(1);
        self.silent = self.silent.saturating_add(1);
        let large = if self.reach == Reach::Reachable {
            self.mtu.round(full, lossless)
        } else {
            self.mtu.pause();
            None
        };
        [Some(SMALLEST), large].into_iter().flatten().collect()
    }

    /// A probe of `size` bytes was sent `at` this time of the monotonic clock.
    pub fn sent(&mut self, id: Id, size: u16, at: Duration) {
        self.awaited.push_back(Awaited { id, size, at });
        if self.awaited.len() > AWAITED {
            self.awaited.pop_front();
        }
    }

    /// An answer came. One to what was not asked, or was answered already, means nothing.
    pub fn returned(&mut self, id: Id, at: Duration) {
        let Some(index) = self.awaited.iter().position(|awaited| awaited.id == id) else { return };
        let Some(asked) = self.awaited.remove(index) else { return };
        if asked.size != SMALLEST {
            return self.mtu.passed(asked.size);
        }
        self.round_trip = Some(at.saturating_sub(asked.at));
        self.unanswered = 0;
        self.answered = self.answered.saturating_add(1);
        if self.reach == Reach::Unknown || self.answered >= ANSWERED {
            self.reach = Reach::Reachable;
        }
    }

    /// A request of the peer's came.
    pub fn heard(&mut self) {
        self.silent = 0;
    }

    /// Whether packets get there and back.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// The largest packets that pass, if that is less than the uplinks take.
    #[must_use]
    pub fn blocked_above(&self) -> Option<u16> {
        self.mtu.found.filter(|found| *found < self.mtu.full)
    }

    /// What to tell of it; `port` is that of VXLAN.
    #[must_use]
    pub fn path(&self, port: u16) -> Path {
        let heard = self.silent <= SILENT;
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        Path {
            reach: self.reach,
            heard,
            round_trip_us: self.round_trip.map(micros),
            mtu: self.mtu.found,
            remark: self.remark(heard, port),
        }
    }

    fn remark(&self, heard: bool, port: u16) -> Option<String> {
        match (self.reach, self.blocked_above()) {
            (Reach::Unreachable, _) if heard => Some(format!(
                "its packets arrive here, but ours do not arrive there: something blocks UDP \
                 port {port} in that direction"
            )),
            (Reach::Unreachable, _) => Some(format!(
                "nothing of it arrives here: it is off or cut off, or something blocks UDP port \
                 {port} towards this node"
            )),
            (_, Some(found)) => Some(format!(
                "packets of more than {found} bytes do not get there and back, though both \
                 uplinks take {}: mend the path, or create networks with an mtu of {}",
                self.mtu.full,
                found.saturating_sub(VXLAN_OVERHEAD),
            )),
            (_, None) => None,
        }
    }
}

impl Mtu {
    /// The size to try in this round. What was tried in the last one without an answer counts
    /// only if a small probe got through at the same time.
    fn round(&mut self, full: u16, lossless: bool) -> Option<u16> {
        // So that there is a size that is too large.
        let full = full.min(u16::MAX - 1);
        if full != self.full {
            *self = Self { full, ..Self::default() };
        }
        match &mut self.search {
            None if self.rest > 0 => self.rest -= 1,
            None => {
                let start = Search { passes: SMALLEST, fails: full + 1, size: full, tries: TRIES };
                self.search = Some(start);
            }
            Some(search) if search.tries == 0 && lossless => {
                search.fails = search.size;
                self.narrow();
            }
            Some(_) => {}
        }
        let search = self.search.as_mut()?;
        search.tries = search.tries.saturating_sub(1);
        Some(search.size)
    }

    /// A probe of this size was answered.
    fn passed(&mut self, size: u16) {
        if let Some(search) = &mut self.search
            && size >= search.size
        {
            search.passes = size;
            self.narrow();
        }
    }

    fn narrow(&mut self) {
        let Some(search) = &mut self.search else { return };
        if search.passes + 1 >= search.fails {
            (self.found, self.rest) = (Some(search.passes), MTU_EVERY);
            self.search = None;
        } else {
            (search.size, search.tries) = (search.passes.midpoint(search.fails), TRIES);
        }
    }

    /// Nothing passes; when something does again, the path may be another.
    fn pause(&mut self) {
        self.search = None;
        self.rest = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 4789;
    const FULL: u16 = 1500;

    /// A peer behind a path that carries packets up to a size, or none.
    struct Bench {
        watch: Watch,
        carries: u16,
        number: u64,
        sent: Vec<u16>,
    }

    impl Bench {
        fn new() -> Self {
            Self { watch: Watch::default(), carries: FULL, number: 0, sent: vec![] }
        }

        fn round(&mut self) {
            self.sent = self.watch.round(FULL);
            for size in self.sent.clone() {
                self.number += 1;
                let (id, at) = (self.number.to_be_bytes(), Duration::from_secs(self.number));
                self.watch.sent(id, size, at);
                if size <= self.carries {
                    self.watch.returned(id, at + Duration::from_micros(250));
                }
            }
        }

        fn rounds(&mut self, count: u32) -> Reach {
            (0..count).for_each(|_| self.round());
            self.watch.reach()
        }

        fn remark(&self) -> String {
            self.watch.path(PORT).remark.unwrap_or_default()
        }
    }

    #[test]
    fn one_answer_makes_a_new_peer_reachable() {
        let mut bench = Bench::new();
        assert_eq!(bench.watch.reach(), Reach::Unknown);
        assert_eq!(bench.rounds(1), Reach::Reachable);
        assert_eq!(bench.watch.path(PORT).round_trip_us, Some(250));
    }

    #[test]
    fn three_unanswered_probes_make_it_unreachable_and_two_answers_reachable_again() {
        let mut bench = Bench::new();
        bench.rounds(5);
        bench.carries = 0;
        // Judged when the fourth is sent.
        assert_eq!(bench.rounds(LOST), Reach::Reachable);
        assert_eq!(bench.rounds(1), Reach::Unreachable);
        bench.carries = FULL;
        assert_eq!(bench.rounds(1), Reach::Unreachable);
        bench.carries = 0;
        assert_eq!(bench.rounds(1), Reach::Unreachable);
        bench.carries = FULL;
        assert_eq!(bench.rounds(1), Reach::Unreachable, "not two in a row");
        assert_eq!(bench.rounds(1), Reach::Reachable);
    }

    #[test]
    fn single_losses_do_not_matter() {
        let mut bench = Bench::new();
        for _ in 0..20 {
            bench.carries = FULL;
            assert_eq!(bench.rounds(1), Reach::Reachable);
            bench.carries = 0;
            assert_eq!(bench.rounds(LOST - 1), Reach::Reachable);
        }
    }

    #[test]
    fn a_peer_that_never_answered_gets_more_patience() {
        let mut bench = Bench::new();
        bench.carries = 0;
        assert_eq!(bench.rounds(LOST_AT_FIRST), Reach::Unknown);
        assert_eq!(bench.rounds(1), Reach::Unreachable);
    }

    #[test]
    fn answers_count_once_and_only_if_asked_for() {
        let mut watch = Watch::default();
        watch.round(FULL);
        watch.returned([7; 8], Duration::ZERO);
        assert_eq!(watch.reach(), Reach::Unknown);
        watch.sent([1; 8], SMALLEST, Duration::ZERO);
        watch.returned([1; 8], Duration::from_secs(1));
        watch.returned([1; 8], Duration::from_secs(9));
        assert_eq!(watch.path(PORT).round_trip_us, Some(1_000_000));
        assert_eq!(watch.answered, 1);
        // What is awaited has an end.
        (0..100).for_each(|n| watch.sent([n; 8], SMALLEST, Duration::ZERO));
        assert_eq!(watch.awaited.len(), AWAITED);
    }

    #[test]
    fn a_late_answer_is_one() {
        let mut watch = Watch::default();
        for n in 0..2 {
            watch.round(FULL);
            watch.sent([n; 8], SMALLEST, Duration::ZERO);
        }
        watch.returned([0; 8], Duration::from_millis(450));
        assert_eq!(watch.reach(), Reach::Reachable);
    }

    #[test]
    fn a_path_that_takes_what_the_uplinks_take_costs_one_large_probe_each_half_minute() {
        let mut bench = Bench::new();
        bench.rounds(2);
        assert_eq!((bench.sent.as_slice(), bench.watch.mtu.found), (&[62, FULL][..], Some(FULL)));
        for _ in 0..MTU_EVERY {
            bench.round();
            assert_eq!(bench.sent, [62]);
        }
        bench.rounds(1);
        assert_eq!(bench.sent, [62, FULL]);
        assert_eq!(bench.watch.blocked_above(), None);
        assert_eq!(bench.watch.path(PORT).remark, None);
    }

    #[test]
    fn a_smaller_path_is_measured_to_the_byte() {
        for carries in [62, 63, 576, 1000, 1279, 1280, 1450, 1499] {
            let mut bench = Bench::new();
            bench.carries = carries;
            bench.rounds(50);
            assert_eq!(bench.watch.blocked_above(), Some(carries));
            assert_eq!(bench.watch.path(PORT).mtu, Some(carries));
        }
        let mut bench = Bench::new();
        bench.carries = 1280;
        bench.rounds(50);
        assert!(bench.remark().contains("more than 1280 bytes"), "{}", bench.remark());
        assert!(bench.remark().contains("mtu of 1230"), "{}", bench.remark());
        bench.carries = FULL;
        bench.rounds(MTU_EVERY + 2);
        assert_eq!(bench.watch.blocked_above(), None, "it was mended");
    }

    #[test]
    fn a_large_packet_lost_with_the_small_ones_says_nothing_of_sizes() {
        let mut bench = Bench::new();
        bench.rounds(1);
        bench.carries = 0;
        bench.rounds(LOST - 1);
        bench.carries = FULL;
        bench.rounds(3);
        assert_eq!(bench.watch.blocked_above(), None);
        assert_eq!(bench.watch.mtu.found, Some(FULL));
    }

    #[test]
    fn what_both_uplinks_take_may_change() {
        let mut bench = Bench::new();
        bench.rounds(3);
        assert_eq!(bench.watch.round(1400), [SMALLEST, 1400]);
        assert_eq!(bench.watch.path(PORT).mtu, None);
    }

    #[test]
    fn who_is_heard_but_does_not_answer_does_not_hear_us() {
        let mut bench = Bench::new();
        bench.rounds(2);
        bench.carries = 0;
        for _ in 0..6 {
            bench.watch.heard();
            bench.round();
        }
        assert!(bench.remark().contains("ours do not arrive there"), "{}", bench.remark());
        bench.rounds(SILENT);
        assert!(bench.remark().contains("nothing of it arrives"), "{}", bench.remark());
    }

    #[test]
    fn of_a_node_that_goes_off_nobody_says_that_it_is_heard() {
        let mut bench = Bench::new();
        for _ in 0..5 {
            bench.watch.heard();
            bench.round();
        }
        bench.watch.heard();
        bench.carries = 0;
        assert_eq!(bench.rounds(LOST + 1), Reach::Unreachable);
        assert!(!bench.watch.path(PORT).heard);
    }

    #[test]
    fn many_peers_are_probed_less_often() {
        assert_eq!(round(1), ROUND);
        assert_eq!(round(100), ROUND);
        assert_eq!(round(1000), ROUND * 10);
    }
}
