//! Which CPU a test's thread runs on: what it sends to a namespace is worked on there.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs that this thread may use.
///
/// # Errors
/// The kernel refuses.
pub fn allowed() -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect())
}

/// Keeps this thread, and those that it starts, on these CPUs.
///
/// # Errors
/// The thread may use none of them.
pub fn stay_on(cpus: &[usize]) -> io::Result<()> {
    let mut only = CpuSet::new();
    cpus.iter().for_each(|cpu| only.set(*cpu));
    Ok(sched_setaffinity(None, &only)?)
}
