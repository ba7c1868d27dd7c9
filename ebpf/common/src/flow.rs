//! What the programs remember of flows. One map holds all kinds of entries, so that one
//! limit bounds them all; the kind is a part of the key.
//!
//! A client's packet to a virtual address meets, on its way there and back:
//!
//! ```text
//! client's node     Choice    which backend this flow goes to
//! backend's node    In        the port under which the backend sees the client
//!                   Out       the way back: as whom the backend answers, and to where
//! entry node        Entry     what a client outside meant by a published port
//!                   Exit      the way back: as whom the service answers, and to where
//! any of them       Fragment  what was decided about a datagram's first fragment
//! ```

use core::net::Ipv4Addr;

use crate::pod;

/// What an entry of map `FLOWS` is about.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `vni`, `client`:`client_port`, `called` = virtual address, `port`. Leads to
    /// [`Flow::ip`], the backend.
    Choice = 1,
    /// `vni`, `via`, `client`:`client_port`, `called`:`port`, `backend`. Leads to
    /// [`Flow::ip`]:[`Flow::port`], the client as the backend sees it.
    In = 2,
    /// `vni`, `client`:`client_port` as the backend sees it, `called` = the backend,
    /// `port`. Leads to [`Flow::ip`], the address that was called, and
    /// [`Flow::client`]:[`Flow::port`], the client, reached by [`Flow::via`].
    Out = 3,
    /// `client`:`client_port`, `called`:`port` = the published port. Leads to
    /// [`Flow::ip`]:[`Flow::other_port`] in [`Flow::vni`], the target, there called by
    /// [`Flow::client`]:[`Flow::port`].
    Entry = 4,
    /// `vni`, `client`:`client_port` as the service sees it, `called`:`port` = the target.
    /// Leads to [`Flow::ip`]:[`Flow::other_port`], the published port, and
    /// [`Flow::client`]:[`Flow::port`], the client, behind [`Flow::link`].
    Exit = 5,
    /// `vni`, `client` = source and `called` = destination of the fragments, in
    /// `client_port` their identification. The entry is a copy of that of their flow, of
    /// whichever kind it is.
    Fragment = 6,
}

/// Key of map `FLOWS`. What a kind does not use is 0. Addresses and ports are as they
/// stand in a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// VXLAN network identifier, 24 bits, host order; 0 outside of all networks.
    pub vni: u32,
    /// Tunnel address of the node where the flow came into the mesh; 0 if it did not.
    pub via: [u8; 4],
    /// The client.
    pub client: [u8; 4],
    /// Whom it calls.
    pub called: [u8; 4],
    /// The backend.
    pub backend: [u8; 4],
    /// The client's port.
    pub client_port: [u8; 2],
    /// The port it calls.
    pub port: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// [`Kind`] as a number.
    pub kind: u8,
    /// Reserved, 0.
    pub _pad: [u8; 2],
}

impl FlowKey {
    /// An entry of this kind about `protocol`; everything else is 0.
    #[inline(always)]
    #[must_use]
    pub fn new(kind: Kind, vni: u32, protocol: u8) -> Self {
        Self {
            vni,
            via: [0; 4],
            client: [0; 4],
            called: [0; 4],
            backend: [0; 4],
            client_port: [0; 2],
            port: [0; 2],
            protocol,
            kind: kind as u8,
            _pad: [0; 2],
        }
    }

    /// The kind; `None` for a number that is none.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        [Kind::Choice, Kind::In, Kind::Out, Kind::Entry, Kind::Exit, Kind::Fragment]
            .into_iter()
            .find(|kind| *kind as u8 == self.kind)
    }

    /// The client and its port in host order.
    #[must_use]
    pub fn client(&self) -> (Ipv4Addr, u16) {
        (self.client.into(), u16::from_be_bytes(self.client_port))
    }

    /// Whom it calls, and the port in host order.
    #[must_use]
    pub fn called(&self) -> (Ipv4Addr, u16) {
        (self.called.into(), u16::from_be_bytes(self.port))
    }
}

/// Value of map `FLOWS`. Which fields a kind uses: [`Kind`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// When its last packet came, in seconds of the monotonic clock (`CLOCK_MONOTONIC`).
    pub seen: u32,
    /// [`Flow::CLOSING`] and [`Flow::ANSWERED`], and more that is the programs' own.
    pub state: u32,
    /// The address that the entry leads to.
    pub ip: [u8; 4],
    /// The client.
    pub client: [u8; 4],
    /// Tunnel address of the node where the flow came into the mesh; 0 if it did not.
    pub via: [u8; 4],
    /// VXLAN network identifier, 24 bits, host order.
    pub vni: u32,
    /// Interface behind which the client is; 0 if the host's routes say where.
    pub link: u32,
    /// The client's port, as it stands in a packet.
    pub port: [u8; 2],
    /// The other port, as it stands in a packet.
    pub other_port: [u8; 2],
}

impl Flow {
    /// A FIN or RST was seen: the flow does not count any more, and a SYN begins another.
    pub const CLOSING: u32 = 1;
    /// More than one packet was seen.
    pub const ANSWERED: u32 = 2;

    /// Whether it has ended, or had no packet within `idle` seconds before `now` (of the
    /// same clock as [`Flow::seen`]).
    #[inline(always)]
    #[must_use]
    pub fn is_over(&self, now: u32, idle: u32) -> bool {
        self.state & Self::CLOSING != 0 || now.wrapping_sub(self.seen) > idle
    }
}

/// Key of map `AFFINITY`: a client of a service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// VXLAN network identifier, 24 bits, host order.
    pub vni: u32,
    /// The virtual address, big-endian bytes.
    pub vip: [u8; 4],
    /// The client's address, big-endian bytes.
    pub client: [u8; 4],
}

/// Value of map `AFFINITY`: the backend that it keeps.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The backend's address, big-endian bytes.
    pub ip: [u8; 4],
    /// When its last flow began, as in [`Flow::seen`].
    pub seen: u32,
}

/// Value of map `LOAD`, by network and address: of a backend, what it has to do; of a
/// virtual address, whose turn it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Flows from this node that have neither ended nor been idle too long. The programs
    /// count those that begin and end; those that are idle, or were given up because
    /// `FLOWS` was full, the agent takes off when it has gone through `FLOWS`.
    pub flows: u64,
    /// Slot of the ring from which the next flow is served, modulo the slots.
    pub turn: u64,
}

const _: () = assert!(size_of::<FlowKey>() == 28);
const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<AffinityKey>() == 12);
const _: () = assert!(size_of::<Affinity>() == 8);
const _: () = assert!(size_of::<Load>() == 16);
pod!(FlowKey, Flow, AffinityKey, Affinity, Load);
