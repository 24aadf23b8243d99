//! The programs that tests, demo and benchmark call, and the Debian packages that have them. Missing ones are installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::cargo::workspace;
use crate::step;

/// A program, the Debian package that has it, and what we want it for. A name with its whole path is looked for there alone,
/// and may be a folder's.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    name: &'static str,
    package: &'static str,
    purpose: &'static str,
}

/// What every part that touches the network needs.
pub const NETWORK: &[Program] = &[
    Program { name: "nft", package: "nftables", purpose: "the datapath" },
    Program { name: "ip", package: "iproute2", purpose: "network namespaces" },
    Program { name: "conntrack", package: "conntrack", purpose: "looking at and clearing UDP flows" },
];

/// What tests make of another proxy's traces, and of processes with few rights.
pub const MIGRATION: &[Program] = &[
    Program { name: "iptables-nft", package: "iptables", purpose: "rules as kube-proxy writes them" },
    Program { name: "ipset", package: "ipset", purpose: "sets as kube-proxy makes them" },
    Program { name: "setpriv", package: "util-linux", purpose: "running with few rights" },
];

/// What tests harm processes with.
pub const FAULTS: &[Program] = &[
    Program { name: "strace", package: "strace", purpose: "ending a process as it enters a system call" },
    Program { name: "prlimit", package: "util-linux", purpose: "processes with few open files" },
    Program { name: "unshare", package: "util-linux", purpose: "processes with another clock" },
];

/// What tests send, or call on the way.
pub const TESTS: &[Program] = &[
    Program { name: "ping", package: "iputils-ping", purpose: "packets that are no connection's" },
    Program { name: "sh", package: "dash", purpose: "what several commands make up" },
    Program { name: "bash", package: "bash", purpose: "shell completions" },
    Program { name: "git", package: "git", purpose: "which files are in the repository" },
    Program { name: "mount", package: "mount", purpose: "file systems of their own" },
    Program { name: "umount", package: "mount", purpose: "file systems of their own" },
    Program { name: "tc", package: "iproute2", purpose: "programs of devices" },
    Program { name: "kill", package: "procps", purpose: "ending processes" },
];

/// What tests call of packages that start a server where they are installed: these are unpacked, and the program alone is kept,
/// in [`tools`].
pub const UNPACKED: &[Program] =
    &[Program { name: "promtool", package: "prometheus", purpose: "evaluating alerts and the dashboard" }];

/// Everything that `cargo xtask test` and its parts outside of virtual machines call.
pub const ALL_OF_TEST: &[&[Program]] = &[BUILD, NETWORK, MIGRATION, FAULTS, TESTS, UNPACKED];

/// What the benchmark of the datapaths needs beside that.
pub const DEVICES: &[Program] = &[Program { name: "ethtool", package: "ethtool", purpose: "settings of interfaces" }];

/// What virtual machines need: an emulator, a shell inside of them, and what unpacks kernels and their modules.
pub const VIRTUAL_MACHINES: &[Program] = &[
    Program { name: "qemu-system-x86_64", package: "qemu-system-x86", purpose: "virtual machines" },
    Program { name: "busybox", package: "busybox-static", purpose: "a shell in virtual machines" },
    Program { name: "dpkg", package: "dpkg", purpose: "unpacking kernels" },
    Program { name: "xz", package: "xz-utils", purpose: "unpacking modules" },
    Program { name: "ldd", package: "libc-bin", purpose: "finding the libraries of programs" },
];

/// What tests in virtual machines call beside what is everywhere.
pub const VIRTUAL_MACHINE_TESTS: &[Program] =
    &[Program { name: "strip", package: "binutils", purpose: "smaller programs" }];

/// What makes virtual services of IPVS.
pub const IPVS: &[Program] = &[Program { name: "ipvsadm", package: "ipvsadm", purpose: "virtual services" }];

/// What `demo --keep` tells its user to call.
pub const LOOKING_AROUND: &[Program] = &[Program { name: "curl", package: "curl", purpose: "requests by hand" }];

/// What drives the page.
pub const BROWSER: &[Program] = &[
    Program { name: "chromium", package: "chromium", purpose: "driving the page" },
    Program { name: "node", package: "nodejs", purpose: "driving the page" },
    Program { name: "npm", package: "npm", purpose: "fetching what drives the browser" },
];

/// What compiling needs beside Rust: a linker, and a C compiler for the TLS library.
pub const BUILD: &[Program] = &[Program { name: "cc", package: "gcc libc6-dev", purpose: "linking" }];

/// What compiles libFuzzer.
pub const CPLUSPLUS: &[Program] = &[Program { name: "c++", package: "g++", purpose: "compiling libFuzzer" }];

/// What takes Debian's packages apart, for the image.
pub const PACKAGES: &[Program] = &[Program { name: "dpkg-deb", package: "dpkg", purpose: "unpacking packages" }];

/// What tries an image out.
pub const CONTAINER: &[Program] = &[
    Program { name: "unshare", package: "util-linux", purpose: "namespaces" },
    Program { name: "chroot", package: "coreutils", purpose: "running programs of the image" },
    Program { name: "setpriv", package: "util-linux", purpose: "running them with fewer rights" },
];

/// What compiles for aarch64 elsewhere: a compiler for C, and Debian's rustc, whose library there is for every machine.
pub const CROSS_AARCH64: &[Program] = &[
    Program {
        name: "aarch64-linux-gnu-gcc",
        package: "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
        purpose: "compiling for aarch64",
    },
    Program { name: "/usr/bin/rustc", package: "rustc-web", purpose: "compiling for aarch64" },
    Program { name: "dpkg-deb", package: "dpkg", purpose: "unpacking packages" },
];

/// What runs a binary of aarch64 elsewhere.
pub const EMULATE_AARCH64: &[Program] = &[Program {
    name: "qemu-aarch64-static",
    package: "qemu-user-static",
    purpose: "running what was compiled for aarch64",
}];

/// A compiler for BPF: rustc, where rustup's does not hide it, and core for BPF, which tells it from Debian's older rustc.
pub const BPF_COMPILER: &[Program] = &[Program {
    name: "/usr/lib/rustlib/bpfel-unknown-none",
    package: "rustc-web libstd-rust-web-dev-bpf",
    purpose: "compiling for BPF",
}];

/// What bpf-linker is compiled with and runs with.
pub const LLVM: &[Program] =
    &[Program { name: "/usr/lib/llvm-22/bin/llvm-config", package: "llvm-22-dev", purpose: "compiling bpf-linker" }];

/// Makes sure that the programs are there, installing their packages with apt-get where we are root, or unpacking them.
///
/// # Errors
/// Not root, no apt-get, or apt-get failed: the message says what to run by hand.
pub fn ensure(wanted: &[&[Program]]) -> anyhow::Result<()> {
    let (unpacked, missing): (Vec<Program>, Vec<Program>) =
        wanted.iter().flat_map(|list| list.iter()).copied().filter(|p| !present(p.name)).partition(is_unpacked);
    if !missing.is_empty() {
        install(&missing)?;
    }
    unpacked.iter().try_for_each(unpack)
}

fn is_unpacked(program: &Program) -> bool {
    UNPACKED.iter().any(|unpacked| unpacked.name == program.name)
}

fn install(missing: &[Program]) -> anyhow::Result<()> {
    let packages: Vec<&str> = missing.iter().flat_map(|program| program.package.split(' ')).collect();
    let by_hand = format!("apt-get install {}", packages.join(" "));
    for program in missing {
        step::note(format!("`{}` is missing ({}), it is in {}", program.name, program.purpose, program.package));
    }
    if !is_root() {
        bail!("programs are missing; run `sudo {by_hand}`, then this command again");
    }
    if !present("apt-get") {
        bail!("programs are missing and there is no apt-get here; install what `{by_hand}` would on Debian");
    }
    step::start(format!("installing {}", packages.join(" ")));
    apt_get(&["update", "-qq"])?;
    apt_get(
        &[&["install", "-y", "-qq", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends"], packages.as_slice()].concat(),
    )
    .with_context(|| format!("installing packages; try `{by_hand}`"))?;
    match missing.iter().find(|program| !present(program.name)) {
        Some(program) => bail!("{} was installed, but `{}` is still not to be found", program.package, program.name),
        None => Ok(()),
    }
}

/// The folder of unpacked programs, into which tests look first.
fn tools() -> PathBuf {
    workspace().join("target/tools")
}

fn unpack(program: &Program) -> anyhow::Result<()> {
    let Program { name, package, purpose } = program;
    step::start(format!("fetching {package} for {name} ({purpose})"));
    let folder = tools();
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    // In a place of its own, which the program leaves when it is whole.
    let place = tempfile::Builder::new().prefix("new-").tempdir_in(&folder)?;
    let download = || {
        let mut apt = Command::new("apt-get");
        step::output(apt.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]).current_dir(&place))
    };
    if download().is_err() {
        // The lists may be old, or never have been there.
        let update = step::run(Command::new("apt-get").args(["update", "-qq"])).and_then(|()| download());
        update.with_context(|| format!("`{name}` is missing ({purpose}); it is in Debian's package {package}"))?;
    }
    let file = fs::read_dir(&place)?.flatten().map(|entry| entry.path()).next();
    let file = file.with_context(|| format!("apt-get download {package} left no file"))?;
    let tree = place.path().join("tree");
    step::run(Command::new("dpkg").arg("-x").arg(&file).arg(&tree))?;
    let from = tree.join("usr/bin").join(name);
    fs::rename(&from, folder.join(name)).with_context(|| format!("{package} has no {}", from.display()))
}

/// Network namespaces and BPF programs need root. `command` is what the user typed after `cargo xtask`.
///
/// # Errors
/// Not root: the message says what to run.
pub fn need_root(command: &str) -> anyhow::Result<()> {
    if !is_root() {
        bail!("`cargo xtask {command}` needs root; run `sudo env \"PATH=$PATH\" cargo xtask {command}`");
    }
    Ok(())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn apt_get(args: &[&str]) -> anyhow::Result<()> {
    step::run(Command::new("apt-get").args(args).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Whether a program is on the PATH, or where Debian keeps what its users' PATH leaves out, or unpacked.
fn present(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_path_buf());
    if name.starts_with('/') {
        return Path::new(name).exists();
    }
    env::split_paths(&path).chain(sbin).chain([tools()]).any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    /// In every Debian, since its installer calls them: packages that are marked essential.
    const ESSENTIAL: [&str; 5] = ["chmod", "cp", "date", "true", "which"];

    fn sources(folder: PathBuf, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(std::fs::read_to_string(path).unwrap());
            }
        }
    }

    /// On a machine where it is by chance, nobody would see that a new one has none of it.
    #[test]
    fn whatever_tests_call_is_installed_by_the_command_that_runs_them() {
        let mut texts = Vec::new();
        ["tests/src", "tests/tests", "proxy/src"]
            .into_iter()
            .for_each(|folder| sources(workspace().join(folder), &mut texts));
        let mut called = BTreeSet::new();
        for text in &texts {
            for after in ["Command::new(", "tool("].into_iter().flat_map(|call| text.split(call).skip(1)) {
                let name = after.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                called.extend(name.filter(|name| !name.starts_with("kubeferry")));
            }
        }
        assert!(["ip", "nft", "ping", "ipset"].iter().all(|name| called.contains(name)), "{called:?}");
        let known = |name: &&str| ALL_OF_TEST.iter().flat_map(|list| list.iter()).any(|program| program.name == *name);
        let belongs = |name: &&str| name.strip_prefix("iptables-").is_some() && known(&"iptables-nft");
        let missing: Vec<_> =
            called.iter().filter(|name| !known(name) && !belongs(name) && !ESSENTIAL.contains(name)).collect();
        assert!(missing.is_empty(), "in no list of `cargo xtask test`: {missing:?}");
    }

    #[test]
    fn present_programs_need_nothing() {
        assert!(present("sh") && !present("no-such-program"));
        assert!(present("/bin/sh") && present("/usr/bin") && !present("/no/such/folder"));
        ensure(&[&[Program { name: "sh", package: "dash", purpose: "this test" }]]).unwrap();
    }
}
