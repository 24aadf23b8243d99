//! The one system call that network namespaces need and that the standard library has not.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Moves the calling thread into the network namespace that `namespace` is an open handle of.
///
/// # Errors
/// The error of setns(2): EPERM without CAP_SYS_ADMIN.
// The call has no safe form in the standard library.
#[allow(unsafe_code)]
pub(super) fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, open for the length of the call, and a flag; it reads and writes no memory of ours.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
