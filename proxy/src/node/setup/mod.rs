//! What is set on the node before the first rule: sysctls of connection tracking and our own place when memory is short.
//! `net.ipv4.conf.*.route_localnet` is never touched: node ports do not answer at loopback addresses.

mod conntrack;
mod sysctl;

use std::fs;
use std::io;
use std::path::Path;

pub use conntrack::{Conntrack, limit};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
pub use sysctl::SetupError;

use crate::settings::{BackendName, ServiceMetrics, Settings};

/// What the kernel thinks of ending us when memory is short.
const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Sets what `settings` ask for; a value that is right already is not written. Blocks. Gives what differs and only others may write,
/// and why, which is no reason not to serve: an earlier start has set it, or whoever changed it wanted that.
///
/// # Errors
/// A value cannot be set. With eBPF that is a warning: our connections do not depend on it.
pub fn set_up(settings: &Settings) -> Result<Vec<(String, String)>, SetupError> {
    if let Some(told) = localnet() {
        tracing::warn!("{told}");
    }
    let conntrack = Conntrack::of_this_namespace();
    let needed = settings.backend == BackendName::Nftables;
    if !conntrack.is_there() {
        if !needed {
            // Nobody tracks connections here, we least of all: loading it only for its settings would do harm.
            tracing::info!(
                "the kernel does not track connections, and eBPF does not ask for it: no sysctl of it is set"
            );
            return Ok(Vec::new());
        }
        conntrack.load();
    }
    let accounts = needed && settings.datapath.service_metrics == ServiceMetrics::Full;
    match conntrack.apply(&settings.node.conntrack, accounts) {
        Ok(said) => {
            said.set.iter().for_each(|what| tracing::info!("{what}"));
            said.left.iter().for_each(|what| tracing::warn!("{what}"));
            if needed {
                return Ok(said.refused);
            }
            said.refused.iter().for_each(|(_, why)| without(why));
            Ok(Vec::new())
        }
        Err(error) if !needed => {
            without(&error.to_string());
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// What to tell where packets to loopback addresses are routed, as kube-proxy's iptables mode has it for node ports at 127.0.0.1.
pub fn localnet() -> Option<&'static str> {
    let value = fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").ok()?;
    (value.trim() == "1").then_some(
        "net.ipv4.conf.all.route_localnet is 1: nothing here needs it, and neighbours may reach what listens at loopback addresses \
         (CVE-2020-8558) unless some rule forbids it; set it to 0 unless something else on the node wants it",
    )
}

/// Others on the node may use connection tracking, and kube-proxy would have set this; what eBPF carries does not pass it.
fn without(why: &str) {
    tracing::warn!("{why}; connections of Services do not depend on it with eBPF");
}

/// Sets our own preference to be ended when memory is short. As with kube-proxy, a refusal is told and nothing more.
pub fn set_oom_score(adjustment: i16) {
    match write_oom_score(Path::new(OOM_SCORE_ADJ), adjustment) {
        Ok(()) => {}
        Err(error) => tracing::info!(
            "the OOM score adjustment stays as it is, {adjustment} (oomScoreAdj) was refused: {error}; a lower one than the \
             process was started with needs CAP_SYS_RESOURCE. kubelet gives -997 to pods of priorityClass system-node-critical"
        ),
    }
}

/// Lets the process have as many open files as it may. What many containers are started with, 1024, would be used up by whoever
/// opens so many connections to `/healthz`, and none be left for a sync. Programs of Go (kube-proxy) do this by themselves.
pub fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::info!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// With eBPF, mounts a BPF file system where `--bpffs-root` has none, which serving has no right for.
///
/// # Errors
/// The right is missing (CAP_SYS_ADMIN), or the folder is.
pub fn mount_bpffs(settings: &Settings) -> Result<(), SetupError> {
    // include/uapi/linux/magic.h
    const BPF_FS: i64 = 0xcafe_4a11;
    let root = &settings.ebpf.bpffs_root;
    if settings.backend != BackendName::Ebpf || rustix::fs::statfs(root).is_ok_and(|found| found.f_type == BPF_FS) {
        return Ok(());
    }
    rustix::mount::mount("bpf", root, "bpf", rustix::mount::MountFlags::empty(), c"mode=0700")
        .map_err(|error| SetupError::Mount { path: root.clone(), source: error.into() })?;
    tracing::info!("mounted a BPF file system at {}", root.display());
    Ok(())
}

fn write_oom_score(path: &Path, adjustment: i16) -> io::Result<()> {
    if fs::read_to_string(path)?.trim() == adjustment.to_string() {
        return Ok(());
    }
    fs::write(path, adjustment.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oom_score_that_is_right_is_not_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "-999\n").unwrap();
        write_oom_score(file.path(), -999).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "-999\n");
        write_oom_score(file.path(), 12).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "12");
        assert!(write_oom_score(Path::new("/nonexistent"), 1).is_err());
    }
}
