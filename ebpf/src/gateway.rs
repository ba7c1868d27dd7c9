//! The gateway's address answers echo requests, so that people can see that their
//! workload reaches its node. It is nobody else: no other packet to it goes anywhere.
//! Virtual addresses of services answer as the gateway does: whether there is such a
//! service, not whether it has backends.

use aya_ebpf::bindings::__sk_buff;
use netagent_common::{Counter, Port};

use crate::apart;
use crate::checksum::fold;
use crate::headers::{ETHERNET, Ethernet, ICMP, Icmp, Ipv4};
use crate::packet::Packet;
use crate::verdict::{Outcome, Verdict};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// Sends the request back as its reply, from `mac`. Later fragments of one carry no ICMP
/// header and go back as they are; the asker puts them together.
#[inline(always)]
pub(crate) fn echo(packet: &mut Packet, port: &Port, mac: [u8; 6]) -> Outcome {
    let [a, b, c, d, e, f] = mac;
    let mac = u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]);
    apart::decode(netagent_echo(packet.context(), port, mac))?;
    Ok(Verdict::Deliver { ifindex: packet.ifindex(), counter: Counter::EchoAnswered })
}

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn netagent_echo(skb: *mut __sk_buff, port: *const Port, mac: u64) -> u32 {
    let [a, b, c, d, e, f, _, _] = mac.to_ne_bytes();
    let run = || answer(&mut Packet::of(skb), apart::get(port)?, [a, b, c, d, e, f]);
    apart::encode(run())
}

#[inline(always)]
fn answer(packet: &mut Packet, port: &Port, mac: [u8; 6]) -> Result<(), Counter> {
    let ip = packet.at::<Ipv4>(ETHERNET)?;
    if ip.protocol != ICMP {
        return Err(Counter::DropUnknownDestination);
    }
    if !ip.is_later_fragment() {
        let at = ETHERNET + ip.header_len();
        let icmp = packet.load::<Icmp>(at)?;
        if icmp.kind != ECHO_REQUEST || icmp.code != 0 {
            return Err(Counter::DropUnknownDestination);
        }
        packet.store(at, &reply(&icmp))?;
    }
    let ethernet = Ethernet::ipv4(port.mac, mac);
    packet.store(0, &ethernet)?;
    // Swapping the addresses leaves the header's checksum right.
    packet.store(ETHERNET, &Ipv4 { src: ip.dst, dst: ip.src, ..ip })
}

/// The type falls by 8 in the high byte of its word, so the checksum, the complement
/// of the sum, rises by 0x0800 with the carry taken round (RFC 1624).
#[inline(always)]
fn reply(request: &Icmp) -> Icmp {
    let sum = u32::from(u16::from_be_bytes(request.checksum)) + (u32::from(ECHO_REQUEST) << 8);
    Icmp { kind: ECHO_REPLY, checksum: fold(sum).to_be_bytes(), ..*request }
}
