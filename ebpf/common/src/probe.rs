use crate::pod;

/// VXLAN network identifier of probes, host order. No network has it.
pub const PROBE_VNI: u32 = 0;

/// Ethertype of the frame that a probe is in, big-endian bytes: IEEE Std 802, Local
/// Experimental Ethertype 1.
pub const PROBE_ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// What follows the inner Ethernet header of a probe: one node asks another whether packets
/// get there and back. Zeros behind it make the probe as long as it is to be. All fields are
/// as they stand in the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    kind: [u8; 4],
    /// Number that the asking node chose.
    pub id: [u8; 8],
}

impl Probe {
    const REQUEST: [u8; 4] = *b"ask ";
    const ANSWER: [u8; 4] = *b"told";

    /// A request.
    #[must_use]
    pub fn request(id: [u8; 8]) -> Self {
        Self { kind: Self::REQUEST, id }
    }

    /// The answer to it.
    #[inline(always)]
    #[must_use]
    pub fn answer(self) -> Self {
        Self { kind: Self::ANSWER, ..self }
    }

    /// Whether it asks.
    #[inline(always)]
    #[must_use]
    pub fn is_request(&self) -> bool {
        u32::from_ne_bytes(self.kind) == u32::from_ne_bytes(Self::REQUEST)
    }

    /// Whether it answers.
    #[inline(always)]
    #[must_use]
    pub fn is_answer(&self) -> bool {
        u32::from_ne_bytes(self.kind) == u32::from_ne_bytes(Self::ANSWER)
    }

    /// As bytes of a packet.
    #[must_use]
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&self.kind);
        bytes[4..].copy_from_slice(&self.id);
        bytes
    }

    /// Bytes of it.
    pub const LEN: usize = size_of::<Self>();
}

/// Record of ring buffer `PROBED`: a probe of a member's came in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// When, in nanoseconds of the monotonic clock.
    pub at: u64,
    /// The probe's number.
    pub id: [u8; 8],
    /// The member, by its VTEP, big-endian bytes.
    pub vtep: [u8; 4],
    answer: u32,
}

impl Probed {
    /// `probe` came from `vtep` at the time `at`.
    #[inline(always)]
    #[must_use]
    pub fn new(probe: &Probe, vtep: [u8; 4], at: u64) -> Self {
        Self { at, id: probe.id, vtep, answer: u32::from(probe.is_answer()) }
    }

    /// Whether it is the answer to one of this node's own; else it has been answered.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        self.answer != 0
    }
}

const _: () = assert!(size_of::<Probe>() == 12 && align_of::<Probe>() == 1);
const _: () = assert!(size_of::<Probed>() == 24);
pod!(Probed);
