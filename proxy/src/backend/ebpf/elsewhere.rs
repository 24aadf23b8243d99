//! Programs of ours that go on at devices although our folder of the BPF file system is gone: they are pinned in another one, or a
//! process holds them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier};

use super::load::TC;

/// How long the kernel may take to let go of what was unpinned, on a node that has much else to do.
const LETTING_GO: Duration = Duration::from_secs(8);

/// How often a device is asked while its programs change.
const TRIES: usize = 10;

/// What is known of such programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Elsewhere {
    /// There are none at TCX hooks; devices whose kernel has no such hooks have filters, which are found without any pin.
    Nowhere,
    /// At these devices.
    At(Vec<String>),
    /// Somebody's programs are there, and whose cannot be asked without CAP_SYS_ADMIN.
    Unknown,
}

/// Looks at these devices of this network namespace, once what was unpinned before has had the time to go.
pub fn elsewhere(devices: &[String]) -> Elsewhere {
    let end = Instant::now() + LETTING_GO;
    loop {
        let found = look(devices);
        if !matches!(found, Elsewhere::At(_)) || Instant::now() >= end {
            return found;
        }
        sleep(Duration::from_millis(50));
    }
}

fn look(devices: &[String]) -> Elsewhere {
    let mut at = Vec::new();
    for device in devices {
        match ask(device) {
            Ok(true) => at.push(device.clone()),
            Ok(false) => {}
            Err(error) if is(&error, &[libc::EPERM, libc::EACCES]) => return Elsewhere::Unknown,
            // No such hooks, or the device has gone meanwhile.
            Err(error) => tracing::debug!(device, %error, "cannot be asked for its programs"),
        }
    }
    if at.is_empty() { Elsewhere::Nowhere } else { Elsewhere::At(at) }
}

/// A program that goes between being listed and being looked at makes the whole question fail.
fn ask(device: &str) -> Result<bool, ProgramError> {
    let mut answers = (0..TRIES).map(|_| is_at(device));
    let last = answers.find(|answer| !matches!(answer, Err(error) if is(error, &[libc::ENOENT])));
    last.unwrap_or_else(|| is_at(device))
}

fn is_at(device: &str) -> Result<bool, ProgramError> {
    for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = SchedClassifier::query_tcx(device, hook)?;
        if programs.iter().any(is_ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// By its name, and those of its maps.
fn is_ours(program: &ProgramInfo) -> bool {
    let maps = || program.map_ids().ok().flatten().unwrap_or_default();
    let named = |name: &str| {
        maps().into_iter().any(|id| MapInfo::from_id(id).is_ok_and(|map| map.name_as_str().is_some_and(|n| n == name)))
    };
    let ours = |name: &str| TC.iter().flatten().any(|program| *program == name);
    program.name_as_str().is_some_and(ours) && named("frontends") && named("backends")
}

fn is(error: &ProgramError, numbers: &[i32]) -> bool {
    let ProgramError::SyscallError(error) = error else { return false };
    error.io_error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}
