//! Functions that the verifier looks at by themselves, once, and not again at every place
//! and in every state in which they are called: the longer ways of services would be too
//! much for it otherwise. They are those with external linkage. Such a function takes
//! numbers, the context, and pointers to whole values, which it has to check for null; it
//! returns a number.

use netagent_common::Counter;

/// What such a function returns for a packet that is none of its business. No result is encoded
/// so.
pub(crate) const OTHER: u32 = u32::MAX;

/// A result as such a function returns it.
#[inline(always)]
pub(crate) fn encode(result: Result<(), Counter>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason as u32 + 1,
    }
}

/// What was returned.
#[inline(always)]
pub(crate) fn decode(code: u32) -> Result<(), Counter> {
    match code.checked_sub(1) {
        None => Ok(()),
        Some(index) => Err(Counter::from_index(index).unwrap_or(Counter::DropRefused)),
    }
}

/// What a pointer points to; both are never null where we call.
#[inline(always)]
pub(crate) fn get<'a, T>(pointer: *const T) -> Result<&'a T, Counter> {
    // SAFETY: the verifier has checked that a value lies there, for as long as the call
    // lasts.
    unsafe { pointer.as_ref() }.ok_or(Counter::DropRefused)
}

/// As [`get`], to be written.
#[inline(always)]
pub(crate) fn get_mut<'a, T>(pointer: *mut T) -> Result<&'a mut T, Counter> {
    // SAFETY: as in `get`; callers pass nothing twice.
    unsafe { pointer.as_mut() }.ok_or(Counter::DropRefused)
}

/// A copy of what a caller passed. To Linux 6.1 a caller's memory is neither a key nor a
/// value of a map; memory of the function's own is, if the compiler is kept from leaving
/// the copy out.
#[inline(always)]
pub(crate) fn own<T: Copy>(value: &T) -> T {
    core::hint::black_box(*value)
}
