//! The crates that a binary is made of: those of the proxy and those of the BPF programs, without what only builds or tests them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, bail};
use cargo_metadata::{CargoOpt, DependencyKind, MetadataCommand, Package};

use crate::cargo::workspace;

/// A crate of one of the two.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Crate {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub licence: String,
    pub repository: Option<String>,
    /// SHA-256 of what the registry served; none for our own.
    pub sha256: Option<String>,
    /// It is one of this repository.
    pub ours: bool,
    pub in_proxy: bool,
    pub in_programs: bool,
    /// Names and versions of the crates that it uses itself.
    pub uses: BTreeSet<(String, String)>,
}

/// All of them, by name and version.
pub type Crates = BTreeMap<(String, String), Crate>;

/// The crates of the binary with the eBPF datapath.
pub fn shipped() -> anyhow::Result<Crates> {
    let mut crates = Crates::new();
    let root = workspace();
    let features = CargoOpt::SomeFeatures(vec!["kubeferry/ebpf".into()]);
    add(&mut crates, &root, Some(features), "kubeferry", |it| it.in_proxy = true)?;
    add(&mut crates, &root.join("proxy-ebpf"), None, "kubeferry-ebpf", |it| it.in_programs = true)?;
    Ok(crates)
}

/// Adds a package of a workspace, and all that it is made of.
fn add(
    crates: &mut Crates,
    folder: &Path,
    features: Option<CargoOpt>,
    root: &str,
    mark: impl Fn(&mut Crate),
) -> anyhow::Result<()> {
    let mut command = MetadataCommand::new();
    command.manifest_path(folder.join("Cargo.toml")).current_dir(folder);
    command.other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned));
    if let Some(features) = features {
        command.features(features);
    }
    let metadata = command.exec().with_context(|| format!("cargo metadata of {}", folder.display()))?;
    let sums = sums(&std::fs::read_to_string(folder.join("Cargo.lock"))?)?;
    let packages: BTreeMap<_, &Package> = metadata.packages.iter().map(|package| (&package.id, package)).collect();
    let resolve = metadata.resolve.as_ref().context("cargo resolved nothing")?;
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let key = |package: &Package| (package.name.to_string(), package.version.to_string());

    let start = metadata.packages.iter().find(|package| package.name.as_str() == root);
    let mut open = vec![&start.with_context(|| format!("no package {root}"))?.id];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let (package, node) = (packages[id], nodes[id]);
        let shipped = |kinds: &[cargo_metadata::DepKindInfo]| kinds.iter().any(|it| it.kind == DependencyKind::Normal);
        let uses: Vec<_> = node.deps.iter().filter(|dep| shipped(&dep.dep_kinds)).map(|dep| &dep.pkg).collect();
        let entry = crates.entry(key(package)).or_insert_with(|| Crate {
            name: package.name.to_string(),
            version: package.version.to_string(),
            licence: String::new(),
            repository: package.repository.clone(),
            sha256: sums.get(&key(package)).cloned(),
            ours: package.source.is_none(),
            in_proxy: false,
            in_programs: false,
            uses: BTreeSet::new(),
        });
        let Some(licence) = &package.license else { bail!("{} {} says no licence", package.name, package.version) };
        // The slash of old manifests means OR.
        entry.licence = licence.replace('/', " OR ").split_whitespace().collect::<Vec<_>>().join(" ");
        entry.uses.extend(uses.iter().map(|id| key(packages[*id])));
        mark(entry);
        open.extend(uses);
    }
    Ok(())
}

/// The sums in a lock file.
fn sums(lock: &str) -> anyhow::Result<BTreeMap<(String, String), String>> {
    let lock: toml_edit::DocumentMut = lock.parse().context("Cargo.lock")?;
    let packages = lock["package"].as_array_of_tables().context("Cargo.lock has no packages")?;
    let text = |package: &toml_edit::Table, field: &str| package.get(field)?.as_str().map(str::to_owned);
    Ok(packages
        .iter()
        .filter_map(|it| Some(((text(it, "name")?, text(it, "version")?), text(it, "checksum")?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_found_and_what_tests_use_is_not() {
        let crates = shipped().unwrap();
        let of = |name: &str| crates.values().find(|it| it.name == name);
        assert!(of("kubeferry").unwrap().in_proxy && !of("kubeferry").unwrap().in_programs);
        assert!(of("aya").unwrap().in_proxy && of("aya-ebpf").unwrap().in_programs);
        let common = of("kubeferry-ebpf-common").unwrap();
        assert!(common.in_proxy && common.in_programs && common.ours && common.sha256.is_none());
        assert_eq!(of("serde").unwrap().sha256.as_ref().unwrap().len(), 64);
        assert!(of("kubeferry").unwrap().uses.iter().any(|(name, _)| name == "tokio"));
        for absent in ["proptest", "rcgen", "xtask", "kubeferry-tests"] {
            assert!(of(absent).is_none(), "{absent}");
        }
    }
}
