//! `cargo xtask licences`: under which terms the binary's crates are, as `docs/licences.md` says it, and whether `deny.toml`
//! allows them.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use spdx::{Expression, Licensee};

use crate::cargo::workspace;
use crate::dependencies::{self, Crate, Crates};
use crate::step;

/// Write docs/licences.md, the list of the licences of what the binary is made of
#[derive(clap::Args)]
pub struct Args {
    /// Only look whether it is true
    #[arg(long)]
    check: bool,
}

/// Writes or checks the list.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.check {
        return check();
    }
    let crates = dependencies::shipped()?;
    refuse_others(&crates)?;
    std::fs::write(path(), page(&crates)).with_context(|| path().display().to_string())?;
    step::note(path().display().to_string());
    Ok(())
}

/// Whether the list is true and everything in it allowed.
pub fn check() -> anyhow::Result<()> {
    step::start("checking licences");
    let crates = dependencies::shipped()?;
    refuse_others(&crates)?;
    let written = std::fs::read_to_string(path()).with_context(|| path().display().to_string())?;
    if written != page(&crates) {
        bail!("docs/licences.md is not true any more: run `cargo xtask licences`");
    }
    Ok(())
}

fn path() -> PathBuf {
    workspace().join("docs/licences.md")
}

/// Crates under terms that `deny.toml` does not allow.
fn refuse_others(crates: &Crates) -> anyhow::Result<()> {
    let allowed = allowed(&std::fs::read_to_string(workspace().join("deny.toml")).context("deny.toml")?)?;
    let refused: Vec<_> = crates.values().filter(|it| !is_allowed(&allowed, it)).collect();
    if !refused.is_empty() {
        let list: Vec<_> = refused.iter().map(|it| format!("{} {} ({})", it.name, it.version, it.licence)).collect();
        bail!("deny.toml does not allow the licences of {}", list.join(", "));
    }
    Ok(())
}

/// `licenses.allow` of a `deny.toml`.
fn allowed(text: &str) -> anyhow::Result<Vec<Licensee>> {
    let file: toml_edit::DocumentMut = text.parse().context("deny.toml")?;
    let list = file.get("licenses").and_then(|it| it.get("allow")).and_then(|it| it.as_array());
    let names = list.context("deny.toml has no licenses.allow")?.iter().map(|name| name.as_str().unwrap_or_default());
    names.map(|name| Licensee::parse(name).with_context(|| format!("{name:?} in deny.toml"))).collect()
}

fn is_allowed(allowed: &[Licensee], it: &Crate) -> bool {
    Expression::parse(&it.licence)
        .is_ok_and(|terms| terms.evaluate(|one| allowed.iter().any(|ours| ours.satisfies(one))))
}

/// The page.
fn page(crates: &Crates) -> String {
    let mut page = "# Licences\n\n\
        What a binary of Kubeferry with the eBPF datapath is made of, and under which terms. `cargo xtask licences` writes this\n\
        page; `cargo xtask test check` looks whether it is true, and whether `deny.toml` allows all of it. The SBOM of a release\n\
        has the same crates with their sums. What the container image has beside it, `nft` and its libraries, brings its terms in\n\
        `/usr/share/doc`.\n\n\
        | crate | version | licence | proxy | BPF programs |\n| --- | --- | --- | --- | --- |\n"
        .to_owned();
    for it in crates.values() {
        let mark = |is: bool| if is { "✓" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} |",
            it.name,
            it.version,
            it.licence,
            mark(it.in_proxy),
            mark(it.in_programs)
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_true() {
        check().unwrap();
    }

    #[test]
    fn terms_are_weighed() {
        let list = allowed("[licenses]\nallow = [\"MIT\", \"Apache-2.0\"]\n").unwrap();
        let is_allowed = |licence: &str| {
            let mut it = dependencies::shipped().unwrap().into_values().next().unwrap();
            it.licence = licence.into();
            is_allowed(&list, &it)
        };
        assert!(is_allowed("MIT") && is_allowed("GPL-3.0-only OR MIT") && is_allowed("MIT AND Apache-2.0"));
        assert!(!is_allowed("GPL-3.0-only") && !is_allowed("MIT AND GPL-3.0-only") && !is_allowed("whatever you like"));
        allowed("[bans]\n").unwrap_err();
    }
}
