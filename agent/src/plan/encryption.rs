//! What keeps encrypted networks encrypted: a vxlan device with a UDP port of its own, and
//! IPsec (ESP in transport mode) between this node and each other for that port. Keys come
//! from the cluster's key, the two nodes and the direction, so each node makes the same ones
//! for itself, and none is ever sent.
//!
//! Whatever else is missing, nothing goes in clear: without an association a policy blocks,
//! without policies the hooks at the uplink drop, and a node that cannot encrypt has no device
//! that would carry these networks at all.

use std::fmt;
use std::net::Ipv4Addr;

use ring::hkdf;

use crate::model::{ClusterInfo, ClusterKey, Node, Snapshot};

use super::Me;
use super::state::{Hook, IPSEC_LINK, Key, Link, MapKey, Ns, State, Value};

/// Salt of the derivation; another version of it would be another salt.
const SALT: &[u8] = b"netagent ESP v1";
/// Bytes of a key of AES-256 and of the salt of its nonces (RFC 4106, 8.1).
const KEY: usize = 36;
/// Bytes of a security parameters index that are derived; the last is of the epoch.
const INDEX: usize = 3;

/// Which way a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// To this node.
    In,
    /// From this node.
    Out,
}

/// A security association: how one node encrypts for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Association {
    /// The sending node.
    pub from: Ipv4Addr,
    /// Whether the kernel puts its packets into UDP, for NAT. It takes none out: what comes
    /// in is ESP, wherever it was on the way.
    pub in_udp: bool,
    /// UDP port that it is for, host order.
    pub port: u16,
    /// The key.
    pub key: AeadKey,
    /// Packets after which the kernel asks for another.
    pub packets: u64,
    /// Of this node, see [`Ipsec`](crate::model::Ipsec). An observed one is of that which
    /// is.
    pub generation: u64,
}

/// Key and salt of `rfc4106(gcm(aes))`. Never shown. An empty one is one that a locked down
/// kernel does not tell (LOCKDOWN_XFRM_SECRET, Linux 5.11), and may be any.
#[derive(Clone)]
pub struct AeadKey(pub Vec<u8>);

impl PartialEq for AeadKey {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0 || self.0.is_empty() || other.0.is_empty()
    }
}

impl Eq for AeadKey {}

impl fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What becomes of UDP packets for the port of encrypted networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// This node; 0.0.0.0 for whatever address it has.
    pub vtep: Ipv4Addr,
    /// UDP port, host order.
    pub port: u16,
    /// What they need.
    pub need: Need,
}

/// What a packet needs to go its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Nothing helps.
    Blocked,
    /// To have come by an association of ours.
    Any,
    /// To be sent by this association.
    Index(u32),
}

/// Adds all of it, if there is an encrypted network.
pub(super) fn encrypt(state: &mut State, snapshot: &Snapshot, me: &Me, cluster: &ClusterInfo) {
    let mut networks = snapshot.networks.values().filter(|n| n.encrypted).peekable();
    if networks.peek().is_none() {
        return;
    }
    let (port, able) = (cluster.encrypted_port(), me.ipsec.missing.is_none());
    if let Some(Value::Config { encrypted, .. }) = state.get_mut(&Key::Map(MapKey::Config)) {
        *encrypted = Some(port);
    }
    let link = able.then(|| IPSEC_LINK.to_owned());
    for network in networks {
        state.insert(Key::Map(MapKey::Encrypted(network.vni)), Value::Through(link.clone()));
    }
    let program = || Value::Program(me.object.clone());
    state.insert(Key::Hook(me.uplink.clone(), Hook::ToUplink), program());
    if !able {
        return;
    }
    let underlay = snapshot.nodes.get(&me.id).map_or(1500, |n| n.mtu);
    let mtu = snapshot.encrypted_mtu(underlay);
    state.insert(
        Key::Link(Ns::Host, IPSEC_LINK.to_owned()),
        Value::Link(Link::VxlanExternal { port, mtu }),
    );
    state.insert(Key::Hook(IPSEC_LINK.to_owned(), Hook::FromOverlay), program());
    let policy = |vtep, need| Value::Policy(Policy { vtep, port, need });
    // The device listens on all addresses.
    for (way, vtep) in [(Way::In, Ipv4Addr::UNSPECIFIED), (Way::Out, me.vtep)] {
        state.insert(Key::Policy(way, None), policy(vtep, Need::Blocked));
    }
    // What the others do not know yet they cannot have keys for; nor may what they know be
    // used again after it was lost.
    let known = snapshot.nodes.get(&me.id);
    let Some(here) = known.filter(|n| n.ipsec.generation == me.ipsec.generation) else { return };
    let Some(keyring) = &snapshot.keyring else { return };
    let others = snapshot.nodes.values().filter(|n| n.id != me.id && n.ipsec.missing.is_none());
    for other in others {
        for key in &keyring.keys {
            associate(state, key, port, me, Way::In, [here, other]);
        }
        state.insert(Key::Policy(Way::In, Some(other.address)), policy(me.vtep, Need::Any));
        if let Some(key) = keyring.up_to(other.epoch) {
            let index = associate(state, key, port, me, Way::Out, [here, other]);
            let out = Key::Policy(Way::Out, Some(other.address));
            state.insert(out, policy(me.vtep, Need::Index(index)));
        }
    }
}

/// Whether ESP between two nodes goes in UDP: through NAT nothing else does. Both know of the
/// other what the manager does, and so both say the same.
pub(super) fn is_in_udp(one: &Node, other: &Node) -> bool {
    one.is_behind_nat() || other.is_behind_nat()
}

fn associate(
    state: &mut State,
    key: &ClusterKey,
    port: u16,
    me: &Me,
    way: Way,
    [here, other]: [&Node; 2],
) -> u32 {
    let ((index, aead), from, to) = match way {
        Way::In => (derive(key, other, here), other.address, me.vtep),
        Way::Out => (derive(key, here, other), me.vtep, other.address),
    };
    let association = Association {
        from,
        in_udp: way == Way::Out && is_in_udp(here, other),
        port,
        key: aead,
        packets: key.packets,
        generation: me.ipsec.generation,
    };
    state.insert(Key::Association(to, index), Value::Association(association));
    index
}

/// Index and key of the association by which `from` sends to `to`: HKDF with SHA-256
/// (RFC 5869) of the cluster's key.
fn derive(key: &ClusterKey, from: &Node, to: &Node) -> (u32, AeadKey) {
    let [sender, receiver] = [from, to].map(|node| node.ipsec.generation.to_be_bytes());
    // Identifiers of nodes all have one length.
    let info = [
        &key.epoch.to_be_bytes()[..],
        from.id.as_str().as_bytes(),
        &sender,
        to.id.as_str().as_bytes(),
        &receiver,
    ];
    let mut bytes = [0; KEY + INDEX];
    hkdf::Salt::new(hkdf::HKDF_SHA256, SALT)
        .extract(key.secret.bytes())
        .expand(&info, Length)
        .and_then(|derived| derived.fill(&mut bytes))
        .expect("HKDF gives up to 255 times 32 bytes");
    let (aead, index) = bytes.split_at(KEY);
    let index = u32::from_be_bytes([index[0], index[1], index[2], low(key.epoch)]);
    // Up to 255 they are reserved (RFC 4303, 2.1).
    (index.max(256 | u32::from(low(key.epoch))), AeadKey(aead.to_vec()))
}

/// What an index tells of the epoch of its key.
#[must_use]
pub fn epoch_of(index: u32) -> u8 {
    index.to_be_bytes()[3]
}

/// What is told of an epoch.
#[must_use]
pub fn low(epoch: u64) -> u8 {
    epoch.to_be_bytes()[7]
}

/// How much is derived.
struct Length;

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        KEY + INDEX
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{self, World};
    use super::*;
    use crate::model::{Ipsec, Keyring, Secret};

    fn key(epoch: u64) -> ClusterKey {
        ClusterKey { epoch, secret: Secret::new(), packets: 7, made: 0 }
    }

    fn world(epochs: &[u64], received: u64) -> World {
        let mut world = fixture::two_nodes();
        world.snapshot.networks.values_mut().for_each(|n| n.encrypted = true);
        world.snapshot.nodes_mut().for_each(|n| n.epoch = received);
        world.snapshot.keyring = Some(Keyring { keys: epochs.iter().copied().map(key).collect() });
        world
    }

    fn desired(world: &World) -> State {
        super::super::desired(&world.snapshot, &world.workloads, &world.me)
    }

    /// As the other node sees it.
    fn elsewhere(world: &World) -> State {
        let there = world.snapshot.nodes.values().find(|n| n.id != world.me.id).unwrap();
        let me = Me { id: there.id.clone(), vtep: there.address, ..world.me.clone() };
        super::super::desired(&world.snapshot, &[], &me)
    }

    fn associations(state: &State, to: Ipv4Addr) -> Vec<(u32, Association)> {
        let all = state.iter().filter_map(|(key, value)| match (key, value) {
            (Key::Association(at, index), Value::Association(a)) if *at == to => {
                Some((*index, a.clone()))
            }
            _ => None,
        });
        all.collect()
    }

    #[test]
    fn both_ends_make_the_same_keys() {
        let world = world(&[3], 3);
        let (here, there) = (desired(&world), elsewhere(&world));
        let ends: Vec<_> = world.snapshot.nodes.values().map(|n| n.address).collect();
        for end in &ends {
            let [one] = &associations(&here, *end)[..] else { panic!("one each way") };
            assert_eq!(associations(&there, *end), std::slice::from_ref(one));
            assert_eq!((epoch_of(one.0), one.1.packets), (3, 7));
        }
        let [to, from] = [0, 1].map(|n| associations(&here, ends[n]).remove(0));
        assert_ne!((to.0, to.1.key), (from.0, from.1.key), "each direction has its own");
    }

    /// This end of an association has the address that its host has, the other the one that it
    /// is known by; what is sent goes in UDP, and what comes in has been taken out of it.
    #[test]
    fn through_nat_esp_goes_in_udp() {
        let own = Ipv4Addr::new(10, 99, 0, 2);
        let mut world = world(&[3], 3);
        let known = world.me.vtep;
        let there =
            world.snapshot.nodes.values().find(|n| n.id != world.me.id).map(|n| n.address).unwrap();
        let (direct, outside) = (desired(&world), elsewhere(&world));
        let peer = |state: &State, vtep| state[&Key::Map(MapKey::Peer(vtep))].clone();
        assert_eq!(peer(&direct, there), Value::Peer { in_udp: false });
        world.me.vtep = own;
        world.snapshot.node_mut(&world.me.id).local_address = Some(own);
        for (state, before, [here, other]) in
            [(desired(&world), direct, [own, there]), (elsewhere(&world), outside, [there, known])]
        {
            let of = |state: &State, to| associations(state, to).remove(0);
            let (out, inward) = (of(&state, other), of(&state, here));
            assert_eq!((out.1.from, out.1.in_udp), (here, true));
            assert_eq!((inward.1.from, inward.1.in_udp), (other, false));
            let was = of(&before, other);
            assert_eq!((out.0, &out.1.key), (was.0, &was.1.key), "no address is in a key");
            for way in [Way::In, Way::Out] {
                let Value::Policy(policy) = &state[&Key::Policy(way, Some(other))] else {
                    panic!("{way:?}")
                };
                assert_eq!(policy.vtep, here);
            }
            assert_eq!(peer(&state, other), Value::Peer { in_udp: true });
            let Value::Link(Link::VxlanExternal { mtu, .. }) =
                &state[&Key::Link(Ns::Host, IPSEC_LINK.to_owned())]
            else {
                panic!("there is a device")
            };
            assert_eq!(*mtu, 1408, "eight bytes are for UDP");
        }
        let Value::Config { vtep, advertised, .. } = &desired(&world)[&Key::Map(MapKey::Config)]
        else {
            panic!("CONFIG")
        };
        assert_eq!((*vtep, *advertised), (own, known));
    }

    #[test]
    fn everything_that_a_key_depends_on_changes_it() {
        let (mut a, mut b) = (fixture::node(1), fixture::node(2));
        let (one, other) = (key(1), key(1));
        let first = derive(&one, &a, &b);
        assert_eq!(derive(&one, &a, &b), first);
        assert_ne!(derive(&other, &a, &b), first, "the secret");
        assert_ne!(derive(&ClusterKey { epoch: 2, ..one.clone() }, &a, &b), first, "the epoch");
        assert_ne!(derive(&one, &b, &a), first, "the direction");
        a.ipsec.generation += 1;
        let second = derive(&one, &a, &b);
        assert_ne!(second, first, "the sender's generation");
        b.ipsec.generation += 1;
        assert_ne!(derive(&one, &a, &b), second, "the receiver's generation");
    }

    #[test]
    fn a_new_key_is_received_by_before_anybody_sends_by_it() {
        let world = world(&[3, 4], 3);
        let state = desired(&world);
        let there = world.snapshot.nodes.values().find(|n| n.id != world.me.id).unwrap();
        let epochs = |to| -> Vec<u8> {
            let mut all: Vec<_> = associations(&state, to).iter().map(|a| epoch_of(a.0)).collect();
            all.sort_unstable();
            all
        };
        assert_eq!(epochs(world.me.vtep), [3, 4]);
        assert_eq!(epochs(there.address), [3]);
        let Value::Policy(Policy { need: Need::Index(index), .. }) =
            &state[&Key::Policy(Way::Out, Some(there.address))]
        else {
            panic!("a policy names what it sends by")
        };
        assert_eq!(epoch_of(*index), 3);
    }

    #[test]
    fn who_receives_by_no_key_is_not_sent_to() {
        let world = world(&[3], 0);
        let state = desired(&world);
        assert!(!state.keys().any(|k| matches!(k, Key::Policy(Way::Out, Some(_)))));
        let Value::Policy(rest) = &state[&Key::Policy(Way::Out, None)] else { panic!() };
        assert_eq!(rest.need, Need::Blocked);
    }

    #[test]
    fn keys_of_a_generation_that_was_lost_are_not_used_again() {
        let mut world = world(&[3], 3);
        world.me.ipsec.generation += 1;
        let state = desired(&world);
        assert!(!state.keys().any(|k| matches!(k, Key::Association(..))));
        assert!(state.contains_key(&Key::Policy(Way::In, None)), "and all is blocked");
    }

    #[test]
    fn a_node_that_cannot_encrypt_carries_nothing() {
        let mut world = world(&[3], 3);
        world.me.ipsec = Ipsec::default();
        let state = desired(&world);
        let vni = world.snapshot.networks.values().next().unwrap().vni;
        assert_eq!(state[&Key::Map(MapKey::Encrypted(vni))], Value::Through(None));
        assert!(!state.contains_key(&Key::Link(Ns::Host, IPSEC_LINK.to_owned())));
    }

    #[test]
    fn without_an_encrypted_network_there_is_nothing_of_it() {
        let mut world = world(&[3], 3);
        world.snapshot.networks.values_mut().for_each(|n| n.encrypted = false);
        let state = desired(&world);
        assert!(!state.keys().any(|k| matches!(
            k,
            Key::Policy(..) | Key::Association(..) | Key::Hook(_, Hook::ToUplink)
        )));
    }
}
