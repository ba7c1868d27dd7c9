//! Rings: which backend a new flow is given, laid out as slots. The programs only find
//! the slot (the next one, the one that a client hashes to, the one with least to do);
//! all that weights and schedulers mean beyond that is in the order and the number of the
//! slots. A ring is a function of the scheduler and the backends alone, so every node
//! comes to the same one, and an agent that restarts finds its own again.

use netagent_common::Scheduler as Kind;

use crate::model::Scheduler;

use super::state::Slot;

/// Slots of a ring of turns at most, unless there are more backends. Weights that need
/// more are rounded to it: the least share is then 1/4096.
const TURNS: u64 = 4096;

/// Sizes of hash tables, with the number of backends up to which each is used: with that
/// many of equal weight, shares are within a few percent of each other. Prime, as Maglev
/// needs it.
const TABLES: [(usize, u64); 3] = [(32, 1021), (256, 8191), (usize::MAX, 65_521)];

/// The ring for `backends` (each address once, weights from 1, in any order), and how a
/// slot of it is found. Empty if there is none.
pub(super) fn ring(scheduler: Scheduler, backends: &[Slot]) -> (Kind, Vec<Slot>) {
    let mut backends = backends.to_vec();
    backends.sort_by_key(|slot| slot.ip);
    let equal = || backends.iter().map(|slot| Slot { weight: 1, ..*slot }).collect();
    match scheduler {
        Scheduler::Rr => (Kind::Turn, equal()),
        Scheduler::Wrr => (Kind::Turn, turns(&backends)),
        Scheduler::Lc => (Kind::Least, equal()),
        Scheduler::Wlc => (Kind::Least, backends),
        Scheduler::Sh | Scheduler::Mh => (Kind::Source, table(&backends)),
    }
}

/// As many slots of each as its weight says, spread evenly: the `k`th of `n` of a backend
/// stands where `(k + 1/2) / n` of the ring has passed.
fn turns(backends: &[Slot]) -> Vec<Slot> {
    let divisor = backends.iter().fold(0, |all, slot| gcd(all, slot.weight.into()));
    let sum: u64 = backends.iter().map(|slot| u64::from(slot.weight) / divisor).sum();
    let slots_of = |slot: &Slot| {
        let weight = u64::from(slot.weight) / divisor;
        if sum <= TURNS { weight } else { ((weight * TURNS + sum / 2) / sum).max(1) }
    };
    let mut places = Vec::new();
    for slot in backends {
        let n = slots_of(slot);
        // As fractions of 2^32: `n` is at most `TURNS`.
        places.extend((0..n).map(|k| (((2 * k + 1) << 31) / n, Slot { weight: 1, ..*slot })));
    }
    places.sort_by_key(|(place, slot)| (*place, slot.ip));
    places.into_iter().map(|(_, slot)| slot).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Maglev's table (Eisenbud and others, NSDI 2016, section 3.4): every backend walks the
/// table in an order of its own and takes the next free slot when it is its turn, in every
/// round or, with less weight than the heaviest, in as many as its share says. What is
/// another's stays so, mostly, when a backend comes or goes.
fn table(backends: &[Slot]) -> Vec<Slot> {
    let heaviest = u64::from(backends.iter().map(|slot| slot.weight).max().unwrap_or(0));
    if heaviest == 0 {
        return vec![];
    }
    let fits = TABLES.iter().find(|(most, _)| backends.len() <= *most);
    let size = fits.expect("the last fits any number").1;
    let mut table = vec![Slot::MISSING; size as usize];
    let mut free = size;
    // Of each backend: where it stands, how far it steps, and the credit for its next turn.
    let mut walks: Vec<(u64, u64, u64)> = backends
        .iter()
        .map(|slot| {
            let hash = mix(u32::from(slot.ip).into());
            // With the first round comes a slot for everyone.
            (hash % size, 1 + mix(hash) % (size - 1), heaviest - u64::from(slot.weight))
        })
        .collect();
    loop {
        for (slot, (place, step, credit)) in backends.iter().zip(&mut walks) {
            *credit += u64::from(slot.weight);
            if *credit < heaviest {
                continue;
            }
            *credit -= heaviest;
            while table[*place as usize] != Slot::MISSING {
                *place = (*place + *step) % size;
            }
            table[*place as usize] = Slot { weight: 1, ..*slot };
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

/// A number for `bytes`, spread over the whole range and the same for ever.
pub(super) fn hash(bytes: &[u8]) -> u32 {
    (bytes.iter().fold(0, |hash, byte| mix(hash ^ u64::from(*byte))) >> 32) as u32
}

/// A hash that is the same for ever and on every node (splitmix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn slot(last: usize, weight: u32) -> Slot {
        let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 2)) + last as u32);
        Slot { ip, weight }
    }

    fn backends(weights: &[u32]) -> Vec<Slot> {
        weights.iter().enumerate().map(|(i, weight)| slot(i, *weight)).collect()
    }

    fn counts(ring: &[Slot]) -> BTreeMap<Ipv4Addr, usize> {
        let mut counts = BTreeMap::new();
        for slot in ring {
            *counts.entry(slot.ip).or_default() += 1;
        }
        counts
    }

    fn letters(ring: &[Slot]) -> String {
        ring.iter().map(|slot| char::from(b'a' + slot.ip.octets()[3] - 2)).collect()
    }

    #[test]
    fn nobody_has_no_slot() {
        for scheduler in ALL {
            assert_eq!(ring(scheduler, &[]).1, []);
        }
    }

    #[test]
    fn turns_go_round_and_heavier_ones_come_more_often() {
        let of = |scheduler, weights: &[u32]| letters(&ring(scheduler, &backends(weights)).1);
        assert_eq!(of(Scheduler::Rr, &[5, 1, 1]), "abc");
        assert_eq!(of(Scheduler::Wrr, &[1, 1, 1]), "abc");
        assert_eq!(of(Scheduler::Wrr, &[100, 100]), "ab");
        assert_eq!(of(Scheduler::Wrr, &[4, 2, 2]), "abca");
        assert_eq!(of(Scheduler::Wrr, &[3, 2, 1]), "abacba");
    }

    #[test]
    fn least_has_one_slot_each_with_its_weight() {
        let three = backends(&[5, 1, 2]);
        assert_eq!(ring(Scheduler::Wlc, &three), (Kind::Least, three.clone()));
        let equal = (Kind::Least, backends(&[1, 1, 1]));
        assert_eq!(ring(Scheduler::Lc, &three), equal);
    }

    #[test]
    fn a_client_of_a_backend_that_stays_keeps_it() {
        let (_, before) = ring(Scheduler::Mh, &backends(&[1; 10]));
        let mut fewer = backends(&[1; 10]);
        let gone = fewer.remove(3).ip;
        let (_, after) = ring(Scheduler::Mh, &fewer);
        let moved = before.iter().zip(&after).filter(|(b, a)| b.ip != gone && a != b).count();
        assert!(moved < before.len() / 20, "{moved} of {}", before.len());
        // And it comes back to what it was.
        assert_eq!(ring(Scheduler::Mh, &backends(&[1; 10])).1, before);
    }

    #[test]
    fn a_ring_as_large_as_can_be_has_a_slot_for_everyone() {
        let many = backends(&vec![1; 5000]);
        assert_eq!(counts(&ring(Scheduler::Wrr, &many).1).len(), 5000);
        let mut uneven = backends(&[1; 300]);
        uneven[7].weight = 65_535;
        for scheduler in [Scheduler::Wrr, Scheduler::Mh] {
            assert_eq!(counts(&ring(scheduler, &uneven).1).len(), 300, "{scheduler}");
        }
    }

    const ALL: [Scheduler; 6] = [
        Scheduler::Rr,
        Scheduler::Wrr,
        Scheduler::Lc,
        Scheduler::Wlc,
        Scheduler::Sh,
        Scheduler::Mh,
    ];

    proptest! {
        #[test]
        fn the_order_of_the_backends_does_not_matter(
            weights in prop::collection::vec(1..100_u32, 1..20),
        ) {
            let mut reversed = backends(&weights);
            reversed.reverse();
            for scheduler in ALL {
                prop_assert_eq!(ring(scheduler, &backends(&weights)), ring(scheduler, &reversed));
            }
        }

        /// At every point of the ring everyone has had its share, and no more.
        #[test]
        fn turns_are_spread_evenly(weights in prop::collection::vec(1..=65_535_u32, 1..12)) {
            let (_, ring) = ring(Scheduler::Wrr, &backends(&weights));
            prop_assert!(ring.len() as u64 <= TURNS + weights.len() as u64);
            let sum: u32 = weights.iter().sum();
            for (i, weight) in weights.iter().enumerate() {
                let share = f64::from(*weight) / f64::from(sum);
                let mut had = 0.0;
                for (n, slot) in ring.iter().enumerate() {
                    had += f64::from(u8::from(slot.ip == self::slot(i, 1).ip));
                    let due = share * (n + 1) as f64;
                    // Rounded weights add up to one turn more or less of each.
                    let tolerance = 3.0 + share * weights.len() as f64;
                    prop_assert!((had - due).abs() <= tolerance, "{had} instead of {due}");
                }
            }
        }

        /// As ipvsadm(8) has it: shares are as weights are, exactly where they are small.
        #[test]
        fn small_weights_are_kept_exactly(weights in prop::collection::vec(1..40_u32, 1..20)) {
            let (_, ring) = ring(Scheduler::Wrr, &backends(&weights));
            let counts = counts(&ring);
            for (i, weight) in weights.iter().enumerate() {
                let had = counts[&slot(i, 1).ip] as u64 * u64::from(weights[0]);
                prop_assert_eq!(had, counts[&slot(0, 1).ip] as u64 * u64::from(*weight));
            }
        }

        #[test]
        fn shares_of_a_table_follow_the_weights(
            weights in prop::collection::vec(1..20_u32, 1..30),
        ) {
            let (_, table) = ring(Scheduler::Mh, &backends(&weights));
            let counts = counts(&table);
            let sum: u32 = weights.iter().sum();
            for (i, weight) in weights.iter().enumerate() {
                let due = table.len() as f64 * f64::from(*weight) / f64::from(sum);
                let had = counts[&slot(i, 1).ip] as f64;
                prop_assert!((had - due).abs() <= 2.0 + due / 20.0, "{had} instead of {due}");
            }
        }

        #[test]
        fn few_slots_move_when_one_backend_goes(
            (weights, gone) in prop::collection::vec(1..20_u32, 2..30)
                .prop_flat_map(|w| { let n = w.len(); (Just(w), 0..n) }),
        ) {
            let all = backends(&weights);
            let (_, before) = ring(Scheduler::Mh, &all);
            let mut fewer = all;
            let gone = fewer.remove(gone).ip;
            let (_, after) = ring(Scheduler::Mh, &fewer);
            let moved = before.iter().zip(&after).filter(|(b, a)| b.ip != gone && b != a).count();
            prop_assert!(moved * 5 < before.len(), "{moved} of {} moved", before.len());
        }
    }
}
