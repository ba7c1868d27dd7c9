//! The internet checksum of a packet that changes (RFC 1624): what a change adds to the
//! sum of its 16-bit words tells the new checksum from the old one, whatever the rest is.
//! Pure arithmetic, also compiled into the host's tests.
//!
//! Sums are taken of words in native order: ones' complement addition does not mind, as
//! long as every word and the checksum are read alike (RFC 1071).

/// What changing words of a packet adds to their ones' complement sum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Delta(u32);

impl Delta {
    /// No change.
    pub(crate) const NOTHING: Self = Self(0);

    /// Four bytes at an even offset change.
    #[inline(always)]
    pub(crate) fn of(old: [u8; 4], new: [u8; 4]) -> Self {
        if old == new {
            return Self::NOTHING;
        }
        Self(!u32::from_ne_bytes(old)).and(Self(u32::from_ne_bytes(new)))
    }

    /// One word changes.
    #[inline(always)]
    pub(crate) fn of_word([a, b]: [u8; 2], [c, d]: [u8; 2]) -> Self {
        Self::of([a, b, 0, 0], [c, d, 0, 0])
    }

    /// Both changes.
    #[inline(always)]
    pub(crate) fn and(self, other: Self) -> Self {
        let (sum, carry) = self.0.overflowing_add(other.0);
        Self(sum.wrapping_add(u32::from(carry)))
    }

    /// Whether nothing changes.
    #[inline(always)]
    pub(crate) fn is_nothing(self) -> bool {
        self == Self::NOTHING
    }

    /// As the kernel's helpers take it: a `__wsum`.
    #[inline(always)]
    pub(crate) fn to_bits(self) -> u32 {
        self.0
    }

    /// The checksum afterwards of what had `checksum` before.
    #[inline(always)]
    pub(crate) fn applied_to(self, checksum: [u8; 2]) -> [u8; 2] {
        if self.is_nothing() {
            return checksum;
        }
        let sum = self.and(Self(u32::from(!u16::from_ne_bytes(checksum))));
        (!fold(sum.0)).to_ne_bytes()
    }
}

/// A ones' complement sum folded to 16 bits (RFC 1071).
#[inline(always)]
pub(crate) fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}
