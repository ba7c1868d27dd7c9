//! A new flow to a service without a backend that may take it: the client is told at once,
//! as by a host where nobody listens, so that it need not wait for a timeout. TCP gets a
//! reset, all else ICMP "port unreachable"; both from the virtual address.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, Port};

use crate::apart;
use crate::checksum::fold;
use crate::headers::{ETHERNET, Ethernet, IPV4, Ipv4, TCP, Tcp};
use crate::packet::Packet;
use crate::unreachable::Unreachable;
use crate::verdict::{Outcome, Verdict};

/// Answers the packet of the endpoint behind `port`, which has header `ip` and is no
/// fragment after the first. `mac` is the virtual address's.
#[inline(always)]
pub(crate) fn answer(packet: &mut Packet, port: &Port, ip: &Ipv4, mac: [u8; 6]) -> Outcome {
    if ip.protocol == TCP {
        apart::decode(netagent_reset(packet.context(), port, ip))?;
    } else {
        let answer = Unreachable { from: ip.dst, to: ip.src, mtu: 0, code: Unreachable::PORT };
        answer.send(packet)?;
    }
    packet.store(0, &Ethernet::ipv4(port.mac, mac))?;
    Ok(Verdict::Deliver { ifindex: packet.ifindex(), counter: Counter::NoBackendAnswered })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_reset(skb: *mut __sk_buff, port: *const Port, ip: *const Ipv4) -> u32 {
    let run = || reset(&mut Packet::of(skb), apart::get(port)?, apart::get(ip)?);
    apart::encode(run())
}

/// As RFC 9293, 3.10.7.1: a segment to a connection that does not exist.
#[inline(always)]
fn reset(packet: &mut Packet, port: &Port, ip: &Ipv4) -> Result<(), Counter> {
    let to = packet.load::<Tcp>(ETHERNET + ip.header_len())?;
    if to.flags & Tcp::RST != 0 {
        return Err(Counter::DropNoBackend);
    }
    let mut answer = Tcp { src: to.dst, dst: to.src, flags: Tcp::RST, ..Tcp::EMPTY };
    if to.flags & Tcp::ACK != 0 {
        answer.seq = to.ack;
    } else {
        let len = u32::from(u16::from_be_bytes(ip.tot_len));
        let headers = ip.header_len() + u32::from(to.offset >> 4) * 4;
        let [syn, fin] = [Tcp::SYN, Tcp::FIN].map(|flag| u32::from(to.flags & flag != 0));
        let next = u32::from_be_bytes(to.seq)
            .wrapping_add(len.saturating_sub(headers))
            .wrapping_add(syn + fin);
        answer.ack = next.to_be_bytes();
        answer.flags |= Tcp::ACK;
    }
    answer.checksum = checksum(&answer, ip.dst, port.ip);
    packet.cut(ETHERNET + IPV4 + Tcp::LEN)?;
    packet.store(ETHERNET, &Ipv4::new(IPV4 + Tcp::LEN, 0, TCP, ip.dst, port.ip))?;
    packet.store(ETHERNET + IPV4, &answer)
}

/// Of a segment without options and data; its checksum is 0 yet.
#[inline(always)]
fn checksum(tcp: &Tcp, src: [u8; 4], dst: [u8; 4]) -> [u8; 2] {
    let word = |[high, low]: [u8; 2]| u32::from(u16::from_be_bytes([high, low]));
    let long = |[a, b, c, d]: [u8; 4]| word([a, b]) + word([c, d]);
    let sum = long(src)
        + long(dst)
        + u32::from(TCP)
        + Tcp::LEN
        + word(tcp.src)
        + word(tcp.dst)
        + long(tcp.seq)
        + long(tcp.ack)
        + word([tcp.offset, tcp.flags]);
    (!fold(sum)).to_be_bytes()
}
