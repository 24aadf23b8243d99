//! Programs for sockets, on a cgroup.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::{CgroupSock, CgroupSockAddr, ProgramError, ProgramFd};
use aya_obj::generated::bpf_attach_type;

use super::bpf;
use super::error::EbpfError;
use super::links::{Links, Place};
use super::load::{RELEASE, SOCKETS};

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

/// The programs of sockets, and the cgroup that they are attached to.
#[derive(Debug)]
pub struct Sockets {
    programs: BTreeMap<&'static str, CgroupSockAddr>,
    release: Option<CgroupSock>,
    /// `None`: sockets are left alone.
    cgroup: Option<PathBuf>,
    links: Links,
}

impl Sockets {
    /// Attaches nothing yet.
    pub fn new(
        programs: BTreeMap<&'static str, CgroupSockAddr>,
        release: Option<CgroupSock>,
        cgroup: Option<PathBuf>,
        links: Links,
    ) -> Self {
        Self { programs, release, cgroup, links }
    }

    /// The cgroup; `None`: sockets are left alone.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// The programs by name, in the order in which they are attached, each with its hook.
    fn programs(&self) -> impl Iterator<Item = (&'static str, u32, Result<&ProgramFd, ProgramError>)> {
        let release = self.release.iter().map(|program| {
            let hook = bpf_attach_type::BPF_CGROUP_INET_SOCK_RELEASE;
            (RELEASE, hook as u32, program.fd())
        });
        let others = SOCKETS.into_iter().filter_map(|(name, hook)| {
            let hook = bpf_attach_type::from(hook);
            self.programs.get(name).map(|program| (name, hook as u32, program.fd()))
        });
        release.chain(others)
    }

    /// Attaches the programs to the cgroup; those attached elsewhere by an earlier run are taken from there. Without a
    /// cgroup they are detached.
    ///
    /// # Errors
    /// There is no such cgroup, or it takes no program.
    pub fn attach(&mut self) -> Result<(), EbpfError> {
        let Some(cgroup) = &self.cgroup else { return self.detach() };
        let no_cgroup = |error: io::Error| {
            EbpfError::Cgroup(format!("--cgroup-root {}: {error}; give a cgroup v2", cgroup.display()))
        };
        let folder = fs::File::open(cgroup).map_err(no_cgroup)?;
        // The kernel's number of a cgroup is its folder's inode.
        let number = folder.metadata().map_err(no_cgroup)?.ino();
        let failed = |name: &'static str, error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
            program: name,
            target: cgroup.display().to_string(),
            why: super::load::chain(error),
        };
        let mut descriptors = Vec::new();
        for (name, hook, program) in self.programs() {
            let program = program.and_then(|program| Ok(program.try_clone()?)).map_err(|error| failed(name, &error))?;
            descriptors.push((name, hook, program));
        }
        for (name, hook, program) in descriptors {
            let place = Place::cgroup(folder.as_fd(), number, hook);
            self.links.attach(name, program.as_fd(), place).map_err(|error| failed(name, &error))?;
        }
        Ok(())
    }

    /// Takes the programs from their cgroup.
    fn detach(&mut self) -> Result<(), EbpfError> {
        SOCKETS.iter().rev().try_for_each(|(name, _)| self.links.detach(name))?;
        self.links.detach(RELEASE)
    }

    /// How many programs are attached.
    pub fn attached(&self) -> usize {
        let number = self.cgroup.as_ref().and_then(|cgroup| fs::metadata(cgroup).ok()).map(|folder| folder.ino());
        let is_attached = |(name, _, program): &(&str, u32, Result<&ProgramFd, ProgramError>)| {
            let (Some(link), Ok(program)) = (self.links.get(name), program) else { return false };
            Some(link.target) == number && bpf::number(program.as_fd()).is_ok_and(|program| program == link.program)
        };
        self.programs().filter(is_attached).count()
    }

    /// Attaches again what somebody has detached or replaced; how many programs that were.
    ///
    /// # Errors
    /// As of [`Sockets::attach`].
    pub fn check(&mut self) -> Result<usize, EbpfError> {
        let wanted = if self.cgroup.is_some() { self.programs().count() } else { 0 };
        let lost = wanted.saturating_sub(self.attached());
        if lost > 0 {
            self.attach()?;
        }
        Ok(lost)
    }

    /// As of [`Links::keep`].
    ///
    /// # Errors
    /// As there.
    pub fn keep_pins(&self) -> Result<usize, EbpfError> {
        self.links.keep()
    }
}
