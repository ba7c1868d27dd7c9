//! SCTP's checksum of a packet whose ports change (RFC 9260, appendix A), without reading
//! the rest of it. Pure arithmetic, also compiled into the host's tests.
//!
//! CRC32c is linear over GF(2): the checksums of two packets of one length differ by the
//! remainder of their difference. The ports are the first four bytes, so the difference
//! is one 32-bit polynomial times `x^(8 * length)`, and what that power is modulo the
//! polynomial comes out of a table, four bits of the length at a time.

/// CRC32c's polynomial, lowest power in the highest bit, without `x^32`.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x^0` in that order.
const ONE: u32 = 1 << 31;
/// `x^8`.
const BYTE: u32 = 1 << 23;

/// `POWERS[i][n]` is `x^(8 * n * 16^i)` modulo the polynomial.
static POWERS: [[u32; 16]; 4] = powers();

/// The checksum, as it stands in the packet, of an SCTP packet of `len` bytes (at most
/// 65535) whose ports change from `old` to `new` and whose checksum was `checksum`.
#[inline(always)]
pub(crate) fn with_ports(checksum: [u8; 4], old: [u8; 4], new: [u8; 4], len: u32) -> [u8; 4] {
    let mut change = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
    // If the compiler saw that no length exceeds 16 bits it would leave out the last mask, and
    // the verifier of Linux 6.1, which does not see it, would refuse the table.
    let mut rest = core::hint::black_box(len) as usize;
    for powers in &POWERS {
        change = product(change, powers[rest & 15]);
        rest >>= 4;
    }
    (u32::from_le_bytes(checksum) ^ change).to_le_bytes()
}

/// `a * b` modulo the polynomial. Without a branch: the verifier would follow each.
#[inline(always)]
const fn product(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut product) = (a, b, 0);
    let mut bit = 0;
    while bit < u32::BITS {
        product ^= b & (a >> 31).wrapping_neg();
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

const fn powers() -> [[u32; 16]; 4] {
    let mut powers = [[ONE; 16]; 4];
    let mut step = BYTE;
    let mut row = 0;
    while row < 4 {
        let mut column = 1;
        while column < 16 {
            powers[row][column] = product(powers[row][column - 1], step);
            column += 1;
        }
        step = product(powers[row][15], step);
        row += 1;
    }
    powers
}
