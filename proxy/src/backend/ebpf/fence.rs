//! Waits until every program that runs at this moment has ended. What a program may still be reading, a list of endpoints that
//! no frontend leads to any more, is not written again before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use super::bpf;

/// A map of maps that no program has. Its update returns when all programs that ran as it began have ended
/// (`maybe_wait_bpf_programs` in the kernel's `kernel/bpf/syscall.c`, since Linux 5.0): a grace period of RCU, some
/// milliseconds. Ours are none that may sleep.
#[derive(Debug)]
pub struct Fence {
    outer: OwnedFd,
    inner: OwnedFd,
    ended: AtomicU64,
}

impl Fence {
    /// Has waited for nothing yet.
    ///
    /// # Errors
    /// The kernel refuses the maps: CAP_BPF is missing.
    pub fn new() -> io::Result<Self> {
        let inner = bpf::create_array(None)?;
        let outer = bpf::create_array(Some(inner.as_fd()))?;
        Ok(Self { outer, inner, ended: AtomicU64::new(0) })
    }

    /// Waits for the programs that run now. They began before the time that is returned, in nanoseconds since boot. Any thread
    /// may wait; each waits for itself.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self) -> io::Result<u64> {
        let began = bpf::now();
        bpf::put_map(self.outer.as_fd(), self.inner.as_fd())?;
        Ok(self.ended.fetch_max(began, Ordering::Relaxed).max(began))
    }

    /// No program that began before this time, in nanoseconds since boot, runs any more.
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs root.
    #[test]
    fn waiting_ends_and_time_goes_forward() {
        let fence = Fence::new().unwrap();
        assert_eq!(fence.ended(), 0);
        let before = bpf::now();
        let first = fence.wait().unwrap();
        assert!(before <= first && first <= bpf::now());
        assert_eq!(fence.ended(), first);
        std::thread::scope(|scope| {
            let waits = [(); 4].map(|()| scope.spawn(|| fence.wait().unwrap()));
            waits.into_iter().for_each(|wait| assert!(wait.join().unwrap() > first));
        });
        assert!(fence.ended() > first);
    }
}
