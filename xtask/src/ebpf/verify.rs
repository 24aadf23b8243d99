//! Every program of the object before this kernel's verifier. Nothing is attached: no packet meets a program.

use std::path::Path;

use anyhow::{Context as _, bail};
use aya::EbpfLoader;
use aya::programs::{Program, ProgramError};
use kubeferry_ebpf_common::btf::bit_of;
use serde::Serialize;

use super::object::{Checked, InObject};
use crate::step;

/// Maps are made no larger than this here: the verifier does not mind, the machine's memory does.
const ENTRIES: u32 = 1024;
/// The constant of the programs that says which lines they write, and its values for none and for all.
const LOG_LEVEL: (&str, u8, u8) = ("AYA_LOG_LEVEL", 0, 5);
/// What the kernel says of its types.
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// So many lines of the verifier's log say what it did not like.
const LOG_LINES: usize = 40;

/// What the verifier had to say, as written to the report's file.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// The kernel's release.
    kernel: &'a str,
    object: &'a Checked,
    programs: Vec<Loaded>,
    /// The same with `--bpf-log-level trace`.
    logging: Vec<Loaded>,
}

/// A program that the kernel took.
#[derive(Debug, Serialize)]
struct Loaded {
    #[serde(flatten)]
    program: InObject,
    /// Its type, as aya calls it.
    r#type: String,
    /// Instructions after the kernel's rewriting, functions that it calls included.
    translated: Option<u32>,
    /// Instructions that the verifier looked at, over all ways through the program; it gives up at a million.
    verified: Option<u32>,
    /// Bytes of machine code; 0 where there is no compiler in the kernel.
    jitted_bytes: u32,
}

/// Loads every program, prints what the verifier made of it, and writes all that to `to` as JSON.
///
/// # Errors
/// A program did not load: the end of the verifier's log was printed.
pub fn report(object: &Path, checked: &Checked, to: &Path) -> anyhow::Result<()> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("the kernel's release")?;
    let kernel = kernel.trim();
    step::start(format!("loading {} programs into this kernel, {kernel}", checked.programs.len()));
    let data = std::fs::read(object).with_context(|| object.display().to_string())?;
    let (_, off, all) = LOG_LEVEL;
    let programs = load_all(&data, checked, off)?;
    step::note("with all lines of the log:");
    let logging = load_all(&data, checked, all)?;
    let report = Report { kernel, object: checked, programs, logging };
    std::fs::write(to, serde_json::to_string_pretty(&report)? + "\n").with_context(|| to.display().to_string())?;
    step::note(format!("the report is in {}", to.display()));
    Ok(())
}

/// Loads every program with this level of their log, and prints what the verifier made of it.
fn load_all(data: &[u8], checked: &Checked, level: u8) -> anyhow::Result<Vec<Loaded>> {
    let sizes = small_maps(data)?;
    let mut loader = EbpfLoader::new();
    loader.override_global(LOG_LEVEL.0, &level, true);
    // As the proxy does; else the verifier takes out what depends on it.
    let types = std::fs::read(TYPES).context(TYPES)?;
    let bit = bit_of(&types, "sock", "sk_kern_sock").with_context(|| format!("{TYPES} has no sk_kern_sock"))?;
    loader.override_global("KERNEL_SOCKET_BIT", &bit, true);
    for (name, entries) in &sizes {
        loader.map_max_entries(name, *entries);
    }
    let mut ebpf = loader.load(data).context("making the object's maps")?;
    let (mut programs, mut failed) = (Vec::new(), Vec::new());
    for program in &checked.programs {
        let handle =
            ebpf.program_mut(&program.name).with_context(|| format!("aya knows no program {}", program.name))?;
        match load(handle) {
            Ok(()) => programs.push(describe(program, handle)?),
            Err(error) => {
                step::note(format!("{} ({}) does not load: {}", program.name, program.section, end_of(&error)));
                failed.push(program.name.as_str());
            }
        }
    }
    print(&programs);
    if !failed.is_empty() {
        bail!("the verifier refuses {} of {} programs: {}", failed.len(), checked.programs.len(), failed.join(", "));
    }
    Ok(programs)
}

/// The sizes at which maps are made here.
fn small_maps(object: &[u8]) -> anyhow::Result<Vec<(String, u32)>> {
    let parsed = aya_obj::Object::parse(object)?;
    // Of a ring buffer and of a section, it is the size in bytes.
    let large = parsed.maps.into_iter().filter(|(_, map)| map.key_size() > 0 && map.max_entries() > ENTRIES);
    Ok(large.map(|(name, _)| (name, ENTRIES)).collect())
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        // The datapath has no others. A new kind of hook is added here too, or the report fails.
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

fn describe(program: &InObject, handle: &Program) -> anyhow::Result<Loaded> {
    let info = handle.info().with_context(|| format!("asking the kernel about {}", program.name))?;
    Ok(Loaded {
        program: program.clone(),
        r#type: format!("{:?}", handle.prog_type()),
        // An instruction has eight bytes.
        translated: info.size_translated().map(|bytes| bytes / 8),
        verified: info.verified_instruction_count(),
        jitted_bytes: info.size_jitted(),
    })
}

fn print(programs: &[Loaded]) {
    let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    step::note(format!(
        "{:<16}{:<24}{:<14}{:>8}{:>12}{:>10}{:>8}",
        "program", "section", "type", "object", "translated", "verified", "jitted"
    ));
    for loaded in programs {
        let Loaded { program, r#type, translated, verified, jitted_bytes } = loaded;
        step::note(format!(
            "{:<16}{:<24}{type:<14}{:>8}{:>12}{:>10}{jitted_bytes:>8}",
            program.name,
            program.section,
            program.instructions,
            number(*translated),
            number(*verified)
        ));
    }
}

/// What the kernel said, and the end of the verifier's log, where the reason is.
fn end_of(error: &ProgramError) -> String {
    let ProgramError::LoadError { io_error, verifier_log } = error else { return error.to_string() };
    let log = verifier_log.to_string();
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n        ");
    format!("{io_error}; the end of the verifier's log:\n        {end}")
}
