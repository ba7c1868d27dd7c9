//! What is remembered of flows (map `FLOWS`): reading an entry, keeping it fresh, and what a
//! packet says about the flow that it is of. What an entry means is its user's business.

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use netagent_common::{Counter, Flow};

use crate::headers::{Ipv4, SCTP, TCP, Tcp};
use crate::packet::Packet;

const SECOND: u64 = 1_000_000_000;

/// Now, in seconds of the monotonic clock, as of its last tick: reading the clock itself takes
/// longer than a lookup.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: the helper only reads a clock.
    (unsafe { bpf_ktime_get_coarse_ns() } / SECOND) as u32
}

/// What a packet means to its flow.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    /// When it came, see [`now`].
    pub(crate) now: u32,
    /// It asks for a new connection.
    pub(crate) begins: bool,
    /// It ends one.
    pub(crate) ends: bool,
}

/// Chunks of SCTP (RFC 9260, 3.2).
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;
/// Offset of the first chunk's type in an SCTP packet.
const CHUNK: u32 = 12;

impl Event {
    /// What the packet at byte `at`, which has header `ip` and is no fragment after the
    /// first, means. Protocols other than TCP and SCTP neither begin nor end anything.
    ///
    /// # Errors
    /// `DropMalformed` if it is too short to tell.
    #[inline(always)]
    pub(crate) fn of(packet: &Packet, at: u32, ip: &Ipv4) -> Result<Self, Counter> {
        let l4 = at + ip.header_len();
        let (begins, ends) = match ip.protocol {
            TCP => {
                let flags = packet.load::<u8>(l4 + Tcp::FLAGS)?;
                let begins = flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN;
                (begins, flags & (Tcp::FIN | Tcp::RST) != 0)
            }
            SCTP => {
                let chunk = packet.load::<u8>(l4 + CHUNK)?;
                let ends = matches!(chunk, ABORT | SHUTDOWN | SHUTDOWN_ACK | SHUTDOWN_COMPLETE);
                (chunk == INIT, ends)
            }
            _ => (false, false),
        };
        Ok(Self { now: now(), begins, ends })
    }
}

/// An entry of `FLOWS` where it lies. Programs on other CPUs may write it at the same time:
/// each field is taken by itself, and any mixture of old and new is harmless.
#[derive(Clone, Copy)]
pub(crate) struct Entry(*mut Flow);

impl Entry {
    /// `flow` is what a lookup gave.
    #[inline(always)]
    pub(crate) fn new(flow: *mut Flow) -> Self {
        Self(flow)
    }

    /// What it says now.
    #[inline(always)]
    pub(crate) fn get(self) -> Flow {
        // SAFETY: an entry stays readable until the program ends (see `maps.rs`).
        unsafe { *self.0 }
    }

    /// The address that it leads to.
    #[inline(always)]
    pub(crate) fn ip(self) -> [u8; 4] {
        // SAFETY: as in `get`.
        unsafe { (*self.0).ip }
    }

    /// The port that it leads to.
    #[inline(always)]
    pub(crate) fn port(self) -> [u8; 2] {
        // SAFETY: as in `get`.
        unsafe { (*self.0).port }
    }

    /// Whether it leads back to the same client in the same way as `other`.
    #[inline(always)]
    pub(crate) fn leads_as(self, other: &Flow) -> bool {
        // SAFETY: as in `get`.
        unsafe {
            (*self.0).ip == other.ip
                && (*self.0).client == other.client
                && (*self.0).via == other.via
                && (*self.0).port == other.port
        }
    }

    /// Its flags.
    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        // SAFETY: as in `get`.
        unsafe { (*self.0).state }
    }

    /// Seconds since its last packet.
    #[inline(always)]
    pub(crate) fn silent(self, now: u32) -> u32 {
        // SAFETY: as in `get`.
        now.wrapping_sub(unsafe { (*self.0).seen })
    }

    /// Seconds since IPVS was told of it.
    #[inline(always)]
    pub(crate) fn untold(self, now: u32) -> u32 {
        // SAFETY: as in `get`.
        now.wrapping_sub(unsafe { (*self.0).link })
    }

    /// Writes down that a packet came that neither begins nor ends anything.
    #[inline(always)]
    pub(crate) fn refresh(self, now: u32) {
        // SAFETY: as in `touch`.
        unsafe {
            if (*self.0).seen != now {
                (*self.0).seen = now;
            }
        }
    }

    /// Writes down that a packet came. Writes nothing that stands
    /// there already, so that a busy flow does not move a cache line between CPUs for every
    /// packet.
    #[inline(always)]
    pub(crate) fn touch(self, event: &Event) {
        // SAFETY: as in `get`; nobody else can tell a write from one of another CPU.
        unsafe {
            let before = (*self.0).state;
            let after = if event.begins {
                before & !(Flow::CLOSING | Flow::ANSWERED)
            } else {
                before | Flow::ANSWERED | if event.ends { Flow::CLOSING } else { 0 }
            };
            if after != before {
                (*self.0).state = after;
            }
            if (*self.0).seen != event.now {
                (*self.0).seen = event.now;
            }
        }
    }

    /// Sets when IPVS was last told of the flow.
    #[inline(always)]
    pub(crate) fn set_told(self, now: u32) {
        // SAFETY: as in `touch`.
        unsafe { (*self.0).link = now };
    }
}
