//! Chooses what nobody uses: subnets, VNIs, addresses. Pure; the caller writes
//! the choice in the transaction that it was made for.
//!
//! VNIs and addresses are taken next-fit, after the one taken last and around, so
//! that one that was given back is reused as late as possible: packets and caches
//! of its former owner have time to die out.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnetwork::Ipv4Network;

use crate::model::Vni;

/// The first block of `prefix` bits in `pool` that overlaps none of `taken`.
#[must_use]
pub(super) fn subnet(pool: Ipv4Network, prefix: u8, taken: &[Ipv4Network]) -> Option<Ipv4Network> {
    let mut start = u64::from(pool.network().to_bits());
    loop {
        let first = Ipv4Addr::from_bits(u32::try_from(start).ok()?);
        let block = Ipv4Network::new(first, prefix).ok()?;
        if !contains(pool, block) {
            return None;
        }
        // Behind whatever is in the way; blocks are aligned, so both steps stay so.
        let Some(end) = taken.iter().filter(|t| overlap(**t, block)).map(last).max() else {
            return Some(block);
        };
        start = u64::from(end.max(last(&block))) + 1;
    }
}

/// The next VNI after `cursor` that is not in `taken`.
#[must_use]
pub(super) fn vni(cursor: Option<Vni>, taken: &BTreeSet<Vni>) -> Option<Vni> {
    next_fit(Vni::FIRST.0..=Vni::LAST.0, cursor.map(|c| c.0), |n| taken.contains(&Vni(n))).map(Vni)
}

/// The next address of `range` after `cursor` that is not in `taken`, and neither
/// the first nor the last of `subnet`, which name the network and everybody.
#[must_use]
pub(super) fn address(
    subnet: Ipv4Network,
    range: Ipv4Network,
    cursor: Option<Ipv4Addr>,
    taken: &BTreeSet<Ipv4Addr>,
) -> Option<Ipv4Addr> {
    next_fit(usable(subnet, range), cursor.map(Ipv4Addr::to_bits), |bits| {
        taken.contains(&Ipv4Addr::from_bits(bits))
    })
    .map(Ipv4Addr::from_bits)
}

/// How many addresses [`address`] can give, and how many of them are in `taken`.
#[must_use]
pub(super) fn room(
    subnet: Ipv4Network,
    range: Ipv4Network,
    reserved: &BTreeSet<Ipv4Addr>,
    taken: &BTreeSet<Ipv4Addr>,
) -> (u64, u64) {
    let usable = usable(subnet, range);
    let inside = |address: &&Ipv4Addr| usable.contains(&address.to_bits());
    let all = (u64::from(*usable.end()) + 1).saturating_sub(u64::from(*usable.start()));
    let reserved = reserved.iter().filter(inside).count() as u64;
    (all - reserved, taken.iter().filter(inside).count() as u64)
}

/// Whether two blocks have an address in common.
#[must_use]
pub(super) fn overlap(a: Ipv4Network, b: Ipv4Network) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// Whether `inner` lies wholly in `outer`.
#[must_use]
pub(super) fn contains(outer: Ipv4Network, inner: Ipv4Network) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

fn usable(subnet: Ipv4Network, range: Ipv4Network) -> RangeInclusive<u32> {
    let first = range.network().to_bits().max(subnet.network().to_bits() + 1);
    let last = range.broadcast().to_bits().min(subnet.broadcast().to_bits() - 1);
    first..=last
}

fn last(block: &Ipv4Network) -> u32 {
    block.broadcast().to_bits()
}

fn next_fit(
    range: RangeInclusive<u32>,
    cursor: Option<u32>,
    taken: impl Fn(u32) -> bool,
) -> Option<u32> {
    let (first, last) = range.into_inner();
    let start = cursor.map_or(first, |c| c.saturating_add(1)).max(first);
    (start..=last).chain(first..=last.min(start.saturating_sub(1))).find(|n| !taken(*n))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_step_over_what_is_taken() {
        let pool = net("10.0.0.0/8");
        assert_eq!(subnet(pool, 24, &[]), Some(net("10.0.0.0/24")));
        let taken = [net("10.0.0.0/24"), net("10.0.1.128/25"), net("10.0.2.0/23")];
        assert_eq!(subnet(pool, 24, &taken), Some(net("10.0.4.0/24")));
        assert_eq!(subnet(pool, 24, &[net("10.0.0.0/9")]), Some(net("10.128.0.0/24")));
        assert_eq!(subnet(pool, 24, &[net("8.0.0.0/6")]), None);
        assert_eq!(subnet(net("255.255.255.0/24"), 24, &[net("255.255.255.255/32")]), None);
        assert_eq!(subnet(pool, 7, &[]), None);
    }

    #[test]
    fn addresses_are_reused_late() {
        let subnet = net("10.0.0.0/29");
        let gateway = BTreeSet::from([ip("10.0.0.1")]);
        let next = |cursor| address(subnet, subnet, cursor, &gateway);
        assert_eq!(next(None), Some(ip("10.0.0.2")));
        assert_eq!(next(Some(ip("10.0.0.2"))), Some(ip("10.0.0.3")));
        assert_eq!(next(Some(ip("10.0.0.6"))), Some(ip("10.0.0.2")));
        // A cursor that another range left behind.
        assert_eq!(next(Some(ip("10.9.9.9"))), Some(ip("10.0.0.2")));
        assert_eq!(next(Some(ip("9.0.0.0"))), Some(ip("10.0.0.2")));
        let full = (1..7).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
        assert_eq!(address(subnet, subnet, None, &full), None);
        assert_eq!(address(subnet, net("10.0.0.0/32"), None, &gateway), None);
        assert_eq!(room(subnet, subnet, &gateway, &full), (5, 6));
    }

    #[test]
    fn vnis_start_where_swarms_do() {
        let taken = BTreeSet::from([Vni(4096), Vni(4097)]);
        assert_eq!(vni(None, &taken), Some(Vni(4098)));
        assert_eq!(vni(Some(Vni(5000)), &taken), Some(Vni(5001)));
        assert_eq!(vni(Some(Vni::LAST), &taken), Some(Vni(4098)));
    }

    fn block(prefix: std::ops::RangeInclusive<u8>) -> impl Strategy<Value = Ipv4Network> {
        // Within 10.0.0.0/16, so that blocks do meet.
        (0..=0xffffu32, prefix).prop_map(|(low, prefix)| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 | low);
            let network = Ipv4Network::new(address, prefix).unwrap().network();
            Ipv4Network::new(network, prefix).unwrap()
        })
    }

    proptest! {
        #[test]
        fn subnets_are_disjoint(
            taken in prop::collection::vec(block(14..=32), 0..20),
            prefixes in prop::collection::vec(18u8..=29, 1..20),
        ) {
            let pool = net("10.0.0.0/16");
            let mut taken = taken;
            for prefix in prefixes {
                match subnet(pool, prefix, &taken) {
                    Some(found) => {
                        prop_assert_eq!(found.prefix(), prefix);
                        prop_assert_eq!(found.ip(), found.network());
                        prop_assert!(contains(pool, found));
                        prop_assert!(!taken.iter().any(|t| overlap(*t, found)));
                        taken.push(found);
                    }
                    // Only if really every block is in use.
                    None => for n in 0..1u32 << (prefix - 16) {
                        let first = Ipv4Addr::from_bits(0x0a00_0000 + (n << (32 - prefix)));
                        let block = Ipv4Network::new(first, prefix).unwrap();
                        prop_assert!(taken.iter().any(|t| overlap(*t, block)));
                    },
                }
            }
        }

        #[test]
        fn addresses_are_unique_and_never_reserved(
            subnet in block(24..=29),
            range in 0u8..=3,
            half in any::<bool>(),
            reserved in prop::collection::btree_set(0u32..256, 0..4),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..64),
        ) {
            // A part of the subnet, at its beginning or its end.
            let prefix = (subnet.prefix() + range).min(32);
            let start = if half { subnet.broadcast() } else { subnet.network() };
            let range = Ipv4Network::new(start, prefix).unwrap();
            let reserved: BTreeSet<_> =
                reserved.iter().map(|n| Ipv4Addr::from_bits(subnet.network().to_bits() + n)).collect();
            let (mut given, mut cursor): (Vec<Ipv4Addr>, _) = (vec![], None);
            let mut gone = gone.into_iter();
            loop {
                let taken: BTreeSet<_> = reserved.iter().chain(&given).copied().collect();
                let Some(next) = address(subnet, range, cursor, &taken) else { break };
                prop_assert!(range.contains(next));
                prop_assert!(next != subnet.network() && next != subnet.broadcast());
                prop_assert!(!reserved.contains(&next));
                prop_assert!(!given.contains(&next));
                given.push(next);
                cursor = Some(next);
                if let Some(index) = gone.next() {
                    given.swap_remove(index.index(given.len()));
                }
            }
            // It ends only when everything is in use.
            let taken = given.iter().copied().collect();
            let (total, used) = room(subnet, range, &reserved, &taken);
            prop_assert_eq!(total, used);
        }
    }
}
