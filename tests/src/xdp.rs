//! An XDP program that passes everything, for the far end of a veth: frames that a program at the near end sends (XDP_TX,
//! redirect) vanish without a word unless the far end has a program of its own.
//!
//! Why `unsafe`: bpf(2) has no wrapper in libc. Every call gets a structure on the caller's stack with its exact size.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
/// XDP_FLAGS_DRV_MODE.
const NATIVE: u32 = 4;
/// `r0 = XDP_PASS; exit`.
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD, up to `expected_attach_type`.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

/// The first fields of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
struct Create {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// The program at an interface; it goes with the value.
#[derive(Debug)]
pub struct PassAll {
    _link: OwnedFd,
}

impl PassAll {
    /// Attaches it to an interface of the calling thread's network namespace, in the driver.
    ///
    /// # Errors
    /// There is no such interface, its driver has no XDP, or the right is missing.
    pub fn attach(interface: &str) -> Result<Self> {
        let name = CString::new(interface)?;
        // SAFETY: the name ends with a zero byte and outlives the call.
        let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if ifindex == 0 {
            return Err(io::Error::last_os_error()).with_context(|| interface.to_owned());
        }
        let program = load_program(PROG_TYPE_XDP, ATTACH_TYPE_XDP, &PASS)
            .context("cannot load an XDP program: it needs CAP_BPF and CAP_NET_ADMIN")?;
        let program_fd = program.as_raw_fd().cast_unsigned();
        let create = Create { program: program_fd, ifindex, attach_type: ATTACH_TYPE_XDP, flags: NATIVE };
        let link = bpf(LINK_CREATE, &create).with_context(|| format!("cannot attach XDP to {interface}"))?;
        Ok(Self { _link: link })
    }
}

/// Has the kernel take a program.
///
/// # Errors
/// A right is missing, or the verifier refuses it.
pub(crate) fn load_program(kind: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    let load = Load {
        prog_type: kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        expected_attach_type: attach_type,
        ..Load::default()
    };
    bpf(PROG_LOAD, &load)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the structure outlives the call, as does what it points to, and its size is given.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>());
        match libc::c_int::try_from(fd) {
            Ok(fd) if fd >= 0 => Ok(OwnedFd::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
