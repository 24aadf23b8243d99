//! The filter of system calls that container runtimes give a pod which asks for `seccompProfile: RuntimeDefault`, as far as it
//! shows on x86-64: what Docker's and containerd's default profiles refuse, and which of it a capability opens. System calls that
//! are newer than Linux 5.17 are refused here, whatever the runtime's version says of them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use libc::c_long;
use rustix::thread::{CapabilitySet, capabilities};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Refused to everybody.
const NEVER: &[c_long] = &[
    libc::SYS_add_key,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_pivot_root,
    libc::SYS_request_key,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_sysfs,
    libc::SYS_userfaultfd,
    libc::SYS_uselib,
    libc::SYS_ustat,
];
/// Refused to who has not the capability.
const WITH: &[(CapabilitySet, &[c_long])] = &[
    (CapabilitySet::BPF, &[libc::SYS_bpf]),
    (CapabilitySet::PERFMON, &[libc::SYS_perf_event_open]),
    (CapabilitySet::DAC_READ_SEARCH, &[libc::SYS_open_by_handle_at]),
    (CapabilitySet::SYSLOG, &[libc::SYS_syslog]),
    (CapabilitySet::SYS_BOOT, &[libc::SYS_reboot]),
    (CapabilitySet::SYS_CHROOT, &[libc::SYS_chroot]),
    (CapabilitySet::SYS_MODULE, &[libc::SYS_delete_module, libc::SYS_finit_module, libc::SYS_init_module]),
    (CapabilitySet::SYS_NICE, &[libc::SYS_get_mempolicy, libc::SYS_mbind, libc::SYS_set_mempolicy, 450]),
    (CapabilitySet::SYS_PACCT, &[libc::SYS_acct]),
    (CapabilitySet::SYS_PTRACE, &[libc::SYS_kcmp, libc::SYS_pidfd_getfd, libc::SYS_process_madvise]),
    (CapabilitySet::SYS_RAWIO, &[libc::SYS_ioperm, libc::SYS_iopl]),
    (CapabilitySet::SYS_TIME, &[libc::SYS_clock_settime, libc::SYS_settimeofday]),
    (CapabilitySet::SYS_TTY_CONFIG, &[libc::SYS_vhangup]),
    (
        CapabilitySet::SYS_ADMIN,
        &[
            libc::SYS_bpf,
            libc::SYS_fanotify_init,
            libc::SYS_fsconfig,
            libc::SYS_fsmount,
            libc::SYS_fsopen,
            libc::SYS_fspick,
            libc::SYS_lookup_dcookie,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_quotactl,
            443,
            libc::SYS_setdomainname,
            libc::SYS_sethostname,
            libc::SYS_setns,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
        ],
    ),
];
/// What the profiles do not know.
const NEWER: std::ops::RangeInclusive<c_long> = 451..=600;
/// Address families and persona that are refused, and flags of `clone` that make namespaces.
const AF_VSOCK: u64 = 40;
const PERSONAS: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
const NAMESPACES: u64 = 0x7e02_0000;

/// Puts this process under the filter that a container with its capabilities would have, and becomes the program.
///
/// # Errors
/// The kernel takes no filter, or there is no such program.
pub fn exec(program: &OsString, arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let has = capabilities(None)?.permitted;
    // The last one decides with which error, so the one for clone3 comes after.
    for filter in [refusals(has)?, no_clone3(has)?].into_iter().flatten() {
        apply_filter(&filter).context("seccomp")?;
    }
    Err(Command::new(program).args(arguments).exec()).with_context(|| program.display().to_string())
}

fn refusals(has: CapabilitySet) -> Result<Option<BpfProgram>> {
    let opened = |number: &c_long| WITH.iter().any(|(with, numbers)| has.contains(*with) && numbers.contains(number));
    let closed = WITH.iter().flat_map(|(_, numbers)| numbers.iter().copied()).filter(|number| !opened(number));
    let numbers = NEVER.iter().copied().chain(closed).chain(NEWER);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = numbers.map(|number| (number, Vec::new())).collect();
    let argument = |operator, value| SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value);
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![argument(SeccompCmpOp::Eq, AF_VSOCK)?])?]);
    let others = PERSONAS.map(|persona| argument(SeccompCmpOp::Ne, persona)).into_iter().collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(others)?]);
    if !has.contains(CapabilitySet::SYS_ADMIN) {
        let bits = (0..32).map(|bit| 1 << bit).filter(|bit| NAMESPACES & bit != 0);
        let rule = |bit| SeccompRule::new(vec![argument(SeccompCmpOp::MaskedEq(bit), bit)?]);
        rules.insert(libc::SYS_clone, bits.map(rule).collect::<Result<_, _>>()?);
    }
    program(rules, libc::EPERM).map(Some)
}

/// What it would be asked for stands in memory, where a filter cannot look: runtimes say that there is no such call.
fn no_clone3(has: CapabilitySet) -> Result<Option<BpfProgram>> {
    if has.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(None);
    }
    program(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS).map(Some)
}

fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}
