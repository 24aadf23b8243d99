//! For tests: a network namespace of one's own.

use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Runs `test` on a thread in a new network namespace, with loopback up; programs that it starts are in it too. The
/// namespace goes with the thread. Needs root.
#[allow(unsafe_code)]
pub(crate) fn in_new_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no memory is touched; only this thread moves to another namespace.
            let moved = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(moved, 0, "these tests need root (CAP_SYS_ADMIN): {}", std::io::Error::last_os_error());
            run("ip", &["link", "set", "lo", "up"], "");
            test()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program with `input` and gives its output; panics with its complaint where it fails.
pub(crate) fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A BPF file system at a folder of its own.
#[cfg(feature = "ebpf")]
pub(crate) struct Mounted(tempfile::TempDir);

#[cfg(feature = "ebpf")]
impl Mounted {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run("mount", &["-t", "bpf", "bpf", folder.path().to_str().unwrap()], "");
        Self(folder)
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

#[cfg(feature = "ebpf")]
impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.path().to_str().unwrap()], "");
    }
}

/// Takes all capabilities from this thread and from the programs that it starts, for good.
#[allow(unsafe_code)]
pub(crate) fn drop_capabilities() {
    // Programs started by uid 0 would have all of them again.
    const SECBIT_NOROOT: libc::c_ulong = 1;
    // SAFETY: a flag of this thread, no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // struct __user_cap_header_struct (version 3, this thread) and two of __user_cap_data_struct, all zero.
    let header: [u32; 2] = [0x2008_0522, 0];
    let data = [0u32; 6];
    // SAFETY: both pointers are to live arrays of the sizes that capset of version 3 reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
