//! Links: what attaches a program to a device or a cgroup for as long as the link is held.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::bpf::{LinkInfo, create_link, link_info, open_pin, update_link};
use super::error::EbpfError;
use super::pins::Pins;

// include/uapi/linux/bpf.h, enum bpf_attach_type
const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// Behind the programs that are there.
const BPF_F_AFTER: u32 = 1 << 4;

/// Where a program is to be attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// As [`LinkInfo::target`].
    target: u64,
    /// What the call to the kernel has in its place.
    argument: u32,
    hook: u32,
    flags: u32,
}

impl Place {
    /// What comes in by, or goes out of, an interface.
    pub fn tcx(index: u32, ingress: bool) -> Self {
        let hook = if ingress { BPF_TCX_INGRESS } else { BPF_TCX_EGRESS };
        Self { target: index.into(), argument: index, hook, flags: BPF_F_AFTER }
    }

    /// Frames that come in by an interface; `mode` is XDP_FLAGS_SKB_MODE or XDP_FLAGS_DRV_MODE.
    pub fn xdp(index: u32, mode: u32) -> Self {
        Self { target: index.into(), argument: index, hook: BPF_XDP, flags: mode }
    }

    /// A cgroup by its descriptor and number; `hook` as the kernel numbers it.
    pub fn cgroup(folder: BorrowedFd<'_>, number: u64, hook: u32) -> Self {
        Self { target: number, argument: super::bpf::fd_word(folder), hook, flags: 0 }
    }
}

/// The links of a folder of pins, by name.
#[derive(Debug)]
pub struct Links {
    folder: PathBuf,
    pins: Pins,
}

impl Links {
    /// Holds none yet; `folder` is in the file system at `root`.
    pub fn new(root: &Path, folder: PathBuf) -> Self {
        Self { folder, pins: Pins::new(root.to_owned()) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Attaches a program: by the link of this name if it is attached there, which then runs the program from one packet to
    /// the next, else by a new one.
    ///
    /// # Errors
    /// The kernel's; what is pinned in its place cannot be removed.
    pub fn attach(&mut self, name: &str, program: BorrowedFd<'_>, to: Place) -> io::Result<()> {
        let path = self.path(name);
        let is_there = |link: BorrowedFd<'_>| {
            link_info(link).is_ok_and(|link| link.target == to.target) && update_link(link, program).is_ok()
        };
        if self.pins.get(&path).is_some_and(is_there) {
            return Ok(());
        }
        if let Some(link) = open_pin(&path).ok().filter(|link| is_there(link.as_fd())) {
            self.pins.hold(path, link);
            return Ok(());
        }
        self.pins.release(&path).map_err(io::Error::other)?;
        let link = create_link(program, to.argument, to.hook, to.flags)?;
        self.pins.hold(path, link);
        Ok(())
    }

    /// Detaches what the link of this name attaches, if there is one.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach(&mut self, name: &str) -> Result<(), EbpfError> {
        self.pins.release(&self.path(name))
    }

    /// What a link that is held is; `None`: it is not.
    pub fn get(&self, name: &str) -> Option<LinkInfo> {
        link_info(self.pins.get(&self.path(name))?).ok()
    }

    /// See [`Pins::keep`].
    ///
    /// # Errors
    /// As there.
    pub fn keep(&self) -> Result<usize, EbpfError> {
        self.pins.keep()
    }
}
