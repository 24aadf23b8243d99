//! What can be said of the object without a kernel: its sections, and the programs in it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use object::{Object as _, ObjectSection as _};
use serde::Serialize;

use crate::step;

/// Sections that must be there: the types of everything, where they are in the code, and the maps.
const REQUIRED: [&str; 3] = [".BTF", ".BTF.ext", ".maps"];

/// An object that passed the checks.
#[derive(Debug, Serialize)]
pub struct Checked {
    /// The file's size in bytes.
    pub bytes: usize,
    /// The required sections and their sizes in bytes.
    pub sections: BTreeMap<&'static str, u64>,
    /// The programs by name.
    pub programs: Vec<InObject>,
    /// The maps' names, sorted.
    pub maps: Vec<String>,
}

/// A program as it is in the object.
#[derive(Clone, Debug, Serialize)]
pub struct InObject {
    pub name: String,
    /// `classifier`, `cgroup/connect4` and so on: says the type.
    pub section: String,
    /// Instructions of its own, without functions that it calls.
    pub instructions: usize,
}

/// Checks the object and says its size.
///
/// # Errors
/// It is no ELF file that aya can read, a section is missing or empty, or there is no program or no map in it.
pub fn check(path: &Path) -> anyhow::Result<Checked> {
    let data = std::fs::read(path).with_context(|| path.display().to_string())?;
    let checked = read(&data).with_context(|| format!("the BPF object {} is not as it should be", path.display()))?;
    let sections: Vec<String> = checked.sections.iter().map(|(name, size)| format!("{name} {size}")).collect();
    step::note(format!(
        "{} bytes ({}); {} programs, {} maps",
        checked.bytes,
        sections.join(", "),
        checked.programs.len(),
        checked.maps.len()
    ));
    Ok(checked)
}

fn read(data: &[u8]) -> anyhow::Result<Checked> {
    let file = object::File::parse(data)?;
    let mut sections = BTreeMap::new();
    for name in REQUIRED {
        match file.section_by_name(name).map_or(0, |section| section.size()) {
            0 => bail!("it has no section {name}"),
            size => {
                sections.insert(name, size);
            }
        }
    }
    let parsed = aya_obj::Object::parse(data)?;
    let mut programs = Vec::new();
    for (name, program) in &parsed.programs {
        let section = file.section_by_index(object::SectionIndex(program.section_index))?.name()?.to_owned();
        let function = parsed.functions.get(&program.function_key());
        let instructions = function.map_or(0, |function| function.instructions.len());
        programs.push(InObject { name: name.clone(), section, instructions });
    }
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    let mut maps: Vec<String> = parsed.maps.keys().cloned().collect();
    maps.sort();
    ensure!(!programs.is_empty(), "it has no program");
    ensure!(!maps.is_empty(), "it has no map");
    Ok(Checked { bytes: data.len(), sections, programs, maps })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_bpf_object_is_refused() {
        read(b"no ELF file").unwrap_err();
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(read(&own).unwrap_err().to_string(), "it has no section .BTF");
    }
}
