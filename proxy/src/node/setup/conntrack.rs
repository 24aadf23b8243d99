//! Sysctls of connection tracking, as kube-proxy sets them (pkg/proxy/conntrack/sysctls.go).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::sysctl::{SetupError, Written, write};
use crate::conntrack::{self, Family};
use crate::settings::ConntrackSettings;

/// A limit that follows from the number of CPUs stops here; `min` may be above.
const MOST: u64 = 1_048_576;
/// Entries for each bucket of the hash table.
const ENTRIES_PER_BUCKET: u64 = 4;

/// The files of the kernel's connection tracking.
#[derive(Clone, Debug)]
pub struct Conntrack {
    sysctls: PathBuf,
    hash_size: PathBuf,
    cpus: u64,
}

/// What was done.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Said {
    /// Values that were set, a sentence each.
    pub set: Vec<String>,
    /// Values that stay as they are, and why.
    pub left: Vec<String>,
    /// Values that differ and that this process may not write: the file, and why.
    pub refused: Vec<(String, String)>,
}

/// The greatest number of entries for so many CPUs; `None`: leave it as it is.
pub fn limit(settings: &ConntrackSettings, cpus: u64) -> Option<u64> {
    if settings.max_per_core == 0 {
        return None;
    }
    let scaled = u64::from(settings.max_per_core) * cpus;
    Some(if scaled > MOST { MOST } else { scaled.max(settings.min.into()) })
}

/// Times as the kernel takes them: whole seconds. A part of one is not nothing.
fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0 && time.as_secs() == 0)
}

impl Conntrack {
    /// Those of this thread's network namespace.
    pub fn of_this_namespace() -> Self {
        Self {
            sysctls: "/proc/sys/net/netfilter".into(),
            hash_size: "/sys/module/nf_conntrack/parameters/hashsize".into(),
            cpus: cpus(),
        }
    }

    /// Whether the kernel has it.
    pub fn is_there(&self) -> bool {
        self.sysctls.join("nf_conntrack_max").exists()
    }

    /// Has the kernel load the module, as it does for whoever asks for entries. Where it cannot, applying tells.
    pub fn load(&self) {
        if let Err(error) = conntrack::Conntrack::open().and_then(|ours| ours.entries(Family::V4, conntrack::TCP)) {
            tracing::debug!(%error, "connection tracking was not loaded");
        }
    }

    /// Sets what differs. What was set before a failure stays. `accounts`: the kernel is to count packets and bytes of
    /// connections, those that are there already excepted.
    ///
    /// # Errors
    /// The first value that cannot be set, for another reason than that only others may.
    pub fn apply(&self, settings: &ConntrackSettings, accounts: bool) -> Result<Said, SetupError> {
        let mut said = Said::default();
        if accounts {
            self.set("nf_conntrack_acct", 1, "serviceMetrics of off or connections", &mut said)?;
        }
        if let Some(limit) = limit(settings, self.cpus)
            && self.set("nf_conntrack_max", limit, "conntrack.maxPerCore of 0", &mut said)?
        {
            self.grow_table(limit / ENTRIES_PER_BUCKET, &mut said)?;
        }
        let times = [
            ("tcp_timeout_established", settings.tcp_established_timeout, "conntrack.tcpEstablishedTimeout of 0"),
            ("tcp_timeout_close_wait", settings.tcp_close_wait_timeout, "conntrack.tcpCloseWaitTimeout of 0"),
            ("udp_timeout", settings.udp_timeout, "conntrack.udpTimeout of 0"),
            ("udp_timeout_stream", settings.udp_stream_timeout, "conntrack.udpStreamTimeout of 0"),
        ];
        if settings.tcp_be_liberal {
            self.set("nf_conntrack_tcp_be_liberal", 1, "conntrack.tcpBeLiberal of false", &mut said)?;
        }
        for (name, time, field) in times.into_iter().filter(|(_, time, _)| !time.is_zero()) {
            self.set(&format!("nf_conntrack_{name}"), seconds(time), field, &mut said)?;
        }
        Ok(said)
    }

    /// Whether the setting is as wanted now.
    fn set(&self, name: &str, wanted: u64, field: &'static str, said: &mut Said) -> Result<bool, SetupError> {
        let written = match write(&self.sysctls.join(name), wanted, "CAP_NET_ADMIN", field) {
            Err(error) if error.is_refused() => {
                said.refused.push((format!("net.netfilter.{name}"), error.to_string()));
                return Ok(false);
            }
            written => written?,
        };
        match written {
            Written::Already => {}
            Written::Set(found) => said.set.push(format!("set net.netfilter.{name} from {found} to {wanted}")),
            Written::Foreign(found) => {
                said.left.push(format!(
                    "net.netfilter.{name} stays at {found}, {wanted} was asked for: it is one for the whole machine and \
                     cannot be set from this network namespace; {field} silences this"
                ));
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The hash table for so many entries; a larger one stays.
    fn grow_table(&self, wanted: u64, said: &mut Said) -> Result<(), SetupError> {
        let found = fs::read_to_string(&self.hash_size).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if found.is_some_and(|found| found >= wanted) {
            return Ok(());
        }
        let right = "uid 0 (or CAP_DAC_OVERRIDE)";
        match write(&self.hash_size, wanted, right, "conntrack.maxPerCore of 0") {
            Ok(Written::Set(found)) => said.set.push(format!("set nf_conntrack's hashsize from {found} to {wanted}")),
            Ok(Written::Already) => {}
            // As for kube-proxy: lists grow longer, and everything works.
            Ok(Written::Foreign(_)) | Err(SetupError::ReadOnly { .. } | SetupError::Missing { .. }) => {
                said.left.push(format!(
                    "{} stays as it is, {wanted} was asked for: it cannot be written here. With many connections each \
                     takes longer to find; write it from outside",
                    self.hash_size.display()
                ));
            }
            Err(error) if error.is_refused() => {
                said.refused.push(("nf_conntrack's hashsize".to_owned(), error.to_string()));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// CPUs of the machine, whatever this process may use of them.
fn cpus() -> u64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let counted = count(online.trim()).filter(|cpus| *cpus > 0);
    counted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64))
}

/// How many a list such as `0-3,6` has.
fn count(list: &str) -> Option<u64> {
    list.split(',')
        .map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
            Some(last.checked_sub(first)? + 1)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const NONE: ConntrackSettings = ConntrackSettings {
        max_per_core: 0,
        min: 0,
        tcp_established_timeout: Duration::ZERO,
        tcp_close_wait_timeout: Duration::ZERO,
        tcp_be_liberal: false,
        udp_timeout: Duration::ZERO,
        udp_stream_timeout: Duration::ZERO,
    };
    const FILES: [(&str, &str); 6] = [
        ("nf_conntrack_max", "262144"),
        ("nf_conntrack_tcp_timeout_established", "432000"),
        ("nf_conntrack_tcp_timeout_close_wait", "60"),
        ("nf_conntrack_tcp_be_liberal", "0"),
        ("nf_conntrack_udp_timeout", "30"),
        ("nf_conntrack_udp_timeout_stream", "120"),
    ];

    /// A kernel as it is after booting, with so many CPUs and buckets.
    fn kernel(cpus: u64, buckets: u64) -> (tempfile::TempDir, Conntrack) {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in FILES {
            fs::write(folder.path().join(name), value).unwrap();
        }
        fs::write(folder.path().join("hashsize"), buckets.to_string()).unwrap();
        let conntrack = Conntrack { sysctls: folder.path().into(), hash_size: folder.path().join("hashsize"), cpus };
        (folder, conntrack)
    }

    fn values(conntrack: &Conntrack) -> Vec<String> {
        let names = FILES.iter().map(|(name, _)| *name).chain(["hashsize"]);
        names.map(|name| fs::read_to_string(conntrack.sysctls.join(name)).unwrap()).collect()
    }

    #[test]
    fn the_limit_follows_the_cpus_between_its_bounds() {
        let of = |max_per_core, min, cpus| limit(&ConntrackSettings { max_per_core, min, ..NONE }, cpus);
        assert_eq!(of(32_768, 131_072, 2), Some(131_072), "at least min");
        assert_eq!(of(32_768, 131_072, 8), Some(262_144));
        assert_eq!(of(32_768, 131_072, 64), Some(1_048_576), "and no more than this");
        assert_eq!(of(32_768, 2_000_000, 2), Some(2_000_000), "min has no upper bound");
        assert_eq!(of(32_768, 2_000_000, 64), Some(1_048_576), "unless the CPUs reach theirs first");
        assert_eq!(of(0, 131_072, 8), None, "0 leaves it, whatever min says");
    }

    #[test]
    fn kube_proxys_defaults() {
        let (_folder, conntrack) = kernel(8, 1024);
        let said = conntrack.apply(&ConntrackSettings::default(), false).unwrap();
        assert_eq!(values(&conntrack), ["262144", "86400", "3600", "0", "30", "120", "65536"]);
        assert_eq!(said.set.len(), 3, "the limit was right: {said:?}");
        assert_eq!(
            conntrack.apply(&ConntrackSettings::default(), false).unwrap(),
            Said::default(),
            "nothing is left to do"
        );
    }

    #[test]
    fn zero_leaves_everything_as_it_is() {
        let (_folder, conntrack) = kernel(8, 1024);
        assert_eq!(conntrack.apply(&NONE, false).unwrap(), Said::default());
        assert_eq!(values(&conntrack), ["262144", "432000", "60", "0", "30", "120", "1024"]);
    }

    #[test]
    fn everything_can_be_set() {
        let (_folder, conntrack) = kernel(2, 262_144);
        let settings = ConntrackSettings {
            max_per_core: 1000,
            min: 7,
            tcp_established_timeout: Duration::from_secs(5),
            tcp_close_wait_timeout: Duration::from_secs(6),
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(7),
            udp_stream_timeout: Duration::from_millis(8),
        };
        conntrack.apply(&settings, false).unwrap();
        assert_eq!(values(&conntrack), ["2000", "5", "6", "1", "7", "1", "262144"], "a larger table stays");
    }

    #[test]
    fn the_limit_of_another_network_namespace_is_left_and_told() {
        let (folder, conntrack) = kernel(64, 1024);
        let limit = folder.path().join("nf_conntrack_max");
        fs::set_permissions(&limit, fs::Permissions::from_mode(0o444)).unwrap();
        let said = conntrack.apply(&ConntrackSettings::default(), false).unwrap();
        assert_eq!(values(&conntrack), ["262144", "86400", "3600", "0", "30", "120", "1024"]);
        assert!(said.left.len() == 1 && said.left[0].contains("stays at 262144, 1048576 was asked for"), "{said:?}");
    }

    #[test]
    fn a_kernel_without_connection_tracking_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let none = Conntrack { sysctls: folder.path().into(), hash_size: folder.path().join("hashsize"), cpus: 1 };
        assert!(!none.is_there());
        let error = none.apply(&ConntrackSettings::default(), false).unwrap_err();
        assert!(matches!(error, SetupError::Missing { .. }), "{error}");
        assert_eq!(none.apply(&NONE, false).unwrap(), Said::default(), "who asks for nothing gets no error");
    }

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(
            (count("0-3,6"), count("0"), count("0-63"), count(""), count("3-1")),
            (Some(5), Some(1), Some(64), None, None)
        );
        assert!(cpus() > 0);
    }
}
