//! The cluster that golden packets travel in, as one node's maps show it.
//!
//! ```text
//!        this node, VTEP 192.168.50.11        192.168.50.12      192.168.50.13
//!       ┌──────────┬──────────┬──────────┐   ┌────────────┐     ┌────────────┐
//! BLUE  A 10.0.9.2  B 10.0.9.3               C 10.0.9.4         D 10.0.9.5
//! RED               E 10.0.10.2              F 10.0.10.3
//! INNER                        G 10.0.11.2                       (internal)
//!       └──────────┴──────────┴──────────┘   └────────────┘     └────────────┘
//! ```
//!
//! Every network is a /24 whose gateway is .1; the MTU is 1450. 192.168.50.99 is a
//! stranger on the underlay.

use std::net::Ipv4Addr;

use netagent_common::{Config, Endpoint, Network, Peer, Port, Service, Slot, SlotKey, VXLAN_PORT};

use crate::object::Object;
use crate::packet::Mac;

/// A network with a way out.
pub const BLUE: u32 = 4097;
/// Another.
pub const RED: u32 = 0x00ab_cdef;
/// An internal network.
pub const INNER: u32 = 4099;
/// A VNI that no network has.
pub const NO_NETWORK: u32 = 5000;

/// MTU of every network.
pub const MTU: usize = 1450;

/// This node.
pub const HERE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 11);
/// The node of C and F.
pub const THERE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 12);
/// The node of D.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 13);
/// No member.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 99);

/// An endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its network.
    pub vni: u32,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its MAC.
    pub mac: Mac,
}

impl Host {
    const fn new(vni: u32, third: u8, fourth: u8) -> Self {
        let mac = [0x02, 0x42, 0x0a, 0x00, third, fourth];
        Self { vni, ip: Ipv4Addr::new(10, 0, third, fourth), mac }
    }

    /// The gateway of its network.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.ip.octets();
        Ipv4Addr::new(a, b, c, 1)
    }

    /// What the datapath knows of its port.
    #[must_use]
    pub fn port(&self, internal: bool) -> Port {
        Port {
            vni: self.vni,
            ip: self.ip.octets(),
            mac: self.mac,
            _pad: [0; 2],
            mtu: MTU as u32,
            flags: if internal { Port::INTERNAL } else { 0 },
            gateway: self.gateway().octets(),
        }
    }
}

/// In BLUE, on this node.
pub const A: Host = Host::new(BLUE, 9, 2);
/// In BLUE, on this node.
pub const B: Host = Host::new(BLUE, 9, 3);
/// In BLUE, on [`THERE`].
pub const C: Host = Host::new(BLUE, 9, 4);
/// In BLUE, on [`ELSEWHERE`].
pub const D: Host = Host::new(BLUE, 9, 5);
/// In RED, on this node.
pub const E: Host = Host::new(RED, 10, 2);
/// In RED, on [`THERE`].
pub const F: Host = Host::new(RED, 10, 3);
/// In INNER, on this node.
pub const G: Host = Host::new(INNER, 11, 2);

/// The virtual address of a service in BLUE, once somebody serves it.
pub const VIP: Host = Host::new(BLUE, 9, 100);

/// Interfaces of this node.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// The uplink.
    pub uplink: u32,
    /// The vxlan device.
    pub vxlan: u32,
    /// Host side of the veth to where IPVS schedules.
    pub lb: u32,
    /// Host sides of the veths of A, B, E and G.
    pub ports: [u32; 4],
}

/// Fills the maps.
///
/// # Panics
/// If one of them does not take an entry.
pub fn fill(object: &mut Object, links: &Links) {
    object.set_config(Config::new(links.uplink, links.vxlan, HERE, VXLAN_PORT));
    for (host, ifindex) in [A, B, E, G].into_iter().zip(links.ports) {
        object.set_port(ifindex, host.port(host.vni == INNER));
        object.set_endpoint(host.vni, host.ip, Endpoint::local(host.mac, ifindex, HERE));
        let network = Network { gateway: host.gateway().octets(), mtu: MTU as u32 };
        object.set_network(host.vni, network);
        object.set_subnet(host.gateway(), 24, host.vni);
    }
    for (host, vtep) in [(C, THERE), (D, ELSEWHERE), (F, THERE)] {
        object.set_endpoint(host.vni, host.ip, Endpoint::remote(host.mac, vtep));
    }
    object.set_peer(THERE, Peer::default());
    object.set_peer(ELSEWHERE, Peer::default());
}

/// Makes the service at [`VIP`], with these backends of weight 1, one slot each.
///
/// # Panics
/// As [`fill`].
pub fn serve(object: &mut Object, links: &Links, service: Service, backends: &[Host]) {
    object.set_endpoint(BLUE, VIP.ip, Endpoint::vip(VIP.mac));
    object.set_service(BLUE, VIP.ip, service);
    for (slot, host) in (0..).zip(backends) {
        let key = SlotKey::new(BLUE, VIP.ip.octets(), service.half, slot);
        object.set_slot(key, Slot { ip: host.ip.octets(), weight: 1 });
        set_backend(object, links, *host, Some(true));
    }
}

/// Makes an endpoint of BLUE a backend of the service, eligible or not, or none any more.
///
/// # Panics
/// As [`fill`].
pub fn set_backend(object: &mut Object, links: &Links, host: Host, eligible: Option<bool>) {
    let local = [A, B].iter().position(|local| local.ip == host.ip).map(|i| links.ports[i]);
    let endpoint = match local {
        Some(ifindex) => Endpoint::local(host.mac, ifindex, HERE),
        None if host.ip == C.ip => Endpoint::remote(host.mac, THERE),
        None => Endpoint::remote(host.mac, ELSEWHERE),
    };
    let endpoint = eligible.map_or(endpoint, |eligible| endpoint.serving(VIP.ip, eligible));
    object.set_endpoint(BLUE, host.ip, endpoint);
    if let Some(ifindex) = local {
        let flags = if eligible.is_some() { Port::BACKEND } else { 0 };
        object.set_port(ifindex, Port { flags, ..host.port(false) });
    }
}
