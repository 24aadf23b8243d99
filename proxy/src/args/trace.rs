//! `kubeferry trace`.

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{CommonArgs, duration, source};

/// What `--help` says at first.
pub const ABOUT: &str = "Say where the first packet of a new connection would go and why: which Service and port, policy, \
        endpoints, masquerade, or the reason for a reject or a drop.\n\n\
        The answer is the model's, from the same sources and settings as `run`; no packet is sent. A source among the \
        node's addresses is the node itself: offline those come from the Node object and `--node-addresses`.\n\n\
        With `--live` real packets are followed instead, through the hooks of the datapath of the proxy that runs here, each beside \
        the model's answer. Exit code then: 0 all as the model says, 1 one was not (or an error).";

/// Connections a second that are followed unless told otherwise.
const LIVE_RATE: u32 = 20;

/// `kubeferry trace`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "Examples:\n  \
        kubeferry trace --node-name worker-1 --manifests ./cluster --from 10.244.0.7 --to tcp:10.96.0.10:80\n  \
        kubeferry trace --node-name worker-1 --manifests ./cluster --from 192.0.2.9 --to 'udp:[fd00::12]:30053'\n  \
        kubeferry trace --node-name worker-1 --manifests ./cluster --stdin --output json < flows.jsonl\n\n\
        With --stdin each line is a flow such as {\"from\":\"10.0.0.2\",\"to\":\"tcp:172.30.0.41:80\",\"iif\":\"eth0\"}, \
        and gets one line of answer.\n\n\
        kubeferry trace --live --service default/web --count 10\n  \
        kubeferry trace --live --from 10.244.0.7 --to tcp:10.96.0.10:80 --for 1m --output json")]
pub struct TraceArgs {
    /// Sources and settings, shared with `run` and `plan`.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Source address of the connection, with the port where the scheduler hashes it; IPv6 then as `[fd00::1]:40000`
    #[arg(long, value_name = "IP[:PORT]", required_unless_present_any = ["stdin", "live"], conflicts_with = "stdin",
        value_parser = source)]
    pub from: Option<(IpAddr, Option<u16>)>,
    /// Destination of the connection: protocol (tcp, udp, sctp), address and port; IPv6 as `tcp:[fd00::1]:80`. With --live also an
    /// address alone, or a port alone
    #[arg(long, value_name = "PROTO:IP:PORT", required_unless_present_any = ["stdin", "live"], conflicts_with = "stdin")]
    pub to: Option<String>,
    /// Interface that the packet comes in by, for the detectors that look at interfaces
    #[arg(long, value_name = "NAME", conflicts_with = "stdin")]
    pub iif: Option<String>,
    /// Read flows from standard input, one JSON object a line, and answer one line each
    #[arg(long)]
    pub stdin: bool,
    /// Form of the answers
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub output: TraceOutput,
    /// Follow real packets, the first of each new connection that --from, --to and --service describe, through the running
    /// proxy's datapath, and set the model's answer beside what became of each. Needs CAP_NET_ADMIN in the node's network
    /// namespace with nftables, CAP_BPF with eBPF
    #[arg(long, conflicts_with_all = ["stdin", "iif", "SourceArgs", "DatapathArgs", "EbpfArgs", "LogArgs"])]
    pub live: bool,
    /// With --live: connections to any address (at whichever port) or node port of this Service; NAMESPACE is `default` unless said
    #[arg(long, value_name = "[NAMESPACE/]NAME", requires = "live", conflicts_with = "to")]
    pub service: Option<String>,
    /// With --live: end after so many connections
    #[arg(long, value_name = "N", requires = "live", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// With --live: end after this time, as a Go duration
    #[arg(long, value_name = "DURATION", requires = "live", value_parser = duration)]
    pub r#for: Option<Duration>,
    /// With --live: how many connections a second are followed at most, so that a busy node does not feel it; the others are passed over
    #[arg(long, value_name = "N", default_value_t = LIVE_RATE, requires = "live", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rate: u32,
    /// With --live: where the running proxy serves its metrics (`--metrics-bind-address` of `run`)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10249", requires = "live")]
    pub url: String,
}

/// `kubeferry trace --output`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TraceOutput {
    /// Sentences for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
