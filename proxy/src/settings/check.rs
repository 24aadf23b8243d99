//! Makes settings of what was given, by kube-proxy's rules (`validation.go`), and collects everything that is wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;

use super::merge::{Given, Inputs};
use super::{
    BackendName, DatapathSettings, DetectLocal, LogSettings, NodePortAddresses, Settings, Source, ebpf, node, scheduler,
};
use crate::backend::HAS_EBPF;
use crate::config::{Problem, go_duration, go_duration_text};
use crate::state::convert::sloppy::{parse_cidr, parse_ip};
use crate::state::objects::Family;

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;
const SYNC_PERIOD: Duration = Duration::from_secs(30);
const MASQUERADE_BIT: u8 = 14;

/// The settings (of no use where there are problems), the problems, and warnings.
pub(super) fn check(given: &Inputs) -> (Settings, Vec<Problem>, Vec<String>) {
    let mut check = Check { given, problems: Vec::new(), warnings: Vec::new() };
    let (backend, mode) = check.mode();
    let bind_address = check.bind_address();
    let is_v6 = bind_address.is_some_and(|ip| ip.is_ipv6());
    let (any, loopback): (IpAddr, IpAddr) = if is_v6 {
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into())
    } else {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into())
    };
    let (serve, config) = (given.serve, given.config);
    let (sync_period, min_sync_period) = check.periods(mode);
    // A file of IPVS mode keeps its scheduler on the eBPF datapath too.
    let ipvs = mode == Mode::Ipvs || (backend == BackendName::Ebpf && config.text("mode") == Some(Mode::Ipvs.name()));
    let schedule = scheduler::check(given, backend, ipvs, &mut check.problems, &mut check.warnings);
    let mut settings = Settings {
        backend,
        ebpf: ebpf::check(&given.common.ebpf, &mut check.problems),
        node_name: check.node_name(),
        source: check.source(),
        datapath: DatapathSettings {
            detect_local: check.detect_local(),
            masquerade_all: given.switch(given.datapath().masquerade_all, &format!("{}.masqueradeAll", mode.rules())),
            masquerade_bit: check.masquerade_bit(mode),
            node_port_addresses: check.node_port_addresses(mode),
            bind_address: bind_address.filter(|ip| !ip.is_unspecified()),
            schedule,
            counts_connections: backend.counts_connections(),
        },
        node_addresses: check.node_addresses(),
        sync_period,
        min_sync_period,
        healthz: check.serving(
            given.text(serve.healthz_bind_address.as_ref(), "--healthz-bind-address", "healthzBindAddress"),
            SocketAddr::new(any, HEALTHZ_PORT),
        ),
        metrics: check.serving(
            given.text(serve.metrics_bind_address.as_ref(), "--metrics-bind-address", "metricsBindAddress"),
            SocketAddr::new(loopback, METRICS_PORT),
        ),
        bind_hard_fail: given.switch(serve.bind_address_hard_fail, "bindAddressHardFail"),
        profiling: given.switch(None, "enableProfiling"),
        show_hidden_metrics: config.text("showHiddenMetricsForVersion").map(str::to_owned),
        node: node::check(given),
        once: serve.once,
        log: check.log(),
    };
    settings.log.show_programs(settings.ebpf.log_level);
    check.warnings.extend(config.not_honoured(mode.name()));
    if backend == BackendName::Nftables {
        check.warnings.extend(ebpf::without_effect(&given.common.ebpf));
    }
    (settings, check.problems, check.warnings)
}

/// kube-proxy's mode: nftables carries them all, but each has fields and defaults of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Iptables,
    Ipvs,
    Nftables,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }

    /// The section with masqueradeAll and masqueradeBit: ipvs mode takes them from `iptables`.
    fn rules(self) -> &'static str {
        match self {
            Self::Iptables | Self::Ipvs => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

struct Check<'a> {
    given: &'a Inputs<'a>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Check<'_> {
    fn mode(&mut self) -> (BackendName, Mode) {
        let given = self.given.text(self.given.datapath().backend.as_ref(), "--backend", "mode");
        let from = given.as_ref().map_or_else(|| "mode is not set".to_owned(), |g| format!("{} {}", g.what, g.value));
        let mode = match given.as_ref().map(|g| g.value.as_str()) {
            Some("nftables") => Mode::Nftables,
            Some("ipvs") => Mode::Ipvs,
            Some("iptables") => Mode::Iptables,
            None | Some("") if self.given.has_file => Mode::Iptables,
            None | Some("") => Mode::Nftables,
            Some("ebpf") if HAS_EBPF => return (BackendName::Ebpf, Mode::Nftables),
            Some(other) => {
                let why = match other {
                    "ebpf" => {
                        "is not in this binary, which was built without eBPF: build one with `cargo xtask build-ebpf`, \
                         then `cargo build --features ebpf`"
                    }
                    _ => "must be nftables or ebpf (iptables and ipvs are accepted and mean nftables)",
                };
                self.problems.extend(given.map(|g| g.problem(why)));
                return (BackendName::Nftables, Mode::Nftables);
            }
        };
        if mode != Mode::Nftables {
            self.warnings.push(format!(
                "{from}: the datapath is nftables; the settings and defaults of kube-proxy's {} mode apply. \
                 Set mode to nftables to make this explicit",
                mode.name()
            ));
        }
        (BackendName::Nftables, mode)
    }

    fn node_name(&mut self) -> Arc<str> {
        let flag = self.given.source().node_name.as_ref();
        let given = self.given.text(flag, "--node-name", "hostnameOverride").filter(|g| !g.value.is_empty());
        let given = given.unwrap_or_else(|| Given { what: "the host name".into(), value: self.given.host_name.into() });
        let name = given.value.trim().to_lowercase();
        if !is_node_name(&name) {
            let why = "is not a Node's name (letters, digits, `-` and `.`, up to 253): give it with --node-name";
            self.problems.push(given.problem(why));
        }
        name.into()
    }

    fn source(&mut self) -> Source {
        let source = self.given.source();
        if let Some(folder) = &source.manifests {
            return Source::Manifests(folder.clone());
        }
        if let Some(server) = &source.server
            && !is_url(server)
        {
            let given = Given { what: "--server".to_owned(), value: server.clone() };
            self.problems.push(given.problem("must be a URL such as https://10.0.0.1:6443"));
        }
        let kubeconfig = source.kubeconfig.clone();
        let kubeconfig = kubeconfig.or_else(|| self.given.config.text("clientConnection.kubeconfig").map(Into::into));
        Source::Api { kubeconfig, server: source.server.clone() }
    }

    fn bind_address(&mut self) -> Option<IpAddr> {
        let flag = self.given.datapath().bind_address.as_ref();
        let given = self.given.text(flag, "--bind-address", "bindAddress").filter(|g| !g.value.is_empty())?;
        let ip = parse_ip(&given.value);
        if ip.is_none() {
            self.problems.push(given.problem("must be an IP address, or 0.0.0.0 or :: to take the Node's"));
        }
        ip
    }

    fn detect_local(&mut self) -> DetectLocal {
        let (given, flags) = (self.given, self.given.datapath());
        let cluster_cidr = self.cluster_cidr();
        let mode = given.text(flags.detect_local_mode.as_ref(), "--detect-local-mode", "detectLocalMode");
        match mode.as_ref().map_or("", |g| g.value.as_str()) {
            "" | "ClusterCIDR" => {
                if cluster_cidr.is_empty() {
                    let text = "no cluster CIDR is set: traffic to ClusterIPs from outside the cluster is not masqueraded \
                                (--cluster-cidr, or another --detect-local-mode)";
                    self.warnings.push(text.to_owned());
                }
                DetectLocal::ClusterCidr(cluster_cidr)
            }
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                let flag = flags.pod_bridge_interface.as_ref();
                let name = given.text(flag, "--pod-bridge-interface", "detectLocal.bridgeInterface");
                DetectLocal::BridgeInterface(self.interface(name, "--pod-bridge-interface"))
            }
            "InterfaceNamePrefix" => {
                let flag = flags.pod_interface_name_prefix.as_ref();
                let name = given.text(flag, "--pod-interface-name-prefix", "detectLocal.interfaceNamePrefix");
                DetectLocal::InterfaceNamePrefix(self.interface(name, "--pod-interface-name-prefix"))
            }
            _ => {
                let why = "must be ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
                self.problems.extend(mode.map(|g| g.problem(why)));
                DetectLocal::ClusterCidr(Vec::new())
            }
        }
    }

    fn cluster_cidr(&mut self) -> Vec<IpNet> {
        let flag = self.given.datapath().cluster_cidr.as_ref();
        let given = self.given.text(flag, "--cluster-cidr", "clusterCIDR").filter(|g| !g.value.is_empty());
        let Some(given) = given else { return Vec::new() };
        let cidrs: Vec<Option<IpNet>> = given.value.split(',').map(parse_cidr).collect();
        match cidrs[..] {
            [Some(one)] => vec![one],
            [Some(one), Some(two)] if Family::of(one.addr()) != Family::of(two.addr()) => vec![one, two],
            _ => {
                let why = "must be a CIDR, or one of each family such as 10.244.0.0/16,fd00:10:244::/56";
                self.problems.push(given.problem(why));
                Vec::new()
            }
        }
    }

    /// An interface's name, or the beginning of one. The kernel's names have up to 15 bytes; quotes and stars mean something
    /// to nft.
    fn interface(&mut self, given: Option<Given<String>>, flag: &str) -> String {
        let given = given.unwrap_or_else(|| Given { what: flag.to_owned(), value: String::new() });
        let bad = |c: char| c.is_whitespace() || c.is_control() || "/:\"*\\".contains(c);
        if given.value.is_empty() {
            self.problems.push(given.problem("must not be empty with this --detect-local-mode"));
        } else if given.value.len() > 15 || given.value.contains(bad) {
            let why = "is no interface's name: up to 15 bytes without space, `/`, `:`, `\"`, `*` and `\\`";
            self.problems.push(given.problem(why));
        }
        given.value
    }

    fn masquerade_bit(&mut self, mode: Mode) -> u8 {
        let Some(text) = &self.given.datapath().iptables_masquerade_bit else {
            // The file's bounds were checked when it was read.
            let bit = self.given.config.integer(&format!("{}.masqueradeBit", mode.rules()));
            return bit.and_then(|bit| u8::try_from(bit).ok()).unwrap_or(MASQUERADE_BIT);
        };
        text.parse().ok().filter(|bit| *bit <= 31).unwrap_or_else(|| {
            let given = Given { what: "--iptables-masquerade-bit".to_owned(), value: text.clone() };
            self.problems.push(given.problem("must be a whole number from 0 to 31"));
            MASQUERADE_BIT
        })
    }

    fn node_port_addresses(&mut self, mode: Mode) -> NodePortAddresses {
        let flag = self.given.datapath().nodeport_addresses.as_ref();
        let given = self.given.texts(flag, "--nodeport-addresses", "nodePortAddresses");
        let texts: Vec<&str> =
            given.iter().flat_map(|g| &g.value).map(|t| t.trim()).filter(|text| !text.is_empty()).collect();
        match texts[..] {
            [] if mode == Mode::Nftables => return NodePortAddresses::Primary,
            [] => return NodePortAddresses::Cidrs(Vec::new()),
            ["primary"] => return NodePortAddresses::Primary,
            _ => {}
        }
        let mut cidrs = Vec::new();
        for text in texts {
            match parse_cidr(text) {
                Some(cidr) => {
                    let loopback = cidr.prefix_len() > 0 && cidr.addr().is_loopback();
                    if loopback {
                        self.warnings
                            .push(format!("node ports never answer at loopback addresses: {cidr} has no effect"));
                    }
                    cidrs.push(cidr);
                }
                None => self.problems.push(Problem {
                    what: given.as_ref().map(|g| g.what.clone()).unwrap_or_default(),
                    value: format!("{text:?}"),
                    why: "must be CIDRs such as 192.168.0.0/16, or `primary` alone".to_owned(),
                }),
            }
        }
        NodePortAddresses::Cidrs(cidrs)
    }

    fn node_addresses(&mut self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for text in self.given.datapath().node_addresses.iter().flatten().filter(|text| !text.trim().is_empty()) {
            match parse_ip(text) {
                Some(ip) => addresses.push(ip),
                None => self.problems.push(Problem {
                    what: "--node-addresses".to_owned(),
                    value: format!("{text:?}"),
                    why: "must be IP addresses, with commas".to_owned(),
                }),
            }
        }
        addresses
    }

    /// The sync period, greater than zero, and the least time between syncs, not greater.
    fn periods(&mut self, mode: Mode) -> (Duration, Duration) {
        let serve = self.given.serve;
        let (sync_path, min_path) = (format!("{}.syncPeriod", mode.name()), format!("{}.minSyncPeriod", mode.name()));
        let sync = self.period(serve.iptables_sync_period.as_ref(), "--iptables-sync-period", &sync_path);
        let min = self.period(serve.iptables_min_sync_period.as_ref(), "--iptables-min-sync-period", &min_path);
        if let Some(sync) = sync.as_ref().filter(|sync| sync.value.is_zero()) {
            self.problems.push(duration_problem(sync, "must be greater than 0".to_owned()));
        }
        let period = sync.as_ref().map_or(SYNC_PERIOD, |sync| sync.value);
        if let Some(min) = min.as_ref().filter(|min| min.value > period) {
            let than = sync.as_ref().map_or("the sync period", |sync| sync.what.as_str());
            let why = format!("must not be greater than {than}, which is {}", text_of(period));
            self.problems.push(duration_problem(min, why));
        }
        (period, min.map_or(Duration::ZERO, |min| min.value))
    }

    fn period(&mut self, flag: Option<&String>, name: &str, path: &str) -> Option<Given<Duration>> {
        let Some(text) = flag else {
            let given = self.given.period(path)?;
            return Duration::try_from(given.value).ok().map(|value| Given { what: given.what, value });
        };
        let read = go_duration(text).and_then(|d| Duration::try_from(d).map_err(|_| "must not be negative".to_owned()));
        match read {
            Ok(value) => Some(Given { what: name.to_owned(), value }),
            Err(why) => {
                self.problems.push(Given { what: name.to_owned(), value: text.clone() }.problem(why));
                None
            }
        }
    }

    /// An address to serve at: IP or IP:PORT; empty is off.
    fn serving(&mut self, given: Option<Given<String>>, default: SocketAddr) -> Option<SocketAddr> {
        let Some(given) = given else { return Some(default) };
        let text = given.value.trim();
        if text.is_empty() {
            return None;
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let address = bare.parse().map(|ip| SocketAddr::new(ip, default.port())).or_else(|_| text.parse()).ok();
        let address = address.filter(|address| address.port() > 0);
        if address.is_none() {
            let why = format!("must be IP:PORT such as {default}, with a port from 1 to 65535, or an IP alone");
            self.problems.push(given.problem(why));
        }
        address
    }

    fn log(&mut self) -> LogSettings {
        let (given, flags) = (self.given, self.given.log());
        let format = given.text(flags.log_format.as_ref(), "--log-format", "logging.format");
        let json = match format.as_ref().map_or("text", |g| g.value.as_str()) {
            "text" => false,
            "json" => true,
            _ => {
                self.problems.extend(format.map(|g| g.problem("must be text or json")));
                false
            }
        };
        if let Some(level) = &flags.log_level {
            if let Err(error) = EnvFilter::try_new(level) {
                let given = Given { what: "--log-level".to_owned(), value: level.clone() };
                let why = "must be error, warn, info, debug, trace, or directives such as info,kubeferry::watch=debug";
                self.problems.push(given.problem(format!("{why} ({error})")));
            }
            return LogSettings { json, filter: level.clone() };
        }
        let verbosity = flags.v.map(i64::from).or_else(|| given.config.integer("logging.verbosity")).unwrap_or(0);
        let filter = match verbosity {
            ..=3 => "info",
            4..=5 => "info,kubeferry=debug",
            _ => "info,kubeferry=trace",
        };
        LogSettings { json, filter: filter.to_owned() }
    }
}

fn duration_problem(given: &Given<Duration>, why: String) -> Problem {
    Problem { what: given.what.clone(), value: text_of(given.value), why }
}

fn text_of(duration: Duration) -> String {
    jiff::SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), go_duration_text)
}

/// A DNS subdomain, as Node names are.
fn is_node_name(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['/', ':']) && !rest.contains(char::is_whitespace))
}
