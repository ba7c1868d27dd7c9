use std::collections::BTreeSet;

use super::{Key, Link, MapKey, Ns, State, Value};

/// One change of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create it, or make it have this content.
    Put(Key, Value),
    /// Remove it; it being gone already is success.
    Delete(Key),
}

/// The changes that turn `have` into `want`: first what is missing or differs, in
/// the order of [`Key`] (a thing before what points to it), then what is too
/// much, in reverse.
///
/// To change a link may mean to make it anew, and what rests on a link goes with
/// it: so that is put again too, whatever `have` says of it.
#[must_use]
pub fn diff(want: &State, have: &State) -> Vec<Op> {
    let mut touched = BTreeSet::new();
    let mut ops = Vec::new();
    for (key, value) in want {
        let same = have.get(key) == Some(value);
        if same && !rests_on(key, value).iter().any(|link| touched.contains(link)) {
            continue;
        }
        touched.extend(links_of(key, value));
        ops.push(Op::Put(key.clone(), value.clone()));
    }
    let delete = have.keys().rev().filter(|key| !want.contains_key(key)).cloned().map(Op::Delete);
    ops.extend(delete);
    ops
}

/// The links that this one piece of state is: both ends of a veth.
fn links_of<'a>(key: &'a Key, value: &'a Value) -> Vec<(&'a Ns, &'a str)> {
    let Key::Link(ns, name) = key else { return vec![] };
    let mut links = vec![(ns, name.as_str())];
    if let Value::Link(Link::Veth { peer_ns, peer, .. }) = value {
        links.push((peer_ns, peer));
    }
    links
}

/// The links without which this piece of state cannot be.
fn rests_on<'a>(key: &'a Key, value: &'a Value) -> Vec<(&'a Ns, &'a str)> {
    let host = |link: &'a str| (&Ns::Host, link);
    match (key, value) {
        (
            Key::Link(ns, _),
            Value::Link(Link::Veth { master: Some(link), .. } | Link::Vxlan { master: link, .. }),
        )
        | (
            Key::Address(ns, link, _)
            | Key::Sysctl(ns, link, _)
            | Key::Neighbour(ns, link, _)
            | Key::Fdb(ns, link, _),
            _,
        )
        | (Key::Route(ns, _), Value::Route { link, .. }) => vec![(ns, link)],
        (Key::Map(MapKey::Config), Value::Config { uplink, vxlan, lb, .. }) => {
            [uplink, vxlan].into_iter().chain(lb).map(|link| host(link)).collect()
        }
        (Key::Map(MapKey::Endpoint(..)), Value::Endpoint { link: Some(link), .. })
        | (Key::Map(MapKey::Encrypted(_)), Value::Through(Some(link)))
        | (Key::Map(MapKey::Port(link)) | Key::Hook(link, _), _) => vec![host(link)],
        _ => vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Hook, Sysctl, fixture};
    use super::*;
    use crate::model::Datapath;

    fn key(name: &str) -> Key {
        Key::Namespace(name.to_owned())
    }

    #[test]
    fn nothing_to_do_when_equal() {
        let state = State::from([(key("a"), Value::Present)]);
        assert_eq!(diff(&state, &state), []);
    }

    #[test]
    fn creates_in_order_and_deletes_in_reverse() {
        let want = State::from([(key("c"), Value::Present), (key("d"), Value::Present)]);
        let have = State::from([(key("a"), Value::Present), (key("b"), Value::Present)]);
        assert_eq!(
            diff(&want, &have),
            [
                Op::Put(key("c"), Value::Present),
                Op::Put(key("d"), Value::Present),
                Op::Delete(key("b")),
                Op::Delete(key("a")),
            ]
        );
    }

    /// Keys that are put when the value of the link `changed` differs from `want`.
    fn put_after_change(want: &State, changed: &Key) -> Vec<Key> {
        let mut have = want.clone();
        have.insert(changed.clone(), Value::Link(Link::Broken("down".into())));
        diff(want, &have)
            .into_iter()
            .map(|op| match op {
                Op::Put(key, _) => key,
                Op::Delete(key) => panic!("deletes {key:?}"),
            })
            .collect()
    }

    #[test]
    fn what_rests_on_a_changed_veth_is_put_again_on_both_sides() {
        let world = fixture::two_nodes();
        let want = super::super::desired(&world.snapshot, &world.workloads, &world.me);
        let endpoint = &world.workloads[0].attachments[0].endpoint;
        let link = super::super::names::endpoint_link(&endpoint.id);
        let inside = Ns::At(world.workloads[0].netns.clone());
        let put = put_after_change(&want, &Key::Link(Ns::Host, link.clone()));
        for key in [
            Key::Hook(link.clone(), Hook::FromEndpoint),
            Key::Map(MapKey::Port(link.clone())),
            Key::Sysctl(Ns::Host, link.clone(), Sysctl::Forwarding),
            Key::Neighbour(Ns::Host, link, endpoint.address),
            Key::Route(Ns::Host, endpoint.address.into()),
            Key::Route(inside, "0.0.0.0/0".parse().unwrap()),
        ] {
            assert!(put.contains(&key), "{key:?} in {put:?}");
        }
        assert!(put.iter().any(|k| matches!(k, Key::Address(Ns::At(_), ..))));
        assert!(put.iter().any(|k| matches!(k, Key::Map(MapKey::Endpoint(..)))));
        assert!(!put.contains(&Key::Map(MapKey::Config)));
    }

    #[test]
    fn ports_of_a_changed_bridge_are_put_again() {
        let mut world = fixture::two_nodes();
        world.me.datapath = Datapath::Kernel;
        let want = super::super::desired(&world.snapshot, &world.workloads, &world.me);
        let bridge = want
            .iter()
            .find_map(|(k, v)| matches!(v, Value::Link(Link::Bridge { .. })).then_some(k))
            .unwrap();
        let put = put_after_change(&want, bridge);
        // The bridge, its vxlan and its endpoint; not the way out.
        assert_eq!(put.iter().filter(|k| matches!(k, Key::Link(..))).count(), 3, "{put:?}");
        assert!(put.iter().any(|k| matches!(k, Key::Fdb(..))));
    }
}
