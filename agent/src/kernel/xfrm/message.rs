//! Associations and policies as the kernel's messages, and back. What is read back is held
//! against what would be written for it, so that no difference goes unseen.

use std::net::{IpAddr, Ipv4Addr};

use netagent_common::{ESP_IN_UDP_PORT, IPSEC_REQID};
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, IPPROTO_UDP, UDP_ENCAP_ESPINUDP, XFRM_MODE_TRANSPORT, XFRM_POLICY_ALLOW,
    XFRM_POLICY_BLOCK, XFRM_POLICY_IN, XFRM_POLICY_OUT, XFRM_STATE_ESN,
};
use netlink_packet_xfrm::{
    Address, AlgAead, EncapTmpl, Id, LifetimeConfig, ReplayEsn, Selector, UserPolicyId,
    UserPolicyInfo, UserSaId, UserSaInfo, UserTemplate, XfrmAttrs, policy, state,
};
use nix::libc;

use crate::plan::{AeadKey, Association, Key, Need, Policy, Value, Way};

/// AES-GCM in ESP (RFC 4106).
const ALGORITHM: &str = "rfc4106(gcm(aes))";
/// Bits of its authentication tag.
const TAG: u32 = 128;
/// Packets by which one may come later than others; of several CPUs they do not come in
/// order.
const WINDOW: u32 = 1024;
/// Priority of policies of ours for one other node, before that for all others; lower
/// numbers come first, and those of other programs are far above.
const PRIORITY: u32 = IPSEC_REQID;

const IPV4: u16 = libc::AF_INET as u16;

/// The association by which `to` receives, as a request to make it.
pub(super) fn association(
    to: Ipv4Addr,
    index: u32,
    association: &Association,
) -> state::ModifyMessage {
    let Association { from, in_udp, port, packets, .. } = *association;
    let user_sa_info = UserSaInfo {
        // Only what the sender may send with it: the addresses are not authenticated.
        selector: selector(port, Some(from), Some(to)),
        id: Id { daddr: address(to), spi: index, proto: IPPROTO_ESP },
        saddr: address(from),
        // No hard limit: without a manager nobody would make another key, and the counter of
        // 64 bits does not begin anew.
        lifetime_cfg: LifetimeConfig { soft_packet_limit: packets, ..LifetimeConfig::default() },
        reqid: IPSEC_REQID,
        family: IPV4,
        mode: XFRM_MODE_TRANSPORT,
        flags: XFRM_STATE_ESN,
        ..UserSaInfo::default()
    };
    let words = WINDOW.div_ceil(u32::BITS);
    let replay = ReplayEsn {
        bmp_len: words,
        replay_window: WINDOW,
        bmp: vec![0; words as usize],
        ..ReplayEsn::default()
    };
    let mut alg_name = [0; 64];
    alg_name[..ALGORITHM.len()].copy_from_slice(ALGORITHM.as_bytes());
    let AeadKey(alg_key) = association.key.clone();
    let aead = AlgAead { alg_name, alg_key_len: bits(&alg_key), alg_icv_len: TAG, alg_key };
    let nlas = [XfrmAttrs::EncryptionAlgAead(aead), XfrmAttrs::ReplayStateEsn(replay)];
    let around = in_udp.then(|| XfrmAttrs::EncapsulationTemplate(udp()));
    state::ModifyMessage { user_sa_info, nlas: nlas.into_iter().chain(around).collect() }
}

/// What UDP is put around ESP (RFC 3948). To send it the kernel needs no socket.
fn udp() -> EncapTmpl {
    EncapTmpl {
        encap_type: UDP_ENCAP_ESPINUDP,
        encap_sport: ESP_IN_UDP_PORT,
        encap_dport: ESP_IN_UDP_PORT,
        ..EncapTmpl::default()
    }
}

/// What is put around ESP, if anything is.
fn around(message: &state::ModifyMessage) -> Option<(u16, u16, u16)> {
    message.nlas.iter().find_map(|nla| match nla {
        XfrmAttrs::EncapsulationTemplate(EncapTmpl {
            encap_type,
            encap_sport,
            encap_dport,
            ..
        }) => Some((*encap_type, *encap_sport, *encap_dport)),
        _ => None,
    })
}

fn bits(key: &[u8]) -> u32 {
    u32::try_from(key.len() * 8).unwrap_or(u32::MAX)
}

/// Whether an association that the kernel has carries our mark.
pub(super) fn is_ours(found: &state::ModifyMessage) -> bool {
    let info = &found.user_sa_info;
    info.reqid == IPSEC_REQID && info.id.proto == IPPROTO_ESP && info.family == IPV4
}

/// An association that the kernel has, if it carries our mark; and whether it has been used
/// for as many packets as it may.
pub(super) fn read_association(
    found: &state::ModifyMessage,
    generation: u64,
) -> Option<(Key, Value, bool)> {
    if !is_ours(found) {
        return None;
    }
    let info = &found.user_sa_info;
    let (from, to) = (ip(&info.saddr), ip(&info.id.daddr));
    let index = info.id.spi;
    let aead = found.nlas.iter().find_map(|nla| match nla {
        XfrmAttrs::EncryptionAlgAead(aead) => Some(aead),
        _ => None,
    });
    let read = Association {
        from,
        in_udp: around(found).is_some(),
        port: info.selector.dport,
        key: AeadKey(aead.map(told).unwrap_or_default()),
        packets: info.lifetime_cfg.soft_packet_limit,
        generation,
    };
    let same = is_made_of(found, &association(to, index, &read));
    let worn = info.lifetime_cur.packets >= read.packets;
    let value = if same { Value::Association(read) } else { Value::Present };
    Some((Key::Association(to, index), value, worn))
}

/// A key as far as it is told: a kernel in lockdown shows zeros.
fn told(aead: &AlgAead) -> Vec<u8> {
    if aead.alg_key.iter().all(|byte| *byte == 0) { vec![] } else { aead.alg_key.clone() }
}

/// Whether an association is as it would be made, whatever it has done since.
fn is_made_of(found: &state::ModifyMessage, made: &state::ModifyMessage) -> bool {
    let (is, was) = (&found.user_sa_info, &made.user_sa_info);
    let window = |message: &state::ModifyMessage| {
        message.nlas.iter().find_map(|nla| match nla {
            XfrmAttrs::ReplayStateEsn(esn) => Some(esn.replay_window),
            _ => None,
        })
    };
    let aead = |message: &state::ModifyMessage| {
        message.nlas.iter().find_map(|nla| match nla {
            XfrmAttrs::EncryptionAlgAead(aead) => Some((aead.alg_name, aead.alg_icv_len)),
            _ => None,
        })
    };
    is.selector == was.selector
        && is.lifetime_cfg == was.lifetime_cfg
        && is.mode == was.mode
        && is.flags == was.flags
        && window(found) == window(made)
        && aead(found) == aead(made)
        && around(found) == around(made)
}

/// What names an association.
pub(super) fn association_id(to: Ipv4Addr, index: u32) -> state::DelGetMessage {
    let user_sa_id = UserSaId { daddr: address(to), spi: index, family: IPV4, proto: IPPROTO_ESP };
    state::DelGetMessage { user_sa_id, nlas: vec![] }
}

/// A policy, as a request to make it.
pub(super) fn policy(way: Way, other: Option<Ipv4Addr>, policy: &Policy) -> policy::ModifyMessage {
    let blocked = policy.need == Need::Blocked;
    let user_policy_info = UserPolicyInfo {
        selector: policy_selector(way, other, policy),
        priority: PRIORITY + u32::from(other.is_none()),
        direction: direction(way),
        action: if blocked { XFRM_POLICY_BLOCK } else { XFRM_POLICY_ALLOW },
        ..UserPolicyInfo::default()
    };
    let template = other.filter(|_| !blocked).map(|other| {
        let (from, to) = ends(way, other, policy.vtep);
        let spi = if let Need::Index(index) = policy.need { index } else { 0 };
        UserTemplate {
            id: Id { daddr: address(to), spi, proto: IPPROTO_ESP },
            family: IPV4,
            saddr: address(from),
            reqid: IPSEC_REQID,
            mode: XFRM_MODE_TRANSPORT,
            aalgos: u32::MAX,
            ealgos: u32::MAX,
            calgos: u32::MAX,
            ..UserTemplate::default()
        }
    });
    let nlas = template.map(|template| XfrmAttrs::Template(vec![template])).into_iter().collect();
    policy::ModifyMessage { user_policy_info, nlas }
}

/// A policy that the kernel has, if it is ours.
pub(super) fn read_policy(found: &policy::ModifyMessage) -> Option<(Key, Value)> {
    let info = &found.user_policy_info;
    let selector = &info.selector;
    let all = info.priority == PRIORITY + 1;
    if !(all || info.priority == PRIORITY) || selector.family != IPV4 {
        return None;
    }
    let way = [Way::In, Way::Out].into_iter().find(|way| direction(*way) == info.direction)?;
    let (from, to) = (ip(&selector.saddr), ip(&selector.daddr));
    let (other, vtep) = if way == Way::In { (from, to) } else { (to, from) };
    let other = (!all).then_some(other);
    let templates = found.nlas.iter().find_map(|nla| match nla {
        XfrmAttrs::Template(templates) => Some(templates.as_slice()),
        _ => None,
    });
    let need = match templates.unwrap_or_default() {
        [] => Need::Blocked,
        [template] if template.id.spi == 0 => Need::Any,
        [template, ..] => Need::Index(template.id.spi),
    };
    let read = Policy { vtep, port: selector.dport, need };
    let made = policy(way, other, &read);
    let was = &made.user_policy_info;
    let template = |message: &policy::ModifyMessage| {
        message.nlas.iter().find_map(|nla| match nla {
            XfrmAttrs::Template(templates) => Some(templates.clone()),
            _ => None,
        })
    };
    let same = info.selector == was.selector
        && info.lifetime_cfg == was.lifetime_cfg
        && info.action == was.action
        && info.flags == was.flags
        && template(found) == template(&made);
    let value = if same { Value::Policy(read) } else { Value::Present };
    Some((Key::Policy(way, other), value))
}

/// What names a policy that the kernel has.
pub(super) fn policy_id(found: &policy::ModifyMessage) -> policy::DelGetMessage {
    let UserPolicyInfo { selector, index, direction, .. } = found.user_policy_info;
    policy::DelGetMessage {
        user_policy_id: UserPolicyId { selector, index, direction },
        nlas: vec![],
    }
}

/// Who sends, who receives.
fn ends(way: Way, other: Ipv4Addr, vtep: Ipv4Addr) -> (Ipv4Addr, Ipv4Addr) {
    if way == Way::In { (other, vtep) } else { (vtep, other) }
}

fn policy_selector(way: Way, other: Option<Ipv4Addr>, policy: &Policy) -> Selector {
    match other {
        Some(other) => {
            let (from, to) = ends(way, other, policy.vtep);
            selector(policy.port, Some(from), Some(to))
        }
        // Whatever address of this host it is for: the device listens on all.
        None if way == Way::In => selector(policy.port, None, None),
        None => selector(policy.port, Some(policy.vtep), None),
    }
}

/// UDP packets for a port.
fn selector(port: u16, from: Option<Ipv4Addr>, to: Option<Ipv4Addr>) -> Selector {
    let prefix = |of: Option<Ipv4Addr>| if of.is_some() { 32 } else { 0 };
    Selector {
        saddr: address(from.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        daddr: address(to.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        prefixlen_s: prefix(from),
        prefixlen_d: prefix(to),
        // The crate turns it into what stands in a packet, as it does the index.
        dport: port,
        dport_mask: u16::MAX,
        family: IPV4,
        proto: IPPROTO_UDP,
        ..Selector::default()
    }
}

fn direction(way: Way) -> u8 {
    match way {
        Way::In => XFRM_POLICY_IN,
        Way::Out => XFRM_POLICY_OUT,
    }
}

fn address(ip: Ipv4Addr) -> Address {
    Address::from_ip(&IpAddr::V4(ip))
}

fn ip(address: &Address) -> Ipv4Addr {
    let [a, b, c, d, ..] = address.addr;
    Ipv4Addr::new(a, b, c, d)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;

    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn wanted() -> Association {
        let key = AeadKey((0..36).collect());
        Association { from: THERE, in_udp: false, port: 4790, key, packets: 100, generation: 9 }
    }

    fn wanted_in_udp() -> Association {
        Association { in_udp: true, ..wanted() }
    }

    #[test]
    fn an_association_is_read_as_it_was_written() {
        let mut message = association(HERE, 0x0102_0304, &wanted());
        let key = Key::Association(HERE, 0x0102_0304);
        let value = Value::Association(wanted());
        assert_eq!(read_association(&message, 9), Some((key.clone(), value.clone(), false)));
        message.user_sa_info.lifetime_cur.packets = 100;
        assert_eq!(read_association(&message, 9), Some((key.clone(), value, true)));
        let (message, value) =
            (association(HERE, 0x0102_0304, &wanted_in_udp()), Value::Association(wanted_in_udp()));
        assert_eq!(read_association(&message, 9), Some((key, value, false)));
    }

    /// The crate does not agree with its own comments on who does.
    #[test]
    fn port_and_index_are_big_endian() {
        let message = association(HERE, 0x0102_0304, &wanted());
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        assert_eq!(bytes[32..34], 4790_u16.to_be_bytes(), "of the selector");
        assert_eq!(bytes[72..76], [1, 2, 3, 4], "of the association");
    }

    #[test]
    fn what_differs_in_an_association_is_seen() {
        let changes: [fn(&mut state::ModifyMessage); 5] = [
            |m| m.user_sa_info.selector.prefixlen_s = 0,
            |m| m.user_sa_info.flags = 0,
            |m| m.user_sa_info.mode = 1,
            |m| m.user_sa_info.lifetime_cfg.hard_packet_limit = 1,
            |m| m.nlas.truncate(1),
        ];
        for change in changes {
            let mut message = association(HERE, 1000, &wanted());
            change(&mut message);
            assert_eq!(read_association(&message, 9).unwrap().1, Value::Present);
        }
        for change in [(1, 4500, 4500), (2, 4501, 4500), (2, 4500, 4501)] {
            let mut message = association(HERE, 1000, &wanted_in_udp());
            let Some(XfrmAttrs::EncapsulationTemplate(around)) = message.nlas.last_mut() else {
                panic!("the last is what is around it")
            };
            (around.encap_type, around.encap_sport, around.encap_dport) = change;
            assert_eq!(read_association(&message, 9).unwrap().1, Value::Present);
        }
        let mut others = association(HERE, 1000, &wanted());
        others.user_sa_info.reqid = 0;
        assert_eq!(read_association(&others, 9), None);
    }

    #[test]
    fn policies_are_read_as_they_were_written() {
        for (way, other, need) in [
            (Way::In, None, Need::Blocked),
            (Way::Out, None, Need::Blocked),
            (Way::In, Some(THERE), Need::Any),
            (Way::Out, Some(THERE), Need::Index(1000)),
        ] {
            // That of this host is none of all senders' business.
            let vtep = if (way, other) == (Way::In, None) { Ipv4Addr::UNSPECIFIED } else { HERE };
            let want = Policy { vtep, port: 4790, need };
            let message = policy(way, other, &want);
            let (key, value) = read_policy(&message).unwrap();
            assert_eq!((key, value), (Key::Policy(way, other), Value::Policy(want.clone())));
            let mut altered = message.clone();
            altered.user_policy_info.action ^= 1;
            assert_eq!(read_policy(&altered).unwrap().1, Value::Present);
            let mut others = message;
            others.user_policy_info.priority = 1;
            assert_eq!(read_policy(&others), None);
        }
    }
}
