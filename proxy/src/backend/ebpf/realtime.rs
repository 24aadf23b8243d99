//! Kernels under which two of our programs may use one CPU's memory at a time.
//!
//! What a packet's program knows of it is in a map with a row for each CPU (`work.rs` of the programs), as nothing that handles packets
//! interrupts another on its CPU. With PREEMPT_RT that was kept up by a lock for each CPU, which Linux 6.18 made an option that is off
//! (`PREEMPT_RT_NEEDS_BH_LOCK`): a packet that comes in may be handled in the midst of one that leaves.

use super::error::EbpfError;
use crate::backend::nftables::nft::Version;
use crate::node::kernel_release;

/// The first without that lock.
const UNLOCKED: Version = Version(6, 18, 0);

/// # Errors
/// This is such a kernel.
pub fn check() -> Result<(), EbpfError> {
    // include/linux/sysfs.h: there with PREEMPT_RT alone.
    let realtime = std::fs::read_to_string("/sys/kernel/realtime").unwrap_or_default();
    if is_refused(realtime.trim() == "1", &kernel_release()) { Err(EbpfError::Realtime) } else { Ok(()) }
}

fn is_refused(realtime: bool, release: &str) -> bool {
    realtime && Version::find(release).is_none_or(|version| version >= UNLOCKED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_time_kernels_without_the_lock_are_refused() {
        assert!(is_refused(true, "6.18.0-rt3") && is_refused(true, "7.0.1") && is_refused(true, ""));
        assert!(!is_refused(true, "6.12.57+deb13-rt-amd64"));
        assert!(!is_refused(false, "6.18.44"));
    }
}
