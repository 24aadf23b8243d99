//! `cargo xtask dist`: what a release has to download: a static binary with its papers, for each machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, anyhow, bail};

use crate::cargo::workspace;
use crate::release::tree::{Tree, gzip, sha256};
use crate::release::{self, Arch, VERSION};
use crate::{dependencies, image, packages, step};

pub mod sbom;
mod trial;

/// Build the archives of a release: static binary, manual pages, completions, manifests, SBOM, sums
#[derive(clap::Args)]
pub struct Args {
    /// For which machines
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Arch::X86_64, Arch::Aarch64])]
    arch: Vec<Arch>,
    /// Pack twice, compare, and run what was packed (under qemu where it is another machine's)
    #[arg(long)]
    check: bool,
}

/// Builds and tries the archives of this machine and of others, and gives the static binary in the first.
pub fn check(others: &[Arch]) -> anyhow::Result<PathBuf> {
    let own = Arch::own()?;
    let others = others.iter().copied().filter(|arch| *arch != own);
    make(&[own].into_iter().chain(others).collect::<Vec<_>>(), true)
}

/// Builds an archive for each machine, and the sums of all.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD])?;
    make(&args.arch, args.check).map(drop)
}

fn make(archs: &[Arch], check: bool) -> anyhow::Result<PathBuf> {
    let folder = workspace().join("target/dist");
    fs::create_dir_all(&folder)?;
    // Manual pages and completions come from a binary that runs here.
    let own = release::static_binary(Arch::own()?, true)?;
    let archive = |arch: Arch| {
        let binary = if arch == Arch::own()? { own.clone() } else { release::static_binary(arch, true)? };
        step::start(format!("packing for {}", arch.name()));
        let name = format!("kubeferry-{VERSION}-linux-{}", arch.name());
        let packed = pack(&name, &binary, &own)?;
        if check && pack(&name, &binary, &own)? != packed {
            bail!("the same files gave another archive");
        }
        let path = folder.join(format!("{name}.tar.gz"));
        fs::write(&path, &packed).with_context(|| path.display().to_string())?;
        step::note(format!("{}: {}", path.display(), release::size(packed.len())));
        if check {
            trial::try_out(&path, &name, arch)?;
        }
        Ok(format!("{}  {name}.tar.gz\n", sha256(&packed)))
    };
    let (sums, whole) = each(archs, archive);
    fs::write(folder.join("SHA256SUMS"), sums)?;
    step::note(folder.join("SHA256SUMS").display().to_string());
    whole.map(|()| own)
}

/// Makes one archive after the other, and gives the sums of those that came to be: one that cannot be made keeps no other from being
/// there, and from having its sum. Then the errors.
fn each(archs: &[Arch], archive: impl Fn(Arch) -> anyhow::Result<String>) -> (String, anyhow::Result<()>) {
    let (mut sums, mut failed) = (Vec::new(), Vec::new());
    for arch in archs {
        match archive(*arch) {
            Ok(sum) => sums.push(sum),
            Err(error) => failed.push(format!("no archive for {}: {error:#}", arch.name())),
        }
    }
    sums.sort();
    let whole = if failed.is_empty() { Ok(()) } else { Err(anyhow!("{}", failed.join("; "))) };
    (sums.concat(), whole)
}

/// The archive of a binary; `runs` is one for this machine.
fn pack(name: &str, binary: &Path, runs: &Path) -> anyhow::Result<Vec<u8>> {
    let place = tempfile::tempdir()?;
    let man = place.path().join("man1");
    step::output(Command::new(runs).arg("man").arg(&man))?;
    let content = fs::read(binary).with_context(|| binary.display().to_string())?;
    let time = release::time()?;
    let mut tree = Tree::default();
    let at = |path: &str| format!("{name}/{path}");
    let bill = sbom::write(&dependencies::shipped()?, &sha256(&content), &image::layout::rfc3339(time), &[])?;
    tree.program(&at("kubeferry"), content);
    for (path, from) in [
        ("LICENSE", "LICENSE"),
        ("LICENSE-MIT.bpf", "proxy-ebpf/LICENSE-MIT"),
        ("README.md", "README.md"),
        ("CHANGELOG.md", "CHANGELOG.md"),
        ("licences.md", "docs/licences.md"),
    ] {
        tree.file(&at(path), fs::read(workspace().join(from)).with_context(|| from.to_owned())?);
    }
    tree.copy(&at("deploy"), &workspace().join("deploy"))?;
    tree.copy(&at("man/man1"), &man)?;
    for (shell, file) in [("bash", "kubeferry.bash"), ("zsh", "_kubeferry"), ("fish", "kubeferry.fish")] {
        let script = step::output(Command::new(runs).args(["completion", shell]))?;
        tree.file(&at(&format!("completions/{file}")), script);
    }
    tree.file(&at("sbom.cdx.json"), bill);
    gzip(&tree.tar(time)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_that_cannot_be_made_keeps_no_other_from_its_sum() {
        let archive = |arch| match arch {
            Arch::X86_64 => Ok("a  x\n".to_owned()),
            Arch::Aarch64 => Err(anyhow!("no compiler")),
        };
        let (sums, whole) = each(&[Arch::Aarch64, Arch::X86_64], archive);
        assert_eq!(sums, "a  x\n");
        assert_eq!(whole.unwrap_err().to_string(), "no archive for aarch64: no compiler");
        let (sums, whole) = each(&[Arch::X86_64], archive);
        assert_eq!(sums, "a  x\n");
        whole.unwrap();
    }
}
