//! Reading a header of a packet by words. The BPF machine reads a word of a packet at any address
//! (where the kernel has `CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`, as on x86-64 and arm64), but
//! one of the stack only where it is aligned. The compiler knows one rule for both: left to
//! itself, it reads what may lie anywhere byte by byte, and with LLVM's feature
//! `allows-misaligned-mem-access` the verifier refuses what it does on the stack. So the words
//! are read by instructions written down here.

use core::arch::asm;
use core::mem::MaybeUninit;

use crate::packet::Header;

macro_rules! read {
    ($name:ident, $type:ty, $instruction:literal) => {
        /// Reads at `OFFSET` bytes from an address.
        ///
        /// # Safety
        /// It lies within a packet.
        #[inline(always)]
        unsafe fn $name<const OFFSET: usize>(from: *const u8) -> $type {
            let value: u64;
            // SAFETY: it only reads, and what the caller says may be read.
            unsafe {
                asm!(
                    concat!("{} = *(", $instruction, " *)({} + {})"),
                    lateout(reg) value,
                    in(reg) from,
                    const OFFSET,
                    options(pure, readonly, nostack, preserves_flags),
                );
                // SAFETY: the instruction clears the bits above.
                core::hint::assert_unchecked(value <= <$type>::MAX as u64);
            }
            value as $type
        }
    };
}
read!(byte, u8, "u8");
read!(half, u16, "u16");
read!(word, u32, "u32");

/// Copies a header out of a packet.
///
/// # Safety
/// All of its bytes lie within the packet, at `from`.
#[inline(always)]
pub(crate) unsafe fn read<H: Header>(from: *const H) -> H {
    let from = from.cast::<u8>();
    let mut header = MaybeUninit::<H>::uninit();
    let to = header.as_mut_ptr().cast::<u8>();
    let size = const { size_of::<H>() };
    macro_rules! words {
        ($($offset:literal)*) => {$(
            // SAFETY: within both, as just compared; a header may have any bytes.
            unsafe {
                match size.saturating_sub($offset) {
                    0 => {}
                    1 => to.add($offset).write(byte::<$offset>(from)),
                    2 => to.add($offset).cast::<u16>().write_unaligned(half::<$offset>(from)),
                    3 => {
                        to.add($offset).cast::<u16>().write_unaligned(half::<$offset>(from));
                        to.add($offset + 2).write(byte::<{ $offset + 2 }>(from));
                    }
                    _ => to.add($offset).cast::<u32>().write_unaligned(word::<$offset>(from)),
                }
            }
        )*};
    }
    words!(0 4 8 12 16 20 24 28 32 36 40 44 48);
    const { assert!(size_of::<H>() <= 52, "more words are to be listed") };
    // SAFETY: all of it is written.
    unsafe { header.assume_init() }
}

/// The address `offset` bytes behind another, as one number to the compiler: it would add
/// again where it uses the sum, and to the verifier, of an offset that is known only at run time,
/// that is another address than the one that was compared.
#[inline(always)]
pub(crate) fn behind(mut address: usize, offset: usize) -> usize {
    // SAFETY: it only adds.
    unsafe {
        asm!(
            "{} += {}",
            inout(reg) address,
            in(reg) offset,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    address
}
