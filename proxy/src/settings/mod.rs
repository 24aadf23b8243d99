//! The checked configuration: what `--config` and the flags come to. Every later stage reads this and nothing else.

mod check;
mod describe;
mod ebpf;
mod merge;
mod node;
mod scheduler;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use ebpf::{BackendName, BpfLogLevel, EbpfSettings, MapSizes, ServiceMetrics, SocketLb, XdpMode};
pub use node::{ConntrackSettings, NodeSettings};

use crate::args::{CommonArgs, RunArgs, ServeArgs};
use crate::config::{self, Problem};
use crate::scheduler::Schedule;

/// Everything that `kubeferry run`, `plan` and `trace` were told.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Which datapath carries the packets.
    pub backend: BackendName,
    /// What only the eBPF datapath reads.
    pub ebpf: EbpfSettings,
    /// Our Node's name (`--node-name`, `--hostname-override`, or the host name), trimmed, lower case.
    pub node_name: Arc<str>,
    /// Where the objects come from.
    pub source: Source,
    /// What the datapath does beside what the objects say.
    pub datapath: DatapathSettings,
    /// The node's addresses for offline use (`--node-addresses`); `run` reads the interfaces as well.
    pub node_addresses: Vec<IpAddr>,
    /// Upper bound between two looks at the kernel for drift, and the retry interval after a failed sync. Default 30 s.
    pub sync_period: Duration,
    /// The least time between the end of a sync and the start of the next. Default 0: a change is applied at once.
    pub min_sync_period: Duration,
    /// `--healthz-bind-address`, default 0.0.0.0:10256; `None` turns it off.
    pub healthz: Option<SocketAddr>,
    /// `--metrics-bind-address`, default 127.0.0.1:10249; `None` turns it off.
    pub metrics: Option<SocketAddr>,
    /// An address that cannot be bound ends the process instead of being retried (`--bind-address-hard-fail`).
    pub bind_hard_fail: bool,
    /// Serve `/debug/pprof` and `/debug/flags/v` at the metrics address (`--profiling`, `enableProfiling`).
    pub profiling: bool,
    /// Show metrics that this version hides and that version, `major.minor`, did not (`showHiddenMetricsForVersion`).
    pub show_hidden_metrics: Option<String>,
    /// What is set on the node itself.
    pub node: NodeSettings,
    /// Sync once and exit (`--once`).
    pub once: bool,
    /// How the program logs.
    pub log: LogSettings,
}

/// The target of the eBPF programs' lines.
const PROGRAMS: &str = "kubeferry::bpf";

/// `--log-format` and `--log-level`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// JSON objects instead of lines for people.
    pub json: bool,
    /// Directives of `tracing_subscriber::EnvFilter`; valid.
    pub filter: String,
}

impl LogSettings {
    /// Lets the lines of the eBPF programs through, unless the filter says something of them.
    fn show_programs(&mut self, level: BpfLogLevel) {
        if level != BpfLogLevel::Off && !self.filter.contains(PROGRAMS) {
            self.filter += &format!(",{PROGRAMS}={}", level.as_str());
        }
    }
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { json: false, filter: "info".to_owned() }
    }
}

/// Where the objects come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// A folder of YAML or JSON manifests (`--manifests`).
    Manifests(PathBuf),
    /// The API server.
    Api {
        /// `--kubeconfig`; without it, and without `server`, the in-cluster configuration.
        kubeconfig: Option<PathBuf>,
        /// `--server` (`--master`): wins over the server that the kubeconfig names.
        server: Option<String>,
    },
}

/// The part of the configuration that decides what happens to packets. Pure stages get only this.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatapathSettings {
    /// How a pod's traffic is told from other traffic.
    pub detect_local: DetectLocal,
    /// Masquerade all traffic to ClusterIPs (`--masquerade-all`).
    pub masquerade_all: bool,
    /// The bit of the packet mark that asks for masquerading, 0 to 31. Default 14.
    pub masquerade_bit: u8,
    /// At which addresses node ports answer.
    pub node_port_addresses: NodePortAddresses,
    /// `--bind-address` where it is not unspecified: the node's primary address of that family.
    pub bind_address: Option<IpAddr>,
    /// How services choose that say nothing themselves (`--scheduler`), and the size of tables of `mh`.
    pub schedule: Schedule,
    /// Whether the datapath counts the connections of endpoints, as some schedulers need.
    pub counts_connections: bool,
}

impl Default for DatapathSettings {
    fn default() -> Self {
        Self {
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: NodePortAddresses::Primary,
            bind_address: None,
            schedule: Schedule::default(),
            counts_connections: false,
        }
    }
}

/// `detectLocalMode` and its argument.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DetectLocal {
    /// The source lies in the cluster CIDR: at most one of each family; none of a family: no detector there.
    ClusterCidr(Vec<IpNet>),
    /// The source lies in the Node's `spec.podCIDRs` (the first of each family).
    NodeCidr,
    /// The packet came in by this interface.
    BridgeInterface(String),
    /// The packet came in by an interface whose name begins so.
    InterfaceNamePrefix(String),
}

/// `nodePortAddresses`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The node's primary address of each family (`primary`, the default of nftables mode).
    Primary,
    /// The node's addresses inside these CIDRs. A family without a CIDR, or with a /0, means every address of it.
    Cidrs(Vec<IpNet>),
}

/// Why there are no settings.
#[derive(thiserror::Error, Debug)]
pub enum SettingsError {
    /// The configuration file cannot be read.
    #[error("--config {}: {source}; give the path of a KubeProxyConfiguration file that can be read", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Everything that is wrong, flags and file together.
    #[error("{}", Problems(.0))]
    Wrong(Vec<Problem>),
}

struct Problems<'a>(&'a [Problem]);

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "{one}"),
            many => {
                write!(f, "{} settings are wrong:", many.len())?;
                many.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl Settings {
    /// The settings of `kubeferry run`, and warnings for the log: fields that are unknown or have no effect, a mode that is
    /// taken for another. Reads the configuration file and, where no name is given, the host's name.
    ///
    /// # Errors
    /// [`SettingsError`]: the file cannot be read, or everything that is wrong at once.
    pub fn from_run(args: &RunArgs) -> Result<(Self, Vec<String>), SettingsError> {
        Self::from_args(&args.common, &args.serve)
    }

    /// The settings of `plan` and `trace`, with [`ServeArgs::default`]; as [`Self::from_run`].
    ///
    /// # Errors
    /// As [`Self::from_run`].
    pub fn from_args(common: &CommonArgs, serve: &ServeArgs) -> Result<(Self, Vec<String>), SettingsError> {
        let file = match &common.source.config {
            None => None,
            Some(path) => Some(
                std::fs::read_to_string(path).map_err(|source| SettingsError::File { path: path.clone(), source })?,
            ),
        };
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::checked(common, serve, file.as_deref(), &host_name)
    }

    /// The pure part of [`Self::from_args`]: `file` is the text of the configuration file, `host_name` the host's name.
    ///
    /// # Errors
    /// [`SettingsError::Wrong`].
    pub fn checked(
        common: &CommonArgs,
        serve: &ServeArgs,
        file: Option<&str>,
        host_name: &str,
    ) -> Result<(Self, Vec<String>), SettingsError> {
        let decoded = file.map(config::decode);
        let has_file = decoded.is_some();
        let decoded = decoded.unwrap_or_default();
        let given = merge::Inputs { common, serve, config: &decoded.config, has_file, host_name };
        let (settings, mut problems, mut warnings) = check::check(&given);
        problems.splice(0..0, decoded.problems);
        warnings.splice(0..0, decoded.warnings);
        if problems.is_empty() { Ok((settings, warnings)) } else { Err(SettingsError::Wrong(problems)) }
    }
}

#[cfg(test)]
mod tests;
