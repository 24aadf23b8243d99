//! Groups of flags that several commands share. Values stay text here: `settings` checks them together with the
//! configuration file, so that every mistake is reported at once.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{ArgAction, Args};

use super::kube_proxy::{KubeProxyArgs, KubeProxyLogArgs};

/// What `run`, `plan` and `trace` have in common.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct CommonArgs {
    /// Where the objects come from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// What happens to packets.
    #[command(flatten)]
    pub datapath: DatapathArgs,
    /// What only the eBPF datapath reads.
    #[command(flatten)]
    pub ebpf: EbpfArgs,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// Where the objects come from, and which node we are.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Source of objects")]
pub struct SourceArgs {
    /// Name of the Node that this proxy serves [config: hostnameOverride; default: the host name]
    #[arg(long, visible_alias = "hostname-override", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Folder of YAML or JSON manifests (Services with their status, EndpointSlices, Nodes, ServiceCIDRs), watched for
    /// changes; instead of an API server
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "server"])]
    pub manifests: Option<PathBuf>,

    /// Kubeconfig file with the API server and our credentials [config: clientConnection.kubeconfig; default: the
    /// service account of the pod that we run in]
    #[arg(long, value_name = "FILE", value_parser = path_or_empty())]
    pub kubeconfig: Option<PathBuf>,

    /// URL of the API server; wins over the one in the kubeconfig
    #[arg(long, visible_alias = "master", value_name = "URL")]
    pub server: Option<String>,

    /// KubeProxyConfiguration file (kubeproxy.config.k8s.io/v1alpha1). As with kube-proxy, flags that have a field there are
    /// ignored beside it, with a warning each, but for --hostname-override and logging. `run` notices its changes
    #[arg(long, value_name = "FILE", value_parser = path_or_empty())]
    pub config: Option<PathBuf>,
}

/// What happens to packets.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Datapath")]
pub struct DatapathArgs {
    /// Datapath: `nftables` or `ebpf`, whatever the mode [default: ebpf in mode `ebpf`, else nftables]
    #[arg(long, value_name = "nftables|ebpf")]
    pub backend: Option<String>,

    /// kube-proxy's mode: nftables, or ebpf, which is ours. `iptables` and `ipvs` are accepted: the datapath is nftables, with
    /// the settings and defaults of that mode [config: mode, where none means iptables; default: nftables]
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,

    /// Range of the pods' addresses: one CIDR, or one of each family with a comma (10.244.0.0/16,fd00:10:244::/56). With
    /// --detect-local-mode ClusterCIDR a source outside it is masqueraded on its way to a ClusterIP; unset: no detector
    /// [config: clusterCIDR]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: Option<String>,

    /// How a pod's traffic is told from other traffic: ClusterCIDR, NodeCIDR (the Node's podCIDRs), BridgeInterface or
    /// InterfaceNamePrefix [config: detectLocalMode; default: ClusterCIDR]
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,

    /// The bridge that pods' traffic comes in by, for BridgeInterface [config: detectLocal.bridgeInterface]
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// The beginning of the names of interfaces that pods' traffic comes in by, for InterfaceNamePrefix [config:
    /// detectLocal.interfaceNamePrefix]
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Masquerade all traffic to ClusterIPs, whatever its source [config: masqueradeAll of the mode in force]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = go_bool)]
    pub masquerade_all: Option<bool>,

    /// Bit of the packet mark that asks for masquerading, 0 to 31 [config: masqueradeBit of the mode in force; default:
    /// 14]
    #[arg(long, value_name = "BIT", allow_negative_numbers = true)]
    pub iptables_masquerade_bit: Option<String>,

    /// Addresses of this node at which node ports answer: `primary`, `all` and CIDRs, with commas; a family without any
    /// means all of its addresses. Loopback never answers, nor does `localhost` [config: nodePortAddresses; default:
    /// primary, or all addresses in the modes iptables and ipvs]
    #[arg(long, value_name = "primary|all|CIDR,...", value_delimiter = ',')]
    pub nodeport_addresses: Option<Vec<String>>,

    /// The node's primary address, where it is not to be taken from the Node object; nothing is bound to it [config:
    /// bindAddress; default: 0.0.0.0, take it from the Node]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,

    /// How an endpoint is chosen in mode ipvs, where --scheduler is not given [config: ipvs.scheduler; default: rr]
    #[arg(long, value_name = "NAME")]
    pub ipvs_scheduler: Option<String>,

    /// Without effect: node ports never answer at loopback addresses; `false` ends the warning of it in mode iptables
    /// [config: iptables.localhostNodePorts]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = go_bool)]
    pub iptables_localhost_nodeports: Option<bool>,

    /// How an endpoint is chosen where a Service does not say (annotation kubeferry.dev/scheduler), by ipvsadm's names:
    /// random, rr, wrr, sh, dh, mh; lc, wlc, sed and nq need --backend ebpf [config: ipvs.scheduler of mode ipvs, where rr is
    /// the default; default: random]
    #[arg(long, value_name = "NAME")]
    pub scheduler: Option<String>,

    /// What is counted of each Service: `connections`, new ones; `full`, packets, bytes and active connections too (with ebpf,
    /// packets of those connections that packets are translated for); `off` [default: off]
    #[arg(long, value_name = "off|connections|full")]
    pub service_metrics: Option<String>,

    /// Slots of a table of the scheduler mh, a prime up to 65537: at least a hundred for each endpoint [default: 1009]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub maglev_table_size: Option<String>,

    /// Addresses that the node holds, with commas, beside those of its Node object; `run` reads the interfaces as well
    #[arg(long, value_name = "IP,...", value_delimiter = ',')]
    pub node_addresses: Option<Vec<String>>,
}

/// What only `--backend ebpf` reads.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "eBPF datapath (--backend ebpf)")]
pub struct EbpfArgs {
    /// Interfaces that packets of services pass, as patterns with `*` and `?`, those that come later included [default:
    /// every interface but the ports of bonds; lo is always among them]
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    pub devices: Option<Vec<String>>,

    /// Whether connections from outside to endpoints on other nodes are carried by XDP: `auto`, on drivers that can;
    /// `native`, the same, and drivers that cannot are reported; `generic`, on all, without being faster; `off` [default:
    /// auto]
    #[arg(long, value_name = "auto|native|generic|off")]
    pub xdp: Option<String>,

    /// Interfaces for XDP, as patterns [default: hardware]
    #[arg(long, value_name = "PATTERN,...", value_delimiter = ',')]
    pub xdp_devices: Option<Vec<String>>,

    /// The cgroup (v2) whose sockets are translated when they connect [default: the root of the mounted hierarchy]
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// Which connections are translated when a socket connects: `auto`, those whose whole answer is known then; `all` that
    /// have an endpoint; `off`, none [default: auto]
    #[arg(long, value_name = "auto|all|off")]
    pub socket_lb: Option<String>,

    /// End connected UDP sockets of pods, too, whose endpoint has gone, so that they connect anew; those of the node are ended
    /// in any case. Needs CAP_SYS_ADMIN and CAP_SYS_PTRACE, which are given up otherwise, and the node's process ids (hostPID)
    /// [default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = go_bool)]
    pub end_pod_sockets: Option<bool>,

    /// Where the BPF file system is mounted; maps, programs and attachments live on in its folder `kubeferry` [default:
    /// /sys/fs/bpf]
    #[arg(long, value_name = "DIR")]
    pub bpffs_root: Option<PathBuf>,

    /// Ports that masqueraded connections take, outside of net.ipv4.ip_local_port_range (or reserved in it) and of the node
    /// ports [default: 16384-29999]
    #[arg(long, value_name = "FIRST-LAST")]
    pub masquerade_ports: Option<String>,

    /// Rows that maps have room for: frontends, slots (endpoints of lists), backends (endpoints, once), addresses, devices,
    /// source_ranges, members, flows (two to four for a connection), affinity, sockets (translated and open) [default: room
    /// for 10,000 Services of 10 endpoints; a list of scheduler mh takes as many slots as its table has]
    #[arg(long, value_name = "MAP=ROWS,...", value_delimiter = ',')]
    pub map_sizes: Option<Vec<String>>,

    /// What the programs write to the log about single connections: `warn`, packets that they cannot carry; `info`, those
    /// that they refuse or drop, too; `debug`, new connections; `trace`, sockets that they leave alone [default: off]
    #[arg(long, value_name = "off|error|warn|info|debug|trace")]
    pub bpf_log_level: Option<String>,
}

/// Pace and served addresses; only `run` has these.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Syncing and serving")]
pub struct ServeArgs {
    /// Sync once and exit: 0 only if the kernel holds what was wanted
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, value_name = "BOOL", value_parser = go_bool)]
    pub once: bool,

    /// Do what needs full rights (sysctls of connection tracking), then exit; after that `run` needs CAP_NET_ADMIN only
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, value_name = "BOOL", value_parser = go_bool)]
    pub init_only: bool,

    /// Remove what kube-proxy and Kubeferry left on the node, then exit, as `kubeferry cleanup` does
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value = "false", hide_default_value = true, value_name = "BOOL", value_parser = go_bool)]
    pub cleanup: bool,

    /// Write the configuration in force, with its defaults, to this file as YAML and exit
    #[arg(long, value_name = "FILE", value_parser = path_or_empty())]
    pub write_config_to: Option<PathBuf>,

    /// How soon a failed sync is tried again; after twice this time an unapplied change makes /healthz fail. A Go duration
    /// such as 30s or 1h5m, greater than 0 [config: syncPeriod of the mode in force; default: 30s]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub iptables_sync_period: Option<String>,

    /// Least time between the end of a sync and the start of the next; changes meanwhile are put together. 0s applies a
    /// change at once (kube-proxy's default is 1s) [config: minSyncPeriod of the mode in force; default: 0s]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub iptables_min_sync_period: Option<String>,

    /// Address of /healthz and /livez, as IP or IP:PORT; empty turns it off [config: healthzBindAddress; default:
    /// 0.0.0.0:10256, or `[::]:10256` if the bind address is IPv6]
    #[arg(long, value_name = "IP[:PORT]")]
    pub healthz_bind_address: Option<String>,

    /// Address of /metrics, /status and /proxyMode, as IP or IP:PORT; empty turns it off [config: metricsBindAddress;
    /// default: 127.0.0.1:10249, or `[::1]:10249` if the bind address is IPv6]
    #[arg(long, value_name = "IP[:PORT]")]
    pub metrics_bind_address: Option<String>,

    /// Exit if one of these addresses cannot be bound, instead of trying again every 5s [config: bindAddressHardFail]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = go_bool)]
    pub bind_address_hard_fail: Option<bool>,

    /// Deprecated: port of --healthz-bind-address where that has none; 0 turns it off
    #[arg(long, value_name = "PORT", hide = true, allow_negative_numbers = true, value_parser = go_port)]
    pub healthz_port: Option<u16>,

    /// Deprecated: port of --metrics-bind-address where that has none; 0 turns it off
    #[arg(long, value_name = "PORT", hide = true, allow_negative_numbers = true, value_parser = go_port)]
    pub metrics_port: Option<u16>,

    /// kube-proxy's other flags.
    #[command(flatten)]
    pub kube_proxy: KubeProxyArgs,

    /// kube-proxy's other logging flags.
    #[command(flatten)]
    pub kube_proxy_log: KubeProxyLogArgs,
}

/// How the program logs, to standard error.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Logging")]
pub struct LogArgs {
    /// Form of the log lines: text or json [config: logging.format; default: text]
    #[arg(long, visible_alias = "logging-format", value_name = "FORM")]
    pub log_format: Option<String>,

    /// What is logged: error, warn, info, debug or trace, or directives such as info,kubeferry::watch=debug [default:
    /// info]
    #[arg(long, value_name = "LEVEL", conflicts_with = "v")]
    pub log_level: Option<String>,

    /// kube-proxy's verbosity: 0 to 3 are info, 4 and 5 (and -v alone) debug, 6 and more trace [config:
    /// logging.verbosity]
    #[arg(short, long, value_name = "N", num_args = 0..=1, default_missing_value = "4", action = ArgAction::Set)]
    pub v: Option<u32>,
}

impl SourceArgs {
    /// Takes what is empty for not given, as kube-proxy does with flags that begin empty.
    pub(super) fn forget_empty(&mut self) {
        for path in [&mut self.kubeconfig, &mut self.config] {
            forget_empty(path);
        }
        self.server.take_if(|server| server.is_empty());
    }
}

impl ServeArgs {
    /// As [`SourceArgs::forget_empty`].
    pub(super) fn forget_empty(&mut self) {
        forget_empty(&mut self.write_config_to);
    }
}

fn forget_empty(path: &mut Option<PathBuf>) {
    path.take_if(|path| path.as_os_str().is_empty());
}

/// clap's own parser of paths refuses the empty one.
fn path_or_empty() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Ports as Go's flags take them.
fn go_port(text: &str) -> Result<u16, String> {
    let port = crate::config::go_integer(text).and_then(|port| u16::try_from(port).ok());
    port.ok_or_else(|| "give a port, 0 to 65535".to_owned())
}

/// Booleans as Go's flags take them.
fn go_bool(text: &str) -> Result<bool, String> {
    crate::config::go_bool(text).ok_or_else(|| "give true or false".to_owned())
}
