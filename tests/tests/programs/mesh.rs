//! What the tests of published ports share: port 8080 of this node leads to port 80 of the
//! service.

use netagent_common::{GATEWAY_MAC, Published, Scheduler, Service};
use netagent_tests::packet::{Mac, Packet, ethernet};
use netagent_tests::prog::Node;
use netagent_tests::world::{BLUE, C, HERE, Host, MTU, THERE, VIP};
use std::net::Ipv4Addr;

use crate::{ROUTER, UPLINK, outer};

/// Outside of all networks.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
/// Another address of this node.
pub(crate) const HERE_TOO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
pub(crate) const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// MACs of frames on `lo`.
pub(crate) const NO_MAC: Mac = [0; 6];
/// The list of those who may use port 8081.
pub(crate) const LIST: u32 = 7;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const SCTP: u8 = 132;

/// A node with a service that has these backends, and its ports.
pub(crate) fn node(backends: &[Host]) -> Node {
    let mut node = Node::new();
    node.serve(Service::new(Scheduler::Turn, backends.len() as u32, 0, 3600), backends);
    for protocol in [TCP, UDP, SCTP] {
        for ip in [HERE, HERE_TOO, LOCALHOST] {
            let published = |list| Published::new(BLUE, VIP.ip, 80, list, MTU as u32);
            node.object().publish(ip, protocol, 8080, published(0));
            node.object().publish(ip, protocol, 8081, published(LIST));
        }
    }
    node
}

/// From the client, up to the port.
pub(crate) fn call() -> Packet {
    ethernet(ROUTER, UPLINK).ipv4(CLIENT, HERE)
}

/// The same inside of the tunnel, to C.
pub(crate) fn called(client: Ipv4Addr) -> Packet {
    ethernet(GATEWAY_MAC, C.mac).ipv4(client, VIP.ip)
}

/// What C answers to `client`.
pub(crate) fn answer(client: Ipv4Addr) -> Packet {
    outer(THERE, BLUE).ethernet(C.mac, GATEWAY_MAC).ipv4(VIP.ip, client)
}

/// The same as it leaves from `from` to `client`; the kernel writes the Ethernet header
/// afresh.
pub(crate) fn answered(from: Ipv4Addr, client: Ipv4Addr) -> Packet {
    ethernet(ROUTER, UPLINK).ipv4(from, client)
}

/// An ICMP error about `quoted`, from `start`: port unreachable.
pub(crate) fn error(start: Packet, quoted: &Packet) -> Packet {
    start.icmp(3, 3, [0; 4]).payload(&quoted.build()[14..])
}
