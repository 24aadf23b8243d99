//! Numbers that several CPUs and userspace change at a time. The language's own atomics can only be read and written on this
//! target; the instructions are those of Linux 5.12.

use core::arch::asm;

/// Adds to the number at `at`, which wraps round.
///
/// # Safety
/// It is there, a multiple of 8 bytes from the beginning of a map's value, and everybody changes it so.
#[inline(always)]
pub unsafe fn add(at: *mut u64, number: u64) {
    // SAFETY: promised by the caller.
    unsafe { asm!("lock *(u64 *)({at} + 0) += {number}", at = in(reg) at, number = in(reg) number, options(nostack)) };
}

/// Adds to the number at `at`, which wraps round; what was there before.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn fetch_add(at: *mut u64, number: u64) -> u64 {
    let mut number = number;
    // SAFETY: promised by the caller.
    unsafe {
        asm!(
            "{number} = atomic_fetch_add((u64 *)({at} + 0), {number})",
            at = in(reg) at,
            number = inout(reg) number,
            options(nostack),
        );
    };
    number
}

/// Puts `new` in the place of the number at `at`, if that is `old`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn replace(at: *mut u64, old: u64, new: u64) {
    // SAFETY: promised by the caller.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({at} + 0, r0, {new})",
            at = in(reg) at,
            new = in(reg) new,
            inout("r0") old => _,
            options(nostack),
        );
    };
}

/// Sets these bits of the number at `at`.
///
/// # Safety
/// It is there, a multiple of 8 bytes from the beginning of a map's value.
#[inline(always)]
pub unsafe fn set(at: *mut u64, bits: u64) {
    // SAFETY: promised by the caller.
    unsafe { asm!("lock *(u64 *)({at} + 0) |= {bits}", at = in(reg) at, bits = in(reg) bits, options(nostack)) };
}

/// Keeps these bits of the number at `at`; what was there before.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn fetch_and(at: *mut u64, bits: u64) -> u64 {
    let mut bits = bits;
    // SAFETY: promised by the caller.
    unsafe {
        asm!(
            "{bits} = atomic_fetch_and((u64 *)({at} + 0), {bits})",
            at = in(reg) at,
            bits = inout(reg) bits,
            options(nostack),
        );
    };
    bits
}
