//! Programs for sockets, on a cgroup.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr};

use super::attach::adopt;
use super::bpf::{link_info, open_pin};
use super::error::EbpfError;
use super::load::{RELEASE, SOCKETS, remove};

/// The root of the cgroup v2 hierarchy.
///
/// # Errors
/// None is mounted.
pub fn cgroup_root() -> Result<PathBuf, EbpfError> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").map_err(|source| EbpfError::Node { what: "the mounts", source })?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder.replace("\\040", " ")))
    });
    root.ok_or_else(|| {
        let text = "no cgroup v2 hierarchy is mounted, which sockets are translated by: mount one (mount -t cgroup2 none \
                    /sys/fs/cgroup), name a cgroup with --cgroup-root, or turn it off with --socket-lb=off";
        EbpfError::Cgroup(text.to_owned())
    })
}

/// Attaches the programs of sockets to a cgroup; those attached elsewhere by an earlier run are taken from there.
///
/// # Errors
/// There is no such cgroup, or it takes no program.
pub fn attach(
    programs: &mut BTreeMap<&'static str, CgroupSockAddr>,
    release: Option<&mut CgroupSock>,
    cgroup: &Path,
    links: &Path,
) -> Result<(), EbpfError> {
    let no_cgroup =
        |error: io::Error| EbpfError::Cgroup(format!("--cgroup-root {}: {error}; give a cgroup v2", cgroup.display()));
    let folder = fs::File::open(cgroup).map_err(no_cgroup)?;
    // The kernel's number of a cgroup is its folder's inode.
    let id = folder.metadata().map_err(no_cgroup)?.ino();
    // Programs for socket addresses and that for sockets that are closed have no type in common.
    macro_rules! attach {
        ($name:expr, $program:expr) => {{
            let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
                program: $name,
                target: cgroup.display().to_string(),
                why: super::load::chain(error),
            };
            let pin = links.join($name);
            let fd = $program.fd().map_err(|error| failed(&error))?.as_fd();
            if !adopt(&pin, fd, id)? {
                // Links are always one of several.
                let link = $program.attach(&folder, CgroupAttachMode::Single).map_err(|error| failed(&error))?;
                let link = $program.take_link(link).map_err(|error| failed(&error))?;
                let link: FdLink = link.try_into().map_err(|error| failed(&error))?;
                link.pin(&pin).map_err(|error| failed(&error))?;
            }
        }};
    }
    if let Some(program) = release {
        attach!(RELEASE, program);
    }
    for (name, _) in SOCKETS {
        if let Some(program) = programs.get_mut(name) {
            attach!(name, program);
        }
    }
    Ok(())
}

/// Takes the programs of sockets from their cgroup.
///
/// # Errors
/// A pin cannot be removed.
pub fn detach(links: &Path) -> Result<(), EbpfError> {
    SOCKETS.iter().rev().try_for_each(|(name, _)| remove(&links.join(name)))?;
    remove(&links.join(RELEASE))
}

/// How many programs of sockets are attached.
pub fn attached(links: &Path) -> usize {
    let there = |name: &&str| {
        open_pin(&links.join(name)).and_then(|link| link_info(link.as_fd())).is_ok_and(|link| link.target != 0)
    };
    SOCKETS.iter().map(|(name, _)| *name).chain([RELEASE]).filter(there).count()
}
