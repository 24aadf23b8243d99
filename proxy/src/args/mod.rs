//! The command line. `--help` of each command is written here, next to the field that it fills.

mod flags;
mod go;
mod groups;
mod kube_proxy;
mod parse;
mod top;
mod trace;

use std::net::IpAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use flags::flags;
pub use groups::{CommonArgs, DatapathArgs, EbpfArgs, LogArgs, ServeArgs, SourceArgs};
pub use kube_proxy::{KubeProxyArgs, KubeProxyLogArgs};
pub use parse::parse;
pub use top::TopArgs;
pub use trace::{TraceArgs, TraceOutput};

use crate::state::convert::sloppy::parse_source;

/// The whole command line of `kubeferry`. [`parse`] reads it with better messages than [`Parser::parse`].
#[derive(Parser, Clone, PartialEq, Eq, Debug)]
#[command(
    name = "kubeferry",
    version = crate::version::TEXT,
    about = "Carries packets from Kubernetes service addresses to pods, in place of kube-proxy",
    long_about = "Carries packets from Kubernetes service addresses to pods, in place of kube-proxy.\n\n\
        It reads Services and EndpointSlices from the API server or from a folder of manifests, and keeps the kernel's \
        nftables table `inet kubeferry` equal to what they ask for. Options that kube-proxy has keep kube-proxy's names.",
    after_help = "Examples:\n  \
        kubeferry run --node-name worker-1 --kubeconfig /etc/kubernetes/proxy.conf\n  \
        kubeferry plan --node-name worker-1 --manifests ./cluster\n  \
        kubeferry trace --node-name worker-1 --manifests ./cluster --from 10.244.0.7 --to tcp:10.96.0.10:80\n  \
        kubeferry status",
    propagate_version = true,
    args_override_self = true,
    max_term_width = 120
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const RUN_ABOUT: &str = "Serve this node: watch Services and EndpointSlices and keep the kernel's rows equal to them.\n\n\
        Needs CAP_NET_ADMIN and the program `nft` (1.0.1 or later); with `--backend ebpf` CAP_BPF, CAP_PERFMON and \
        a BPF file system instead of `nft`. Nothing is written before Services and \
        EndpointSlices have both been listed, nor while another `kubeferry run` serves the same network namespace: its \
        end is waited for, and with `--once` it is an error. SIGTERM ends the process and leaves the rules in force; \
        `kubeferry cleanup` removes them.\n\n\
        Exit code: 0 told to end, or done; 1 an error; 2 a wrong command line; 3 the file of `--config` was changed and says \
        something that only a start takes: start it again.";

const PLAN_ABOUT: &str = "Print what would be programmed, from the same sources and settings as `run`.\n\n\
        Touches nothing and needs no right; `--diff` reads the kernel's table, which needs CAP_NET_ADMIN.";

const COMPLETION_ABOUT: &str = "Print the completions of a shell: source <(kubeferry completion bash)";

const STATUS_ABOUT: &str = "Show what the running proxy serves, its last sync and drift, as its metrics address tells it.\n\n\
        Exit code: 0 healthy, 1 the proxy runs but is not healthy (the last sync failed, or a change has waited too \
        long), 2 it cannot be reached.";

const CLEANUP_ABOUT: &str = "Remove everything that Kubeferry put into the kernel: the table `inet kubeferry` with all its rows, \
        and the programs and maps of eBPF.\n\n\
        Needs CAP_NET_ADMIN. Established connections that nftables translates go on, those that eBPF \
        translates packets for end, after --drain. Stop `kubeferry run` first, which would put all of it back: beside it, this is an error and removes nothing. \
        `--kube-proxy` removes what kube-proxy has left, too, which `run` does by itself after its first sync. \
        Nothing to remove is a success; exit code 1 if something could not be removed: the other steps are done nevertheless.";

/// The commands of `kubeferry`.
#[derive(Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Serve this node: watch the objects and keep the kernel's rows equal to them
    #[command(long_about = RUN_ABOUT)]
    Run(Box<RunArgs>),
    /// Print what would be programmed; touches nothing and needs no right
    #[command(long_about = PLAN_ABOUT)]
    Plan(Box<PlanArgs>),
    /// Say where a new connection would go, and why; touches nothing and needs no right
    #[command(long_about = trace::ABOUT)]
    Trace(Box<TraceArgs>),
    /// Show what the running proxy serves, its last sync and drift
    #[command(long_about = STATUS_ABOUT)]
    Status(StatusArgs),
    /// Watch traffic by Service and endpoint in the terminal
    #[command(long_about = top::ABOUT)]
    Top(TopArgs),
    /// Remove everything that Kubeferry put into the kernel
    #[command(long_about = CLEANUP_ABOUT)]
    Cleanup(CleanupArgs),
    /// Look at a configuration file of kube-proxy
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell
    #[command(long_about = COMPLETION_ABOUT)]
    Completion(CompletionArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man(ManArgs),
}

const CONFIG_CHECK_ABOUT: &str = "Check a KubeProxyConfiguration file as `run --config` would, beside the flags of `run`, and \
        print the configuration in force, with its defaults, as YAML.\n\n\
        Warnings and everything that is wrong go to standard error, each with its field. Touches nothing and needs no \
        right.\n\n\
        Exit code: 0 `run` would start with it, 1 something in it is wrong, 2 it cannot be read (or the command line is \
        wrong).";

/// `kubeferry config`.
#[derive(Subcommand, Clone, PartialEq, Eq, Debug)]
pub enum ConfigCommand {
    /// Check a file and print the configuration in force
    #[command(long_about = CONFIG_CHECK_ABOUT)]
    Check(Box<ConfigCheckArgs>),
    /// Print what becomes of each of kube-proxy's fields and flags, as Markdown
    Fields,
}

/// `kubeferry config check`.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(after_help = "Examples:\n  \
        kubeferry config check /var/lib/kube-proxy/config.conf\n  \
        kubectl -n kube-system get configmap kube-proxy -o jsonpath='{.data.config\\.conf}' | kubeferry config check /dev/stdin")]
pub struct ConfigCheckArgs {
    /// The file
    #[arg(value_name = "FILE", conflicts_with = "config")]
    pub file: std::path::PathBuf,
    /// Sources and settings, as `run` is given them beside the file.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Pace and served addresses, likewise.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `kubeferry run`.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(after_help = "Examples:\n  \
        In a pod, as kube-proxy runs:  kubeferry run --config /var/lib/kube-proxy/config.conf --hostname-override $(NODE_NAME)\n  \
        Outside the cluster:           kubeferry run --node-name worker-1 --kubeconfig /etc/kubernetes/proxy.conf\n  \
        From a folder, both families:  kubeferry run --node-name worker-1 --manifests ./cluster \\\n                                   \
        --cluster-cidr 10.244.0.0/16,fd00:10:244::/56\n  \
        Once, for a check:             kubeferry run --node-name worker-1 --manifests ./cluster --once")]
pub struct RunArgs {
    /// Sources and settings, shared with `plan` and `trace`.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Pace and served addresses.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// `kubeferry plan`.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(after_help = "Examples:\n  \
        kubeferry plan --node-name worker-1 --manifests ./cluster > rules.nft && nft --check --file rules.nft\n  \
        kubeferry plan --node-name worker-1 --kubeconfig ~/.kube/config --diff")]
pub struct PlanArgs {
    /// Sources and settings, shared with `run` and `trace`.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Form of the output: `nft` can be loaded with `nft -f`, `json` holds the
    /// skeleton and chains as text, and under `rows` commands for `nft -j`. With --backend ebpf: lines, or a document
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub output: PlanOutput,
    /// Compare with the kernel and print only what `run` would change
    #[arg(long)]
    pub diff: bool,
}

/// `kubeferry plan --output`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum PlanOutput {
    /// A ruleset that `nft -f` loads.
    #[default]
    Nft,
    /// The rows of every map as one JSON document.
    Json,
}

/// `kubeferry status`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(
    after_help = "Examples:\n  kubeferry status\n  kubeferry status --url http://127.0.0.1:10249/status --output json"
)]
pub struct StatusArgs {
    /// Where the proxy serves its metrics (`--metrics-bind-address` of `run`), with the path /status
    #[arg(long, value_name = "URL", default_value = crate::status::DEFAULT_URL)]
    pub url: String,
    /// Form of the output
    #[arg(long, value_enum, value_name = "FORM", default_value_t)]
    pub output: StatusOutput,
    /// How long to wait for the answer, as a Go duration
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
}

/// `kubeferry status --output`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum StatusOutput {
    /// Tables for people.
    #[default]
    Table,
    /// The document as it is served.
    Json,
}

/// `kubeferry completion`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CompletionArgs {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `kubeferry man`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ManArgs {
    /// The folder, which is made where it is not there
    #[arg(value_name = "DIR")]
    pub folder: std::path::PathBuf,
}

/// `kubeferry cleanup`.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(after_help = "Examples:\n  \
        kubeferry cleanup                     what Kubeferry made\n  \
        kubeferry cleanup --kube-proxy        and what kube-proxy made\n  \
        kubeferry cleanup --drain 10m         with eBPF, when kube-proxy runs again: connections may end by themselves")]
pub struct CleanupArgs {
    /// Remove what kube-proxy has left as well, in any of its modes: nftables tables, iptables chains, ipsets, IPVS
    #[arg(long)]
    pub kube_proxy: bool,
    /// With --kube-proxy: leave virtual servers of IPVS with addresses in these ranges alone
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', requires = "kube_proxy")]
    pub ipvs_exclude_cidrs: Vec<ipnet::IpNet>,
    /// Before the eBPF datapath goes, have it take no new connections and wait until those whose packets it translates have
    /// ended, so long at most, as a Go duration. For a change to another proxy whose rules are there already
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration_or_zero)]
    pub drain: Duration,
    /// Where the BPF file system is mounted, as `run` was told [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR")]
    pub bpffs_root: Option<std::path::PathBuf>,
    /// How it logs.
    #[command(flatten)]
    pub log: LogArgs,
}

/// An address as everywhere else: leading zeros are decimal, and an IPv4-mapped one is the IPv4 address.
fn source(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    parse_source(text).ok_or_else(|| "not an IP address, nor one with a port".to_owned())
}

fn duration_or_zero(text: &str) -> Result<Duration, String> {
    Duration::try_from(crate::config::go_duration(text)?).map_err(|_| "must not be negative".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = crate::config::go_duration(text)?;
    Duration::try_from(duration).ok().filter(|d| !d.is_zero()).ok_or_else(|| "must be greater than 0".to_owned())
}

#[cfg(test)]
mod tests;
