//! What is set on the node itself, beside the datapath. Only `run` does it.

use std::time::Duration;

use ipnet::IpNet;

use super::ProxyMode;
use super::check::without_blanks;
use super::merge::{Inputs, text_of};
use crate::config::Problem;
use crate::state::convert::sloppy::parse_cidr;

/// The longest time that a kernel takes, whatever its clock: it counts in an `int` of ticks, of which each second has 100 or more
/// (`proc_dointvec_jiffies`, kernel/sysctl.c).
const LONGEST: Duration = Duration::from_secs(i32::MAX as u64 / 100);

/// What `run` sets on the node, or does before it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSettings {
    /// Sysctls of connection tracking.
    pub conntrack: ConntrackSettings,
    /// `oomScoreAdj`: the kernel's preference to end this process when memory is short, -1000 to 1000. Default -999.
    pub oom_score_adj: i16,
    /// Do what needs full rights, then exit (`--init-only`).
    pub init_only: bool,
    /// Remove what proxies left, then exit (`--cleanup`).
    pub cleanup: bool,
    /// `ipvs.excludeCIDRs`: virtual servers of IPVS that are not kube-proxy's and stay when its own are removed.
    pub ipvs_excluded: Vec<IpNet>,
}

/// `conntrack`: what becomes of the kernel's connection tracking at the start. Zero, for numbers and times: leave it as it
/// is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConntrackSettings {
    /// `maxPerCore`: entries for each CPU. Default 32768.
    pub max_per_core: u32,
    /// `min`: the least number of entries, of meaning only where `max_per_core` is not 0. Default 131072.
    pub min: u32,
    /// `tcpEstablishedTimeout`. Default 24 h.
    pub tcp_established_timeout: Duration,
    /// `tcpCloseWaitTimeout`. Default 1 h.
    pub tcp_close_wait_timeout: Duration,
    /// `tcpBeLiberal`: TCP packets out of the window count as part of their connection. False: leave it as it is.
    pub tcp_be_liberal: bool,
    /// `udpTimeout`, of flows without an answer. Default 0.
    pub udp_timeout: Duration,
    /// `udpStreamTimeout`, of flows with answers. Default 0.
    pub udp_stream_timeout: Duration,
}

impl Default for ConntrackSettings {
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_hours(24),
            tcp_close_wait_timeout: Duration::from_hours(1),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

impl Default for NodeSettings {
    fn default() -> Self {
        Self {
            conntrack: ConntrackSettings::default(),
            oom_score_adj: -999,
            init_only: false,
            cleanup: false,
            ipvs_excluded: Vec::new(),
        }
    }
}

/// The bounds of single values were checked when they were read.
pub(super) fn check(
    given: &Inputs<'_>,
    mode: ProxyMode,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> NodeSettings {
    let config = given.config;
    let mut excluded = Vec::new();
    for (place, text) in config.texts("ipvs.excludeCIDRs").unwrap_or_default().iter().enumerate() {
        let problem = || Problem {
            what: format!("{}[{place}]", config.origin("ipvs.excludeCIDRs")),
            value: format!("{text:?}"),
            why: format!("must be a CIDR such as 192.168.0.0/16{}", without_blanks(text)),
        };
        match parse_cidr(text) {
            Some(cidr) => excluded.push(cidr),
            None if mode == ProxyMode::Ipvs => problems.push(problem()),
            // kube-proxy looks at it in that mode only; here it says what stays when kube-proxy's servers are removed.
            None => warnings.push(format!("{}: no server of IPVS stays by it", problem())),
        }
    }
    let default = NodeSettings::default();
    let number =
        |path: &str, default: u32| config.integer(path).and_then(|value| u32::try_from(value).ok()).unwrap_or(default);
    let mut time = |path: &str, default: Duration| {
        let time = config.duration_or_zero(path).and_then(|value| Duration::try_from(value).ok()).unwrap_or(default);
        if time > LONGEST {
            problems.push(Problem {
                what: config.origin(path),
                value: text_of(time),
                why: format!("must be at most {}: the kernel takes nothing longer", text_of(LONGEST)),
            });
        }
        time
    };
    let theirs = &default.conntrack;
    NodeSettings {
        conntrack: ConntrackSettings {
            max_per_core: number("conntrack.maxPerCore", theirs.max_per_core),
            min: number("conntrack.min", theirs.min),
            tcp_established_timeout: time("conntrack.tcpEstablishedTimeout", theirs.tcp_established_timeout),
            tcp_close_wait_timeout: time("conntrack.tcpCloseWaitTimeout", theirs.tcp_close_wait_timeout),
            tcp_be_liberal: config.bool("conntrack.tcpBeLiberal").unwrap_or(theirs.tcp_be_liberal),
            udp_timeout: time("conntrack.udpTimeout", theirs.udp_timeout),
            udp_stream_timeout: time("conntrack.udpStreamTimeout", theirs.udp_stream_timeout),
        },
        oom_score_adj: config
            .integer("oomScoreAdj")
            .and_then(|value| i16::try_from(value).ok())
            .unwrap_or(default.oom_score_adj),
        init_only: given.serve.init_only,
        cleanup: given.serve.cleanup,
        ipvs_excluded: excluded,
    }
}
