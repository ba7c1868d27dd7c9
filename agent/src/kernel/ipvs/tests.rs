//! The family's messages against bytes that Linux 6.12 and this client exchanged.

use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::GenlCtrl;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use nix::errno::Errno;
use proptest::prelude::*;

use super::client::Error;
use super::message::{Dest, Message, command};
use crate::kernel::exchange::read;
use crate::plan::{RealServer, Socket, Timeouts, VirtualServer};

/// 10.0.0.200:80/tcp, wrr, clients kept for 60 s.
const NEW_SERVICE: &str = "\
    6800000022000500030000000000000001010000540001800600010002000000060002000600000014000300\
    0a0000c8000000000000000000000000060004000050000008000600777272000c00070001000000ffffffff\
    080008003c00000008000900ffffffff";

/// Two virtual servers: that, and the same for 53/udp.
const SERVICES: &str = "\
    400100002200020003000000c9000000010100002c0101000600010002000000060002000600000014000300\
    0a0000c8000000000000000000000000060004000050000008000600777272000c00070003000000ffffffff\
    080008003c00000008000900ffffffff5c000a00080001000000000008000200000000000800030000000000\
    0c00040000000000000000000c00050000000000000000000800060000000000080007000000000008000800\
    00000000080009000000000008000a00000000007c000c000c00010000000000000000000c00020000000000\
    000000000c00030000000000000000000c00040000000000000000000c00050000000000000000000c000600\
    00000000000000000c00070000000000000000000c00080000000000000000000c0009000000000000000000\
    0c000a000000000000000000400100002200020003000000c9000000010100002c0101000600010002000000\
    0600020011000000140003000a0000c800000000000000000000000006000400003500000800060077727200\
    0c00070003000000ffffffff080008003c00000008000900ffffffff5c000a00080001000000000008000200\
    0000000008000300000000000c00040000000000000000000c00050000000000000000000800060000000000\
    08000700000000000800080000000000080009000000000008000a00000000007c000c000c00010000000000\
    000000000c00020000000000000000000c00030000000000000000000c00040000000000000000000c000500\
    00000000000000000c00060000000000000000000c00070000000000000000000c0008000000000000000000\
    0c00090000000000000000000c000a000000000000000000";

/// 10.0.0.4:80 behind it, weight 2.
const NEW_DEST: &str = "\
    8c00000022000500060000000000000005010000300001800600010002000000060002000600000014000300\
    0a0000c800000000000000000000000006000400005000004800028006000b0002000000140001000a000004\
    0000000000000000000000000600020000500000080003000300000008000400020000000800050000000000\
    0800060000000000";

/// Two real servers: that with 20 connections, and 10.0.0.3:80, weight 1, with 10.
const DESTS: &str = "\
    640100002200020005000000c90000000501000050010200140001000a000004000000000000000000000000\
    06000200005000000800030003000000080004000200000005000d000000000006000e000000000006000f00\
    0000000008000500000000000800060000000000080007001400000008000800000000000800090000000000\
    06000b00020000005c000a000800010000000000080002000000000008000300000000000c00040000000000\
    000000000c000500000000000000000008000600000000000800070000000000080008000000000008000900\
    0000000008000a00000000007c000c000c00010000000000000000000c00020000000000000000000c000300\
    00000000000000000c00040000000000000000000c00050000000000000000000c0006000000000000000000\
    0c00070000000000000000000c00080000000000000000000c00090000000000000000000c000a0000000000\
    00000000640100002200020005000000c90000000501000050010200140001000a0000030000000000000000\
    0000000006000200005000000800030003000000080004000100000005000d000000000006000e0000000000\
    06000f000000000008000500000000000800060000000000080007000a000000080008000000000008000900\
    0000000006000b00020000005c000a000800010000000000080002000000000008000300000000000c000400\
    00000000000000000c0005000000000000000000080006000000000008000700000000000800080000000000\
    080009000000000008000a00000000007c000c000c00010000000000000000000c0002000000000000000000\
    0c00030000000000000000000c00040000000000000000000c00050000000000000000000c00060000000000\
    000000000c00070000000000000000000c00080000000000000000000c00090000000000000000000c000a00\
    0000000000000000";

/// 900, 120 and 300 s.
const SET_CONFIG: &str = "\
    2c0000002200050002000000000000000c01000008000400840300000800050078000000080006002c010000";

/// The same, as told.
const CONFIG: &str = "\
    2c0000002200000002000000c90000000c01000008000400840300000800050078000000080006002c010000";

/// Refused: there is one already.
const EXISTS: &str = "\
    240000000200000106000000c9000000efffffff8c000000220005000600000000000000";

/// The family `IPVS` has the number 34.
const FAMILY: &str = "\
    840100001000000001000000c900000001020000090002004950565300000000060001002200000008000300\
    010000000800040000000000080005000600000044010600140001000800010001000000080002000b000000\
    140002000800010002000000080002000b000000140003000800010003000000080002000b00000014000400\
    0800010004000000080002000f000000140005000800010005000000080002000b0000001400060008000100\
    06000000080002000b000000140007000800010007000000080002000b000000140008000800010008000000\
    0800020005000000140009000800010009000000080002000b00000014000a00080001000a00000008000200\
    0b00000014000b00080001000b000000080002000500000014000c00080001000c000000080002000b000000\
    14000d00080001000d000000080002000b00000014000e00080001000f000000080002000b00000014000f00\
    0800010010000000080002000b000000140010000800010011000000080002000b000000";

/// Number of the family in these bytes.
const NUMBER: u16 = 34;

fn bytes(hex: &str) -> Vec<u8> {
    hex::decode(hex).unwrap()
}

fn socket(protocol: u8, port: u16) -> Socket {
    Socket { ip: Ipv4Addr::new(10, 0, 0, 200), protocol, port }
}

fn virtual_server() -> VirtualServer {
    VirtualServer {
        scheduler: "wrr".into(),
        flags: VirtualServer::PERSISTENT,
        timeout: 60,
        netmask: Ipv4Addr::BROADCAST,
    }
}

fn dest(last: u8, weight: u32, active: u32) -> Dest {
    let address = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, last), 80);
    let server = RealServer { weight, method: RealServer::DIRECT, upper: 0, lower: 0 };
    Dest { address, server, active, inactive: 0 }
}

/// As [`super::Client`] sends it.
fn encoded(message: Message, like: &str) -> String {
    let like = bytes(like);
    let mut message = GenlMessage::from_payload(message);
    message.set_resolved_family_id(NUMBER);
    let mut request = NetlinkMessage::from(message);
    request.header.flags = u16::from_ne_bytes([like[6], like[7]]);
    request.header.sequence_number = sequence(&like);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    hex::encode(bytes)
}

fn sequence(datagram: &[u8]) -> u32 {
    u32::from_ne_bytes(datagram[8..12].try_into().unwrap())
}

/// As [`super::Client`] reads it; whether it was the end.
fn decoded(hex: &str) -> Result<(Vec<Message>, bool), Error> {
    let datagram = bytes(hex);
    let mut answer = Vec::<GenlMessage<Message>>::new();
    let end = read(&datagram, sequence(&datagram), &mut answer)?;
    Ok((answer.into_iter().map(|message| message.into_parts().1).collect(), end))
}

#[test]
fn requests_are_what_the_kernel_took() {
    let timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    let service = Message::about(command::NEW_SERVICE, socket(6, 80), Some(&virtual_server()));
    let Dest { address, server, .. } = dest(4, 2, 0);
    let real = Message::about(command::NEW_DEST, socket(6, 80), None);
    let config = Message::new(command::SET_CONFIG).with_timeouts(timeouts);
    assert_eq!(encoded(service, NEW_SERVICE), NEW_SERVICE);
    assert_eq!(encoded(real.with_dest(address, Some(&server)), NEW_DEST), NEW_DEST);
    assert_eq!(encoded(config, SET_CONFIG), SET_CONFIG);
}

#[test]
fn virtual_servers_are_read() {
    let (messages, end) = decoded(SERVICES).unwrap();
    assert!(!end, "that comes in another datagram");
    let servers: Vec<_> =
        messages.iter().map(|message| message.virtual_server().unwrap().unwrap()).collect();
    assert_eq!(servers, [(socket(6, 80), virtual_server()), (socket(17, 53), virtual_server())]);
}

#[test]
fn real_servers_are_read_with_their_connections() {
    let (messages, _) = decoded(DESTS).unwrap();
    let dests: Vec<_> = messages.iter().map(|m| m.real_server().unwrap().unwrap()).collect();
    assert_eq!(dests, [dest(4, 2, 20), dest(3, 1, 10)]);
}

#[test]
fn timeouts_are_read() {
    let (messages, _) = decoded(CONFIG).unwrap();
    let timeouts = Timeouts { tcp: 900, tcp_fin: 120, udp: 300 };
    assert_eq!(messages[0].timeouts().unwrap(), timeouts);
}

#[test]
fn a_refusal_is_an_error_and_ends_the_answer() {
    let error = decoded(EXISTS).unwrap_err();
    assert!(error.is(Errno::EEXIST), "{error}");
    let accepted = EXISTS.replace("efffffff", "00000000");
    assert!(decoded(&accepted).unwrap().1);
}

#[test]
fn late_answers_to_former_requests_are_skipped() {
    let datagram = bytes(SERVICES);
    let mut answer = Vec::<GenlMessage<Message>>::new();
    assert!(!read(&datagram, sequence(&datagram) + 1, &mut answer).unwrap());
    assert_eq!(answer, []);
}

#[test]
fn the_family_has_a_number() {
    let datagram = bytes(FAMILY);
    let message = NetlinkMessage::<GenlMessage<GenlCtrl>>::deserialize(&datagram).unwrap();
    let NetlinkPayload::InnerMessage(message) = message.payload else { panic!() };
    assert!(message.payload.nlas.contains(&GenlCtrlAttrs::FamilyId(NUMBER)));
}

#[test]
fn servers_of_ipv6_and_of_firewall_marks_are_nobodys_here() {
    let inet = "06000100020000000600020006000000";
    assert!(SERVICES.contains(inet));
    let inet6 = SERVICES.replace(inet, "060001000a0000000600020006000000");
    let (messages, _) = decoded(&inet6).unwrap();
    assert_eq!(messages[0].virtual_server().unwrap(), None);
    // Address (3) and port (4) under numbers that nobody knows.
    let mark = SERVICES.replace("140003000a0000c8", "140033000a0000c8");
    let (messages, _) = decoded(&mark).unwrap();
    assert_eq!(messages[0].virtual_server().unwrap(), None);
}

#[test]
fn errors_say_what_is_missing_and_what_to_do() {
    for (error, words) in [
        (Error::Missing, ["CONFIG_IP_VS", "modprobe ip_vs", "--lb ebpf"]),
        (Error::NoScheduler("mh".into()), ["ip_vs_mh", "--scheduler", "--lb ebpf"]),
    ] {
        let text = error.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
}

/// A datagram of the kernel's with some bytes changed, or cut off.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let datagram = prop::sample::select(vec![SERVICES, DESTS, CONFIG, EXISTS, FAMILY]);
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (datagram, changes, any::<prop::sample::Index>()).prop_map(|(datagram, changes, end)| {
        let mut datagram = bytes(datagram);
        for (at, byte) in changes {
            let at = at.index(datagram.len());
            datagram[at] = byte;
        }
        // Often whole.
        datagram.truncate(end.index(datagram.len() * 2));
        datagram
    })
}

proptest! {
    #[test]
    fn no_datagram_is_too_strange(
        datagram in prop_oneof![damaged(), prop::collection::vec(any::<u8>(), 0..200)],
    ) {
        let sequence = datagram.get(8..12).map_or(0, |b| u32::from_ne_bytes(b.try_into().unwrap()));
        let mut messages = Vec::<GenlMessage<Message>>::new();
        drop(read(&datagram, sequence, &mut messages));
        drop(read::<GenlMessage<GenlCtrl>>(&datagram, sequence, &mut Vec::new()));
        for message in messages.into_iter().map(|message| message.into_parts().1) {
            drop((message.virtual_server(), message.real_server(), message.timeouts()));
        }
    }

    #[test]
    fn what_is_sent_is_what_would_be_read(
        (ip, port, protocol) in (any::<u32>(), any::<u16>(), any::<u8>()),
        (scheduler, flags, timeout, netmask) in ("[a-z]{1,15}", any::<u32>(), any::<u32>(), any::<u32>()),
        (weight, method, upper, lower) in any::<(u32, u32, u32, u32)>(),
    ) {
        let socket = Socket { ip: ip.into(), protocol, port };
        // The kernel adds that it is in its table.
        let flags = flags & !2;
        let server = VirtualServer { scheduler, flags, timeout, netmask: netmask.into() };
        let message = Message::about(command::NEW_SERVICE, socket, Some(&server));
        prop_assert_eq!(message.virtual_server().unwrap(), Some((socket, server)));
        let address = SocketAddrV4::new(netmask.into(), port);
        let server = RealServer { weight, method, upper, lower };
        let message = Message::about(command::NEW_DEST, socket, None);
        let read = message.with_dest(address, Some(&server)).real_server().unwrap().unwrap();
        prop_assert_eq!((read.address, read.server), (address, server));
    }
}
