//! Counting.

use kubeferry_ebpf_common::stats::Counter;

use crate::maps::STATS;

/// Counts one event on this CPU.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = STATS.get_ptr_mut(counter as u32) {
        // SAFETY: the CPU's own element; a program is not interrupted by another on the same CPU at the same hook.
        unsafe { *value += 1 };
    }
}
