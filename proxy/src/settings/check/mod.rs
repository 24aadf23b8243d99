//! Makes settings of what was given, by kube-proxy's rules (`validation.go`), and collects everything that is wrong.

mod addresses;
mod detect_local;
mod fields;
mod log;
mod pace;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

pub use log::filter_of_verbosity;

use super::merge::{Given, Inputs};
use super::{BackendName, DatapathSettings, ProxyMode, Settings, Source, ebpf, mode, node, scheduler, service_metrics};
use crate::config::{Problem, go_integer};
use crate::state::convert::sloppy::parse_ip;

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;
const MASQUERADE_BIT: u8 = 14;

/// The settings (of no use where there are problems), the problems, and warnings.
pub(super) fn check(given: &Inputs<'_>) -> (Settings, Vec<Problem>, Vec<String>) {
    let mut check = Check { given, problems: Vec::new(), warnings: Vec::new() };
    let (backend, mode) = mode::check(given, &mut check.problems, &mut check.warnings);
    let bind_address = check.bind_address();
    let (any, loopback): (IpAddr, IpAddr) = if bind_address.is_ipv6() {
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into())
    } else {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into())
    };
    let (serve, config) = (given.serve, given.config);
    let (sync_period, min_sync_period) = check.periods(mode);
    let ipvs = mode == ProxyMode::Ipvs;
    let schedule = scheduler::check(given, backend, ipvs, &mut check.problems, &mut check.warnings);
    let mut settings = Settings {
        backend,
        mode,
        ebpf: ebpf::check(given, &mut check.problems),
        node_name: check.node_name(),
        source: check.source(),
        datapath: DatapathSettings {
            detect_local: check.detect_local(),
            masquerade_all: given.switch(given.datapath().masquerade_all, &format!("{}.masqueradeAll", mode.rules())),
            masquerade_bit: check.masquerade_bit(mode),
            node_port_addresses: check.node_port_addresses(mode),
            bind_address,
            schedule,
            counts_connections: backend.counts_connections(),
            own_ports: BTreeSet::new(),
            service_metrics: service_metrics::check(given, &mut check.problems),
        },
        node_addresses: check.node_addresses(),
        sync_period,
        min_sync_period,
        healthz: check.serving(
            given.text(serve.healthz_bind_address.as_ref(), "--healthz-bind-address", "healthzBindAddress"),
            SocketAddr::new(any, HEALTHZ_PORT),
            ("--healthz-port", serve.healthz_port),
        ),
        metrics: check.serving(
            given.text(serve.metrics_bind_address.as_ref(), "--metrics-bind-address", "metricsBindAddress"),
            SocketAddr::new(loopback, METRICS_PORT),
            ("--metrics-port", serve.metrics_port),
        ),
        bind_hard_fail: given.switch(serve.bind_address_hard_fail, "bindAddressHardFail"),
        profiling: given.switch(None, "enableProfiling"),
        show_hidden_metrics: check.hidden_metrics(),
        node: node::check(given, mode, &mut check.problems, &mut check.warnings),
        once: serve.once,
        log: check.log(),
    };
    settings.log.show_programs(settings.ebpf.log_level);
    settings.datapath.own_ports = [settings.healthz, settings.metrics].iter().flatten().map(SocketAddr::port).collect();
    check.fields();
    check.warnings.extend(config.without_effect(mode::name(mode, backend), |field| mode.reads(field, backend)));
    if backend == BackendName::Nftables {
        check.warnings.extend(ebpf::without_effect(&given.common.ebpf));
    } else {
        check.warnings.extend(ebpf::other_times(config, &settings.node.conntrack));
    }
    (settings, check.problems, check.warnings)
}

struct Check<'a> {
    given: &'a Inputs<'a>,
    problems: Vec<Problem>,
    warnings: Vec<String>,
}

impl Check<'_> {
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

    fn bind_address(&mut self) -> IpAddr {
        let flag = self.given.datapath().bind_address.as_ref();
        let given = self.given.text(flag, "--bind-address", "bindAddress").filter(|g| !g.value.is_empty());
        let ip = given.as_ref().map(|given| parse_ip(&given.value));
        if let (Some(given), Some(None)) = (given, ip) {
            let why = "must be an IP address, or 0.0.0.0 or :: to take the Node's";
            self.problems.push(given.problem(format!("{why}{}", without_blanks(&given.value))));
        }
        ip.flatten().unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    fn masquerade_bit(&mut self, mode: ProxyMode) -> u8 {
        let Some(text) = &self.given.datapath().iptables_masquerade_bit else {
            // The file's bounds were checked when it was read.
            let bit = self.given.config.integer(&format!("{}.masqueradeBit", mode.rules()));
            return bit.and_then(|bit| u8::try_from(bit).ok()).unwrap_or(MASQUERADE_BIT);
        };
        let bit = go_integer(text).and_then(|bit| u8::try_from(bit).ok()).filter(|bit| *bit <= 31);
        bit.unwrap_or_else(|| {
            let given = Given { what: "--iptables-masquerade-bit".to_owned(), value: text.clone() };
            self.problems.push(given.problem("must be a whole number from 0 to 31"));
            MASQUERADE_BIT
        })
    }
}

/// What to add to a message about an address or a range: blanks are easily overlooked.
pub(super) fn without_blanks(text: &str) -> &'static str {
    if text.contains(char::is_whitespace) { ", without blanks" } else { "" }
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
