//! The checked configuration: what `--config` and the flags come to. Every later stage reads this and nothing else.

pub mod change;
mod check;
mod describe;
mod ebpf;
mod effective;
mod merge;
mod mode;
mod node;
mod precedence;
pub mod reload;
mod scheduler;
mod service_metrics;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use check::filter_of_verbosity;
pub use ebpf::{BackendName, BpfLogLevel, EbpfSettings, MapSizes, SocketLb, XdpMode};
pub use mode::ProxyMode;
pub use node::{ConntrackSettings, NodeSettings};
pub use service_metrics::ServiceMetrics;

use crate::args::{CommonArgs, ServeArgs};
use crate::config::{self, Problem, ProxyConfig};
use crate::input::file;
use crate::scheduler::Schedule;

/// The largest configuration file that is read, in bytes; a ConfigMap has no more.
const LARGEST_FILE: u64 = 1 << 20;
/// How many warnings, and how many problems, are named.
const NAMED: usize = 100;

/// Everything that `kubeferry run`, `plan` and `trace` were told.
#[derive(Clone, PartialEq, Debug)]
pub struct Settings {
    /// Which datapath carries the packets.
    pub backend: BackendName,
    /// Whose settings and defaults among kube-proxy's modes are in force.
    pub mode: ProxyMode,
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
    /// `--bind-address`; see [`own_address`](Self::own_address).
    pub bind_address: IpAddr,
    /// How services choose that say nothing themselves (`--scheduler`), and the size of tables of `mh`.
    pub schedule: Schedule,
    /// Whether the datapath counts the connections of endpoints, as some schedulers need.
    pub counts_connections: bool,
    /// The ports of `/healthz` and `/metrics`.
    pub own_ports: BTreeSet<u16>,
    /// What is counted of each service port.
    pub service_metrics: ServiceMetrics,
}

impl Default for DatapathSettings {
    fn default() -> Self {
        Self {
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            masquerade_all: false,
            masquerade_bit: 14,
            node_port_addresses: NodePortAddresses::Primary(Vec::new()),
            bind_address: Ipv4Addr::UNSPECIFIED.into(),
            schedule: Schedule::default(),
            counts_connections: false,
            own_ports: BTreeSet::new(),
            service_metrics: ServiceMetrics::Off,
        }
    }
}

impl DatapathSettings {
    /// The node's primary address of its family, where `--bind-address` gives one: unspecified, it is the Node's.
    pub fn own_address(&self) -> Option<IpAddr> {
        Some(self.bind_address).filter(|ip| !ip.is_unspecified())
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

/// `nodePortAddresses`. A family for which nothing is given, or a /0, means every address of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortAddresses {
    /// The node's primary address of each family (`primary`, the default of nftables mode), and its addresses inside these
    /// CIDRs (beside `primary` since Kubernetes 1.37, KEP-6032).
    Primary(Vec<IpNet>),
    /// The node's addresses inside these CIDRs.
    Cidrs(Vec<IpNet>),
}

impl NodePortAddresses {
    /// As the field has it; empty where node ports answer at all addresses.
    pub fn texts(&self) -> Vec<String> {
        let (first, nets) = match self {
            Self::Primary(nets) => (Some("primary".to_owned()), nets),
            Self::Cidrs(nets) => (None, nets),
        };
        first.into_iter().chain(nets.iter().map(ToString::to_string)).collect()
    }
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
    #[error("{}", Problems(problems))]
    Wrong {
        /// What is wrong.
        problems: Vec<Problem>,
        /// What is said of the rest, as of settings that are right.
        warnings: Vec<String>,
    },
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

/// Settings, and what they were made from.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// For the log: what is unknown, ignored or has no effect, a mode that is taken for another.
    pub warnings: Vec<String>,
    /// The values that were given by the file, or by kube-proxy's flags where there is none.
    pub config: ProxyConfig,
    /// The file as it was read.
    pub file: Option<ConfigFile>,
}

/// A configuration file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigFile {
    /// Its path.
    pub path: PathBuf,
    /// What stood in it.
    pub text: String,
}

impl Settings {
    /// The settings that the flags of `run` ask for, or of `plan` and `trace` with [`ServeArgs::default`]. Reads the
    /// configuration file and, where no name is given, the host's name.
    ///
    /// # Errors
    /// [`SettingsError`]: the file cannot be read, or everything that is wrong at once.
    pub fn load(common: &CommonArgs, serve: &ServeArgs) -> Result<Loaded, SettingsError> {
        let file = match &common.source.config {
            None => None,
            Some(path) => Some(ConfigFile {
                path: path.clone(),
                text: file::read_any(path, LARGEST_FILE)
                    .and_then(file::text)
                    .map_err(|source| SettingsError::File { path: path.clone(), source })?,
            }),
        };
        Self::resolve(common, serve, file, &host_name())
    }

    /// As [`Self::load`], without what the settings were made from.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn from_args(common: &CommonArgs, serve: &ServeArgs) -> Result<(Self, Vec<String>), SettingsError> {
        let loaded = Self::load(common, serve)?;
        Ok((loaded.settings, loaded.warnings))
    }

    /// As [`Self::from_args`], of the text of a configuration file and the host's name.
    ///
    /// # Errors
    /// [`SettingsError::Wrong`].
    pub fn checked(
        common: &CommonArgs,
        serve: &ServeArgs,
        file: Option<&str>,
        host_name: &str,
    ) -> Result<(Self, Vec<String>), SettingsError> {
        let file = file.map(|text| ConfigFile { path: PathBuf::new(), text: text.to_owned() });
        let loaded = Self::resolve(common, serve, file, host_name)?;
        Ok((loaded.settings, loaded.warnings))
    }

    /// The pure part of [`Self::load`]: `host_name` is the host's name.
    ///
    /// # Errors
    /// [`SettingsError::Wrong`].
    pub fn resolve(
        common: &CommonArgs,
        serve: &ServeArgs,
        file: Option<ConfigFile>,
        host_name: &str,
    ) -> Result<Loaded, SettingsError> {
        let decoded = file.as_ref().map(|file| config::decode(&file.text)).unwrap_or_default();
        let (mut config, mut problems, mut warnings) = (decoded.config, decoded.problems, decoded.warnings);
        let (common, serve) = match &file {
            None => (common.clone(), serve.clone()),
            Some(_) => {
                let (common, serve, ignored) = precedence::beside_file(common, serve);
                warnings.extend(ignored);
                (common, serve)
            }
        };
        for (flag, text) in field_flags(&common, &serve) {
            problems.extend(config.set_flag(&flag, &text).err());
        }
        let has_file = file.is_some();
        let given = merge::Inputs { common: &common, serve: &serve, config: &config, has_file, host_name };
        let (settings, more, warned) = check::check(&given);
        problems.extend(more);
        warnings.extend(warned);
        if let Some(more) = beyond_named(&mut warnings) {
            warnings.push(format!("and {more} more warnings"));
        }
        if let Some(more) = beyond_named(&mut problems) {
            let why = format!("{more} more settings are wrong");
            problems.push(Problem { what: "beside these".to_owned(), value: String::new(), why });
        }
        if problems.is_empty() {
            Ok(Loaded { settings, warnings, config, file })
        } else {
            Err(SettingsError::Wrong { problems, warnings })
        }
    }
}

/// Leaves out what is more than anybody reads; how many that was.
fn beyond_named<T>(all: &mut Vec<T>) -> Option<usize> {
    let more = all.len().checked_sub(NAMED).filter(|more| *more > 0)?;
    all.truncate(NAMED);
    Some(more)
}

/// The flags that are no more than their field's value.
fn field_flags(common: &CommonArgs, serve: &ServeArgs) -> Vec<(String, String)> {
    let others = serve.kube_proxy.given().into_iter().chain(serve.kube_proxy_log.given());
    let mut flags: Vec<_> = others.map(|(flag, text)| (flag, text.to_owned())).collect();
    let datapath = &common.datapath;
    let texts = [
        ("hostname-override", common.source.node_name.clone()),
        ("v", common.log.v.map(|level| level.to_string())),
        ("bind-address", datapath.bind_address.clone()),
        ("ipvs-scheduler", datapath.ipvs_scheduler.clone()),
        ("iptables-localhost-nodeports", datapath.iptables_localhost_nodeports.map(|on| on.to_string())),
    ];
    flags.extend(texts.into_iter().filter_map(|(flag, text)| Some((flag.to_owned(), text?))));
    flags
}

/// The host's name.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()
}

#[cfg(test)]
mod tests;
