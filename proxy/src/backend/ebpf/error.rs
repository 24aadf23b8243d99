//! What can go wrong between us and the kernel.

use std::io;
use std::path::PathBuf;

/// Why the eBPF datapath cannot be brought to what is wanted.
#[derive(thiserror::Error, Debug)]
pub enum EbpfError {
    /// There is no BPF file system where it should be.
    #[error(
        "{} is no BPF file system, where maps and programs live on: mount one with `mount -t bpf bpf {}`, or name another \
         place with --bpffs-root",
        .0.display(), .0.display()
    )]
    NoFileSystem(PathBuf),
    /// Something in the BPF file system cannot be made or removed.
    #[error("{}: {source}{}", path.display(), help(source))]
    Pin {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A real-time kernel under which packets may be mixed up (`realtime.rs`).
    #[error(
        "this is a real-time kernel (PREEMPT_RT) of Linux 6.18 or later, under which the programs would mix packets up: use --backend \
         nftables here"
    )]
    Realtime,
    /// The kernel takes no program or map.
    #[error("the kernel does not take {what}: {why}")]
    Load {
        /// The program or the object.
        what: String,
        /// What it says.
        why: String,
    },
    /// Rows cannot be read or written.
    #[error("the map {map}: {source}{}", help(source))]
    Map {
        /// Its name.
        map: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A write has failed, and the maps were not read since.
    #[error("which rows are in the maps is not known until the next sync")]
    Unread,
    /// A program cannot be attached.
    #[error("cannot attach {program} to {target}: {why}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device or cgroup.
        target: String,
        /// What the kernel says.
        why: String,
    },
    /// There is no cgroup to attach to.
    #[error("{0}")]
    Cgroup(String),
    /// The devices cannot be read.
    #[error(transparent)]
    Devices(#[from] crate::node::AddressError),
    /// Something of the node cannot be read.
    #[error("cannot read {what}: {source}")]
    Node {
        /// What.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// What helps where a right or memory is missing.
pub(super) fn help(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, are needed)",
        Some(libc::E2BIG | libc::ENOMEM) => {
            " (there is no memory for so many rows: allow the container more, or give --map-sizes smaller numbers)"
        }
        _ => "",
    }
}

impl EbpfError {
    /// For `map_err` of what is done to a map.
    pub(super) fn map(map: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Map { map, source }
    }

    /// For `map_err` of what is done to a file or folder.
    pub(super) fn pin(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Pin { path: path.into(), source }
    }
}
