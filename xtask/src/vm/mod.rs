//! Virtual machines with another kernel: one of Debian's, under software emulation, with programs of this machine, a command
//! to run, and no network. Its file system is in memory, and gone with it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

mod archive;
mod kernel;
mod modules;
mod qemu;

use self::archive::Archive;
pub use self::kernel::{Kernel, Series};
use self::modules::Modules;
use crate::cargo::workspace;
use crate::step;

/// Where kernels and file systems are kept.
fn folder() -> PathBuf {
    workspace().join("target/vm")
}

/// A virtual machine before its start.
#[derive(Debug)]
pub struct Guest<'a> {
    kernel: &'a Kernel,
    files: Archive,
    /// Libraries that are in there already.
    libraries: BTreeSet<PathBuf>,
}

impl<'a> Guest<'a> {
    /// A machine with a shell and these modules loaded, with all that they need.
    ///
    /// # Errors
    /// The kernel has no such module, or there is no busybox.
    pub fn new(kernel: &'a Kernel, modules: &[&str]) -> anyhow::Result<Self> {
        let mut guest = Self { kernel, files: Archive::default(), libraries: BTreeSet::new() };
        guest.program("/bin/busybox", &find("busybox")?)?;
        guest.files.link("/bin/sh", "busybox");
        guest.files.text("/init", include_str!("init.sh"), true);
        guest.files.folder("/root");
        guest.files.link("/etc/mtab", "/proc/self/mounts");
        guest.files.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", false);
        guest.files.text("/etc/group", "root:x:0:\nnogroup:x:65534:\n", false);
        let kept = folder().join(format!("modules-{}", kernel.release));
        std::fs::create_dir_all(&kept)?;
        let mut order = String::new();
        for (name, content) in Modules::of(kernel)?.load(modules)? {
            let file = kept.join(&name);
            std::fs::write(&file, content).with_context(|| file.display().to_string())?;
            guest.files.copy(format!("/modules/{name}.ko"), file, false);
            order += &format!("{name}\n");
        }
        guest.files.text("/modules/order", order, false);
        Ok(guest)
    }

    /// Adds a program of this machine, with the libraries that it needs.
    ///
    /// # Errors
    /// It is not there, or a library is not.
    pub fn program(&mut self, at: impl AsRef<Path>, from: &Path) -> anyhow::Result<()> {
        for library in libraries(from)? {
            if self.libraries.insert(library.clone()) {
                self.files.copy(&library, &library, true);
            }
        }
        self.files.copy(at, from, true);
        Ok(())
    }

    /// Adds programs that are on this machine's PATH, at their places.
    ///
    /// # Errors
    /// As for [`Self::program`].
    pub fn tools(&mut self, names: &[&str]) -> anyhow::Result<()> {
        for name in names {
            self.program(Path::new("/usr/sbin").join(name), &find(name)?)?;
        }
        Ok(())
    }

    /// What else is to be in its file system.
    pub fn files(&mut self) -> &mut Archive {
        &mut self.files
    }

    /// Boots it, runs a command of the shell and gives its exit code; see [`qemu::boot`]. `name` is for the files that it
    /// leaves in target/vm.
    ///
    /// # Errors
    /// The machine did not get to the command's end within `patience`.
    pub fn boot(
        mut self,
        name: &str,
        command: &str,
        patience: Duration,
        line: &mut dyn FnMut(&str),
    ) -> anyhow::Result<i32> {
        self.files.text("/command", command, true);
        // Runs may go side by side.
        let place = tempfile::Builder::new().prefix("boot-").tempdir_in(folder())?;
        let initramfs = place.path().join("initramfs");
        let mut out = BufWriter::new(File::create(&initramfs)?);
        self.files.write(&mut out).context("the virtual machine's file system")?;
        out.flush()?;
        drop(out);
        step::start(format!("booting {} under emulation", self.kernel.release));
        let console = folder().join(format!("{name}.console.log"));
        step::note(format!("its kernel's messages go to {}", console.display()));
        qemu::boot(&self.kernel.image, &initramfs, &console, patience, line)
    }
}

/// A program on the PATH, or where Debian keeps what its users' PATH leaves out.
fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path).chain(sbin).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.with_context(|| format!("`{name}` is not to be found"))
}

/// The libraries of a program, the loader among them, where the loader looks for them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).env("LC_ALL", "C").output().context("cannot start ldd")?;
    let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !out.status.success() || said.contains("not found") {
        bail!("ldd {}: {}", program.display(), said.trim());
    }
    Ok(said.lines().filter_map(library).collect())
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`; the kernel's own has no path.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.rsplit("=> ").next()?.split_whitespace().next()?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_with_a_path() {
        assert_eq!(library("\tlibc.so.6 => /lib/libc.so.6 (0x00007f)"), Some("/lib/libc.so.6".into()));
        assert_eq!(library("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)"), Some("/lib64/ld-linux-x86-64.so.2".into()));
        assert_eq!(library("\tlinux-vdso.so.1 (0x00007ffd)"), None);
        let own = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(own.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{own:?}");
    }
}
