//! What glibc's allocator keeps of memory that was given back. Left to itself it is more with each thread that ever did something
//! large: a sweep of connections in another thread than the last one's took another megabyte for good.
#![allow(unsafe_code)] // mallopt(3) and malloc_trim(3).

#[cfg(target_env = "gnu")]
mod sizes {
    /// Heaps that threads share. glibc would make eight for each CPU, and each keeps its largest.
    pub const ARENAS: libc::c_int = 2;
    /// Bytes from which memory is the system's again as soon as it is given back. glibc would raise that to the largest so far.
    pub const LARGE: libc::c_int = 128 << 10;
}

/// Bounds what is kept. For the start: heaps that are there stay.
pub fn bound() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers, and there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, sizes::ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, sizes::LARGE);
    }
}

/// Gives the memory of a full sync's temporary lists back to the system; glibc would keep it.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; glibc documents it as safe to call at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
