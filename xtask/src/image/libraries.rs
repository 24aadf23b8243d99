//! What a program needs beside itself, from its ELF file: the loader and the libraries.

use anyhow::Context as _;
use object::Endianness;
use object::elf::{DT_NEEDED, PT_INTERP};
use object::read::elf::{ElfFile64, ProgramHeader as _};

/// The needs of one program or library.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Needs {
    /// The loader's path.
    pub loader: Option<String>,
    /// Names of libraries (`DT_NEEDED`).
    pub libraries: Vec<String>,
}

impl Needs {
    /// Nothing is needed.
    pub fn is_static(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads the needs of an ELF file.
pub fn needs(content: &[u8]) -> anyhow::Result<Needs> {
    let file: ElfFile64<'_, Endianness> = ElfFile64::parse(content).context("no ELF file of 64 bits")?;
    let mut needs = Needs::default();
    for segment in file.elf_program_headers().iter().filter(|segment| segment.p_type(file.endian()) == PT_INTERP) {
        let path = segment.interpreter(file.endian(), content)?.context("no name of the loader")?;
        needs.loader = Some(String::from_utf8(path.to_vec())?);
    }
    let dynamic = file.elf_dynamic_table()?;
    for entry in dynamic.iter().filter(|entry| entry.tag == DT_NEEDED) {
        needs.libraries.push(String::from_utf8(dynamic.string(entry)?.to_vec())?);
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_needs_the_c_library() {
        let needs = needs(&std::fs::read("/proc/self/exe").unwrap()).unwrap();
        assert!(needs.loader.as_ref().is_some_and(|loader| loader.contains("/ld-linux")), "{needs:?}");
        assert!(needs.libraries.contains(&"libc.so.6".to_owned()), "{needs:?}");
        assert!(!needs.is_static());
    }

    #[test]
    fn what_is_no_program_is_refused() {
        super::needs(b"#!/bin/sh\n").unwrap_err();
    }
}
