//! The bpf(2) calls that aya has not. Nothing here knows what a row means.
#![allow(unsafe_code)] // System calls with pointers.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::OnceLock;

// include/uapi/linux/bpf.h, enum bpf_cmd.
pub(super) const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;

/// A `union bpf_attr`, as words of 64 bits.
pub(super) type Attributes = [u64; 16];

/// Calls bpf(2).
///
/// # Safety
/// Every pointer among the attributes is to live memory, as long as the command says that it reads or writes there.
pub(super) unsafe fn call(command: libc::c_int, attributes: &mut Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes the attributes, which are as long as it is told; the caller answers for the
    // pointers in them.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), std::mem::size_of::<Attributes>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// What the kernel says of a map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Definition {
    /// enum bpf_map_type.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Rows that it has room for.
    pub rows: u32,
}

/// What the kernel says of the map behind a descriptor.
///
/// # Errors
/// It is no map.
pub fn definition(map: BorrowedFd<'_>) -> io::Result<Definition> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, ...
    let mut words = [0; 64];
    // SAFETY: no pointers.
    unsafe { info(map, &mut words) }?;
    Ok(Definition { kind: words[0], key: words[2], value: words[3], rows: words[4] })
}

/// The bytes of memory that the kernel says that a map or program takes.
///
/// # Errors
/// The process's own descriptor cannot be looked at.
pub fn memory(object: BorrowedFd<'_>) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0))
}

/// Opens what is pinned at a path.
///
/// # Errors
/// Nothing is there, or it may not be opened.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes[0] = path.as_ptr() as u64;
    // SAFETY: the one pointer is to the path, which ends with 0 and lives on.
    let fd = unsafe { call(OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Pins a map, program or link at a path where nothing is yet.
///
/// # Errors
/// Something is there, or the folder is none of a BPF file system.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes[0] = path.as_ptr() as u64;
    attributes[1] = pair(fd_word(object), 0);
    // SAFETY: the one pointer is to the path, which ends with 0 and lives on.
    unsafe { call(OBJ_PIN, &mut attributes) }.map(drop)
}

/// What the kernel says of a map, program or link, as words of 32 bits: of each kind the first is its type, the second its
/// number, which no other of its kind has had since boot.
///
/// # Safety
/// Pointers among the words, of a program to where its maps' numbers go, are to live memory as long as told beside them; other
/// words are 0.
unsafe fn info(object: BorrowedFd<'_>, info: &mut [u32; 64]) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(fd_word(object), std::mem::size_of_val(info) as u32);
    attributes[1] = info.as_mut_ptr() as u64;
    // SAFETY: the one pointer of ours is to the words, whose length stands beside it; the caller answers for those in them.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }.map(drop)
}

/// The kernel's number of a map, program or link.
///
/// # Errors
/// It is neither.
pub fn number(object: BorrowedFd<'_>) -> io::Result<u32> {
    let mut words = [0; 64];
    // SAFETY: no pointers.
    unsafe { info(object, &mut words) }?;
    Ok(words[1])
}

/// What a program is: a digest of its instructions (its tag), and the numbers of the maps that it uses.
///
/// # Errors
/// It is no program.
pub fn program(program: BorrowedFd<'_>) -> io::Result<(u64, Vec<u32>)> {
    // struct bpf_prog_info: words 2 and 3 are the tag, word 13 how many maps, words 14 and 15 where their numbers go.
    let mut maps = [0u32; 64];
    let mut words = [0; 64];
    words[13] = maps.len() as u32;
    let [a, b, c, d, e, f, g, h] = (maps.as_mut_ptr() as u64).to_ne_bytes();
    (words[14], words[15]) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    // SAFETY: the one pointer is to `maps`, whose length is told.
    unsafe { info(program, &mut words) }?;
    let count = (words[13] as usize).min(maps.len());
    Ok((pair(words[2], words[3]), maps[..count].to_vec()))
}

/// Whether somebody has had the kernel refuse what userspace writes to a map, for good (BPF_MAP_FREEZE).
///
/// # Errors
/// The process's descriptors cannot be read.
pub fn is_frozen(map: BorrowedFd<'_>) -> io::Result<bool> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    Ok(text.lines().any(|line| line.split_whitespace().eq(["frozen:", "1"])))
}

/// Attaches a program: `target` is an interface's index or a cgroup's descriptor, `hook` one of `enum bpf_attach_type`.
///
/// # Errors
/// The kernel's.
pub fn create_link(program: BorrowedFd<'_>, target: u32, hook: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(fd_word(program), target);
    attributes[1] = pair(hook, flags);
    // SAFETY: descriptors and numbers, no pointers.
    let fd = unsafe { call(LINK_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Makes an array of one row: of maps like `inner`, or of a word.
///
/// # Errors
/// The kernel's: CAP_BPF is missing.
pub fn create_array(inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    const ARRAY: u32 = 2;
    const ARRAY_OF_MAPS: u32 = 12;
    // map_type, key_size, value_size, max_entries, map_flags, inner_map_fd.
    let mut attributes = Attributes::default();
    attributes[0] = pair(if inner.is_some() { ARRAY_OF_MAPS } else { ARRAY }, 4);
    attributes[1] = pair(4, 1);
    attributes[2] = pair(0, inner.map_or(0, fd_word));
    // SAFETY: numbers and a descriptor, no pointers.
    let fd = unsafe { call(MAP_CREATE, &mut attributes) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Puts a map into the one row of an array of maps.
///
/// # Errors
/// The kernel's.
pub fn put_map(outer: BorrowedFd<'_>, inner: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, fd_word(inner));
    let mut attributes = Attributes::default();
    attributes[0] = pair(fd_word(outer), 0);
    attributes[1] = (&raw const key) as u64;
    attributes[2] = (&raw const value) as u64;
    // SAFETY: a key and a value of a word each, only read.
    unsafe { call(MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// What the kernel says of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkInfo {
    /// The id of its program.
    pub program: u32,
    /// Where it is attached: the interface's index of a TCX or XDP link, the cgroup's id of a cgroup link; 0: that is gone.
    pub target: u64,
}

/// What the kernel says of the TCX, XDP or cgroup link behind a descriptor.
///
/// # Errors
/// It is no link, or of another kind.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    const CGROUP: u32 = 3;
    const XDP: u32 = 6;
    const TCX: u32 = 11;
    // struct bpf_link_info: type, id, prog_id, padding; then for xdp and tcx ifindex, for a cgroup its id of 64 bits.
    let mut words = [0; 64];
    // SAFETY: no pointers.
    unsafe { info(link, &mut words) }?;
    let target = match words[0] {
        XDP | TCX => u64::from(words[4]),
        CGROUP => pair(words[4], words[5]),
        other => return Err(io::Error::other(format!("a link of type {other}"))),
    };
    Ok(LinkInfo { program: words[2], target })
}

/// Puts another program into a link, in one step.
///
/// # Errors
/// The kernel's.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = pair(fd_word(link), fd_word(program));
    // SAFETY: descriptors, no pointers.
    unsafe { call(LINK_UPDATE, &mut attributes) }.map(drop)
}

/// Detaches what a link attaches; the link stays.
///
/// # Errors
/// The kernel's.
#[cfg(test)]
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    const LINK_DETACH: libc::c_int = 34;
    let mut attributes = Attributes::default();
    attributes[0] = pair(fd_word(link), 0);
    // SAFETY: a descriptor, no pointers.
    unsafe { call(LINK_DETACH, &mut attributes) }.map(drop)
}

/// The values of a per-CPU array of counters, summed over CPUs. `cpus` is how many the kernel may have.
///
/// # Errors
/// The kernel's.
pub fn sums(map: BorrowedFd<'_>, count: usize, cpus: usize) -> io::Result<Vec<u64>> {
    let mut sums = Vec::with_capacity(count);
    for index in 0..count as u32 {
        let mut values = vec![0u64; cpus];
        let mut attributes = Attributes::default();
        attributes[0] = pair(fd_word(map), 0);
        attributes[1] = std::ptr::from_ref(&index) as u64;
        attributes[2] = values.as_mut_ptr() as u64;
        // SAFETY: a key of a word, and room for a number of each CPU that the kernel may have.
        unsafe { call(MAP_LOOKUP_ELEM, &mut attributes) }?;
        sums.push(values.iter().sum());
    }
    Ok(sums)
}

/// Nanoseconds since boot (CLOCK_MONOTONIC), as programs count: they know no time namespaces.
pub fn now() -> u64 {
    static OFFSET: OnceLock<i64> = OnceLock::new();
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the live struct; the clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let ours = time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned();
    // A process does not change its time namespace, nor that the offset.
    let offset =
        OFFSET.get_or_init(|| clock_offset(&fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default()));
    ours.wrapping_add_signed(-offset)
}

/// By how much CLOCK_MONOTONIC of the time namespace differs from the kernel's own, in nanoseconds. The text is that of
/// /proc/PID/timens_offsets (time_namespaces(7)); kernels without have no such namespaces.
fn clock_offset(text: &str) -> i64 {
    let fields = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let offset = fields.filter(|fields| matches!(fields.first(), Some(&("monotonic" | "1")))).find_map(|fields| {
        let (seconds, nanoseconds): (i64, i64) = (fields.get(1)?.parse().ok()?, fields.get(2)?.parse().ok()?);
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
    });
    offset.unwrap_or_default()
}

/// SO_NETNS_COOKIE of the thread's network namespace.
///
/// # Errors
/// The kernel has none (before 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let (mut cookie, mut length) = (0u64, std::mem::size_of::<u64>() as libc::socklen_t);
    // SAFETY: both pointers are to live variables, and the length is the first one's.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// `f_type` of a BPF file system.
pub const BPF_FS: u64 = 0xcafe_4a11;
/// `f_type` of a cgroup v2 hierarchy.
pub const CGROUP2_FS: u64 = 0x6367_7270;

/// The `f_type` of the file system that a folder lies in.
///
/// # Errors
/// There is no such folder.
pub fn file_system(folder: &Path) -> io::Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut found = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a path that ends with 0 and a struct of the right type.
    if unsafe { libc::statfs(path.as_ptr(), found.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled it; zeros are valid too.
    let found = unsafe { found.assume_init() };
    Ok(found.f_type as u64 & 0xffff_ffff)
}

pub(super) fn fd_word(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Two words side by side, in the machine's order.
pub(super) fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

pub(super) fn first_word(pair: u64) -> u32 {
    let [a, b, c, d, ..] = pair.to_ne_bytes();
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::clock_offset;

    #[test]
    fn a_time_namespace_has_its_own_clock() {
        assert_eq!(clock_offset("monotonic           0         0\nboottime            0         0\n"), 0);
        assert_eq!(
            clock_offset("monotonic      864000         5\nboottime            7         0\n"),
            864_000_000_000_005
        );
        assert_eq!(clock_offset("monotonic         -10         0\n"), -10_000_000_000);
        assert_eq!(clock_offset(""), 0, "a kernel without time namespaces");
    }
}
