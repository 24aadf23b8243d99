//! A kernel's modules: which of them others need, and their content without compression. Nobody in the virtual machine
//! loads modules when they are asked for, so they are all loaded at its start, in an order that works.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};

use super::kernel::Kernel;

/// The modules of a kernel, each file by the module's name.
#[derive(Debug)]
pub struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: Vec<String>,
}

impl Modules {
    /// Looks for them.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn of(kernel: &Kernel) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        collect(&kernel.modules, &mut files)?;
        let list = kernel.modules.join("modules.builtin");
        let built_in = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
        let built_in = built_in.lines().filter_map(|line| name(Path::new(line))).collect();
        Ok(Self { files, built_in })
    }

    /// The wanted modules and what they need, as names and contents, what is needed first. What is built into the kernel is
    /// left out.
    ///
    /// # Errors
    /// The kernel has no such module, or one that cannot be read.
    pub fn load(&self, wanted: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut loaded = Vec::new();
        for module in wanted {
            self.add(module, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn add(&self, module: &str, loaded: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
        if loaded.iter().any(|(name, _)| name == module) || self.built_in.iter().any(|name| name == module) {
            return Ok(());
        }
        let file = self.files.get(module).with_context(|| format!("the kernel has no module {module}"))?;
        let content = content(file)?;
        for needed in needs(&content).with_context(|| file.display().to_string())? {
            self.add(&needed, loaded)?;
        }
        loaded.push((module.to_owned(), content));
        Ok(())
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some(name) = name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The module in a file: `kernel/net/sched/sch_ingress.ko.xz` is `sch_ingress`. The kernel writes `-` in names as `_`.
fn name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (name, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst").then(|| name.replace('-', "_"))
}

fn content(file: &Path) -> anyhow::Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(file).with_context(|| file.display().to_string()),
    };
    let out = Command::new(tool).args(["-dc"]).arg(file).output().with_context(|| format!("cannot start {tool}"))?;
    if !out.status.success() {
        bail!("{tool} cannot read {}: {}", file.display(), String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(out.stdout)
}

/// The modules that a module names as needed, in the section `.modinfo`.
fn needs(module: &[u8]) -> anyhow::Result<Vec<String>> {
    let file = ElfFile64::<object::Endianness>::parse(module)?;
    let section = file.section_by_name(".modinfo").context("no section .modinfo")?;
    let depends = section.data()?.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"depends="));
    let depends = String::from_utf8_lossy(depends.unwrap_or_default()).into_owned();
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_its_module() {
        let of = |path: &str| name(Path::new(path));
        assert_eq!(of("kernel/net/sched/sch_ingress.ko.xz").as_deref(), Some("sch_ingress"));
        assert_eq!(of("kernel/crypto/xor-blocks.ko").as_deref(), Some("xor_blocks"));
        assert_eq!(of("modules.order"), None);
        assert_eq!(of("x.kopf"), None);
    }
}
