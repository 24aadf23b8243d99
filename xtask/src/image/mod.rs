//! `cargo xtask image`: the container image, made without a container engine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::cargo::workspace;
use crate::dist::sbom;
use crate::release::tree::{Entry, Tree, sha256};
use crate::release::{self, Arch, VERSION};
use crate::{dependencies, packages, step};

pub mod debian;
pub mod layout;
pub mod libraries;
mod trial;

use layout::{Image, Layout};

/// Where the programs are in the image.
const KUBEFERRY: &str = "usr/bin/kubeferry";
const NFT: &str = "usr/sbin/nft";
/// Where programs are looked for in it.
const PATH: &str = "/usr/sbin:/usr/bin";
/// The bill of materials of all that is in the image.
const BILL: &str = "usr/share/doc/kubeferry/sbom.cdx.json";

/// Build the container image as an OCI layout: kubeferry, and Debian's nft with the libraries that it needs
#[derive(clap::Args)]
pub struct Args {
    /// Build it twice, compare, and run its programs in namespaces (root)
    #[arg(long)]
    check: bool,
    /// Take this static binary instead of building one
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Unpack the layers into this folder, for a build that makes an image of it
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// Name of the image, without the tag
    #[arg(long, value_name = "NAME", default_value = "localhost/kubeferry")]
    name: String,
    /// Pin the versions of Debian's packages that there are now, and end
    #[arg(long)]
    update_packages: bool,
}

/// Builds the image of a static binary, and tries it.
pub fn check(binary: &Path) -> anyhow::Result<()> {
    let name = "localhost/kubeferry".to_owned();
    run(&Args { check: true, binary: Some(binary.to_owned()), rootfs: None, name, update_packages: false })
}

/// Builds the image, and tries it if asked to.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.update_packages {
        return debian::update();
    }
    if Arch::own()? != Arch::X86_64 {
        bail!("the image is built for x86_64 alone: packages.txt pins nft for no other machine");
    }
    packages::ensure(&[packages::BUILD, packages::PACKAGES])?;
    if args.check {
        packages::ensure(&[packages::CONTAINER, packages::NETWORK])?;
        packages::need_root("image --check")?;
    }
    let binary = match &args.binary {
        Some(path) => path.clone(),
        None => release::static_binary(Arch::X86_64, true)?,
    };
    step::start("packing the image");
    let image = image(&args.name, &binary)?;
    let layout = Layout::of(&image)?;
    let folder = workspace().join("target/image");
    layout.write(&folder.join("oci"))?;
    let archive = folder.join(format!("kubeferry-{VERSION}-{}.oci.tar", Arch::X86_64.name()));
    fs::write(&archive, layout.archive(image.time)?)?;
    step::note(format!("{}: sha256:{}", folder.join("oci").display(), layout.digest));
    step::note(format!("{}: the same as one file, {}", archive.display(), image.name));
    let [compressed, unpacked] = [layout.compressed, layout.unpacked].map(release::size);
    step::note(format!("{compressed} in a registry, {unpacked} on a node"));
    if let Some(root) = &args.rootfs {
        layout::unpack(&folder.join("oci"), root)?;
        step::note(format!("{}: unpacked", root.display()));
    }
    if args.check {
        step::start("building it again");
        let again = Layout::of(&self::image(&args.name, &binary)?)?;
        if again != layout {
            bail!("the same input gave another image: sha256:{} and sha256:{}", layout.digest, again.digest);
        }
        step::note("the digest is the same");
        trial::run(&folder.join("oci"))?;
    }
    Ok(())
}

/// The image of a binary.
fn image(name: &str, binary: &Path) -> anyhow::Result<Image> {
    let pinned = debian::pinned(&fs::read_to_string(debian::pins())?)?;
    let mut files = debian::Files::default();
    for package in &pinned {
        files.unpack(&debian::fetch(package)?)?;
    }
    let names: Vec<&str> = pinned.iter().map(|package| package.name.as_str()).collect();
    let ours = fs::read(binary).with_context(|| binary.display().to_string())?;
    if !libraries::needs(&ours)?.is_static() {
        bail!("{} needs shared libraries, and the image has those of nft alone", binary.display());
    }
    let time = release::time()?;
    let bill = sbom::write(&dependencies::shipped()?, &sha256(&ours), &layout::rfc3339(time), &pinned)?;
    let mut layer = Tree::default();
    layer.program(KUBEFERRY, ours);
    layer.file(BILL, bill);
    layer.file("usr/share/doc/kubeferry/LICENSE", fs::read(workspace().join("LICENSE"))?);
    layer.file("usr/share/doc/kubeferry/licences.md", fs::read(workspace().join("docs/licences.md"))?);
    Ok(Image {
        name: format!("{name}:{VERSION}"),
        arch: Arch::X86_64,
        layers: vec![("nft and authorities of Debian 12".into(), tools(&files, &names)?), ("kubeferry".into(), layer)],
        entrypoint: format!("/{KUBEFERRY}"),
        path: PATH.into(),
        labels: labels(),
        time,
    })
}

/// What is said of the image in it. `deploy/Containerfile` says the same.
fn labels() -> BTreeMap<String, String> {
    let label = |name: &str, value: &str| (format!("org.opencontainers.image.{name}"), value.to_owned());
    BTreeMap::from([
        label("title", "kubeferry"),
        label("description", "Carries packets from Kubernetes service addresses to pods, in place of kube-proxy"),
        label("version", VERSION),
        label(
            "licenses",
            "Apache-2.0 AND (MIT OR GPL-2.0-only) AND GPL-2.0-or-later AND LGPL-2.1-or-later AND MPL-2.0",
        ),
    ])
}

/// `nft`, what it needs, the authorities that Debian trusts, and the terms of the packages that this is of.
fn tools(files: &debian::Files, packages: &[&str]) -> anyhow::Result<Tree> {
    let mut tree = Tree::default();
    // As Debian's merged /usr, whose paths programs and the loader know.
    for name in ["bin", "sbin", "lib", "lib64"] {
        tree.add(&format!("usr/{name}"), Entry::Folder);
        tree.add(name, Entry::Link(format!("usr/{name}")));
    }
    for folder in ["dev", "etc", "proc", "run", "sys", "tmp"] {
        tree.add(folder, Entry::Folder);
    }
    tree.file("etc/passwd", "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n");
    tree.file("etc/group", "root:x:0:\nnogroup:x:65534:\n");
    let places = ["usr/lib/x86_64-linux-gnu", "usr/lib64"];
    let mut wanted = vec![NFT.to_owned()];
    let mut done = std::collections::BTreeSet::new();
    while let Some(path) = wanted.pop() {
        if !done.insert(path.clone()) {
            continue;
        }
        let content = files.get(&path).with_context(|| format!("no pinned package has {path}"))?;
        let needs = libraries::needs(content).with_context(|| path.clone())?;
        tree.program(&path, content);
        wanted.extend(needs.loader.iter().map(|loader| debian::below_usr(loader)));
        for name in &needs.libraries {
            let found = places.iter().map(|place| format!("{place}/{name}")).find(|path| files.get(path).is_some());
            wanted.push(found.with_context(|| format!("{path} needs {name}, which no pinned package has"))?);
        }
    }
    // For a kubeconfig that names no authority; without any, no client can be made. As update-ca-certificates writes it.
    let authorities: Vec<&[u8]> = files.below("usr/share/ca-certificates/").collect();
    anyhow::ensure!(!authorities.is_empty(), "no pinned package has authorities");
    tree.file("etc/ssl/certs/ca-certificates.crt", authorities.concat());
    for package in packages {
        let path = format!("usr/share/doc/{package}/copyright");
        // Some say it for another package of the same source.
        let content = files.get(&path).with_context(|| format!("{package} has no {path}"))?;
        tree.file(&path, content);
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_engine_makes_an_image_that_says_the_same() {
        let text = fs::read_to_string(workspace().join("deploy/Containerfile")).unwrap();
        let (_, last) = text.split_once("\nFROM scratch\n").unwrap();
        let said: Vec<&str> = last.lines().filter(|line| !line.starts_with('#')).collect();
        let labels = labels();
        let mut wanted = vec!["COPY --from=build /rootfs /".to_owned(), format!("ENV PATH={PATH}")];
        wanted.extend(labels.iter().map(|(name, value)| format!("LABEL {name}=\"{value}\"")));
        wanted.push(format!("ENTRYPOINT [\"/{KUBEFERRY}\"]"));
        assert_eq!(said, wanted);
        assert!(text.contains(&format!("-t localhost/kubeferry:{VERSION} .")), "the command at its top");
    }
}
