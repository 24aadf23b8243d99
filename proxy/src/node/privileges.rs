//! Rights that are not needed for serving are given up at the start, for good: capabilities leave every set, the bounding set
//! too, and no program that we start (`nft`) gains any.

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::settings::{BackendName, Settings};

/// The highest number that the kernel's capabilities could have.
const LAST: u32 = 63;
/// Ports below this one ask for CAP_NET_BIND_SERVICE.
const UNPRIVILEGED: u16 = 1024;

/// What the programs of the older iptables ask for beside CAP_NET_ADMIN.
pub const FOR_LEGACY_IPTABLES: CapabilitySet = CapabilitySet::NET_RAW;

/// What serving with these settings needs.
pub fn needed(settings: &Settings) -> CapabilitySet {
    let mut needed = CapabilitySet::NET_ADMIN;
    if settings.backend == BackendName::Ebpf {
        needed |= CapabilitySet::BPF | CapabilitySet::PERFMON;
        if settings.ebpf.end_pod_sockets {
            // The one to enter a pod's network namespace, the other to find it by a process that has more rights than we.
            needed |= CapabilitySet::SYS_ADMIN | CapabilitySet::SYS_PTRACE;
        }
    }
    if [settings.healthz, settings.metrics].into_iter().flatten().any(|address| address.port() < UNPRIVILEGED) {
        needed |= CapabilitySet::NET_BIND_SERVICE;
    }
    needed
}

/// Gives up every capability of this thread but those of `keep`, for the programs that it starts as well, whatever user we
/// are. Threads that are there already keep theirs: to be called before there are any. What of `keep` we have; a
/// capability that we never had is none to us, whoever needs it will say so.
///
/// # Errors
/// The kernel refuses, which it does not where it is a Linux of our days.
pub fn keep_only(keep: CapabilitySet) -> io::Result<CapabilitySet> {
    let had = capabilities(None)?;
    let mut kept = had.permitted & keep;
    for number in 0..=LAST {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            // The kernel has no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
            // Whoever is without the right to shrink the set is without what it would give, too: see below.
            Ok(true) if !kept.contains(one) && had.effective.contains(CapabilitySet::SETPCAP) => {
                remove_capability_from_bounding_set(one)?;
            }
            // It could not be handed to a program.
            Ok(false) => kept.remove(one),
            Ok(true) => {}
        }
    }
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    clear_ambient_capability_set()?;
    for one in kept.iter() {
        // So that `nft` has them where we are not root. Where that is forbidden (a securebit), it will say what it lacks.
        let _ = configure_capability_in_ambient_set(one, true);
    }
    // With this, a program that belongs to root or has capabilities of its own gets no more than we have.
    set_no_new_privs(true)?;
    Ok(kept)
}

/// The names, for the log: `NET_ADMIN, BPF`.
pub fn names(set: CapabilitySet) -> String {
    let names: Vec<&str> = set.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{CommonArgs, ServeArgs};

    fn of(change: impl FnOnce(&mut Settings)) -> String {
        let (mut settings, _) =
            Settings::checked(&CommonArgs::default(), &ServeArgs::default(), None, "worker-1").unwrap();
        change(&mut settings);
        names(needed(&settings))
    }

    #[test]
    fn what_is_needed_follows_the_settings() {
        assert_eq!(of(|_| {}), "NET_ADMIN");
        assert_eq!(of(|settings| settings.backend = BackendName::Ebpf), "NET_ADMIN, PERFMON, BPF");
        let pods = of(|settings| {
            settings.backend = BackendName::Ebpf;
            settings.ebpf.end_pod_sockets = true;
        });
        assert_eq!(pods, "NET_ADMIN, SYS_PTRACE, SYS_ADMIN, PERFMON, BPF");
        assert_eq!(of(|settings| settings.ebpf.end_pod_sockets = true), "NET_ADMIN", "nftables ends no sockets");
        let low = of(|settings| settings.metrics = Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(low, "NET_BIND_SERVICE, NET_ADMIN");
    }
}
