//! The bpf(2) calls that tests need: what is pinned, rows of maps as bytes, and a run of a program by itself.
//!
//! Why `unsafe`: the attributes hold pointers to values that live on the caller's stack or heap for the length of the call,
//! with their exact sizes. Nothing keeps a pointer.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// include/uapi/linux/bpf.h, enum bpf_cmd.
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_GET: libc::c_int = 7;
const PROG_TEST_RUN: libc::c_int = 10;
const MAP_FREEZE: libc::c_int = 22;
const LINK_DETACH: libc::c_int = 34;

/// `struct __sk_buff`: its size, and the offsets of the fields that a run may be given.
const SK_BUFF: (usize, usize, usize) = (192, 36, 40);
/// `struct xdp_md`: its size, and the offsets of where the frame ends and of the interface that it came in by.
const XDP_MD: (usize, usize, usize) = (24, 4, 12);
/// The longest packet that comes out of a run.
const PACKET: usize = 2048;

/// A `union bpf_attr`, as words of 64 bits.
type Attributes = [u64; 16];

fn call(command: libc::c_int, attributes: &mut Attributes) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as long as told; see the module for the pointers in them.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) as libc::c_int
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn pair(low: u32, high: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (low.to_ne_bytes(), high.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn second(word: u64) -> u32 {
    let [.., e, f, g, h] = word.to_ne_bytes();
    u32::from_ne_bytes([e, f, g, h])
}

fn word(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes[0] = path.as_ptr() as u64;
    let fd = call(OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Detaches a link: when the call returns, its program runs no more.
pub(super) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(word(link), 0);
    call(LINK_DETACH, &mut attributes).map(drop)
}

/// Has userspace never write to a map again.
pub(super) fn freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(word(map), 0);
    call(MAP_FREEZE, &mut attributes).map(drop)
}

/// The value of a key; `None`: there is none. For a map per CPU, `value` counts all CPUs' bytes.
pub(super) fn get(map: BorrowedFd<'_>, key: &[u8], value: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; value];
    let mut attributes = Attributes::default();
    attributes[0] = pair(word(map), 0);
    attributes[1] = key.as_ptr() as u64;
    attributes[2] = bytes.as_mut_ptr() as u64;
    match call(MAP_LOOKUP_ELEM, &mut attributes) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a row.
pub(super) fn put(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(word(map), 0);
    attributes[1] = key.as_ptr() as u64;
    attributes[2] = value.as_ptr() as u64;
    call(MAP_UPDATE_ELEM, &mut attributes).map(drop)
}

/// Deletes a row; one that is not there is no error.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(word(map), 0);
    attributes[1] = key.as_ptr() as u64;
    match call(MAP_DELETE_ELEM, &mut attributes) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// The keys of a map, of so many bytes each.
pub(super) fn keys(map: BorrowedFd<'_>, length: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut next = vec![0; length];
        let mut attributes = Attributes::default();
        attributes[0] = pair(word(map), 0);
        attributes[1] = keys.last().map_or(0, |key| key.as_ptr() as u64);
        attributes[2] = next.as_mut_ptr() as u64;
        match call(MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => keys.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
            Err(error) => return Err(error),
        }
    }
}

/// Runs a program of traffic control on a frame, in the thread's network namespace: at the interface `device`, come in by
/// `come_in_by` (0: the node itself made it). Gives the last verdict and the frame as the program left it; it is given what
/// it left itself where it runs several times.
pub(super) fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    device: u32,
    come_in_by: u32,
    times: u32,
) -> io::Result<(i32, Vec<u8>)> {
    let (size, iif_at, device_at) = SK_BUFF;
    let mut context = vec![0; size];
    context[iif_at..iif_at + 4].copy_from_slice(&come_in_by.to_ne_bytes());
    context[device_at..device_at + 4].copy_from_slice(&device.to_ne_bytes());
    run(program, frame, &context, times)
}

/// The same for a program of XDP, and a frame that has come in by the interface `device`.
pub(super) fn test_run_xdp(program: BorrowedFd<'_>, frame: &[u8], device: u32) -> io::Result<(i32, Vec<u8>)> {
    let (size, end_at, device_at) = XDP_MD;
    let mut context = vec![0; size];
    context[end_at..end_at + 4].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[device_at..device_at + 4].copy_from_slice(&device.to_ne_bytes());
    run(program, frame, &context, 1)
}

fn run(program: BorrowedFd<'_>, frame: &[u8], context: &[u8], times: u32) -> io::Result<(i32, Vec<u8>)> {
    let mut out = vec![0; PACKET];
    // prog_fd, retval; data_size_in, data_size_out; data_in; data_out; repeat, duration; ctx_size_in, ctx_size_out;
    // ctx_in; ctx_out.
    let mut attributes = Attributes::default();
    attributes[0] = pair(word(program), 0);
    attributes[1] = pair(frame.len() as u32, out.len() as u32);
    attributes[2] = frame.as_ptr() as u64;
    attributes[3] = out.as_mut_ptr() as u64;
    attributes[4] = pair(times, 0);
    attributes[5] = pair(context.len() as u32, 0);
    attributes[6] = context.as_ptr() as u64;
    call(PROG_TEST_RUN, &mut attributes)?;
    out.truncate(second(attributes[1]) as usize);
    Ok((second(attributes[0]).cast_signed(), out))
}

/// The number of an interface of the thread's network namespace.
pub(super) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: the name ends with a zero byte and outlives the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}
