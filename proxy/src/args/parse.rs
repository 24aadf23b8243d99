//! Reads the command line, and says more than clap does about flags that come from a kube-proxy command line.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::Cli;

/// kube-proxy's flags that nothing here honours yet, and what to do instead of just leaving them out, if there is more.
const KUBE_PROXY_FLAGS: &[(&str, &str)] = &[
    ("cleanup-ipvs", "the command `kubeferry cleanup` removes what Kubeferry made"),
    ("config-sync-period", ""),
    ("conntrack-max-per-core", CONNTRACK),
    ("conntrack-min", CONNTRACK),
    ("conntrack-tcp-be-liberal", CONNTRACK),
    ("conntrack-tcp-timeout-close-wait", CONNTRACK),
    ("conntrack-tcp-timeout-established", CONNTRACK),
    ("conntrack-udp-timeout", CONNTRACK),
    ("conntrack-udp-timeout-stream", CONNTRACK),
    ("feature-gates", ""),
    ("healthz-port", "use --healthz-bind-address (empty turns it off)"),
    ("iptables-localhost-nodeports", "node ports never answer at loopback addresses"),
    ("ipvs-exclude-cidrs", IPVS),
    ("ipvs-min-sync-period", "use --iptables-min-sync-period, it serves every mode"),
    ("ipvs-scheduler", "use --scheduler"),
    ("ipvs-strict-arp", IPVS),
    ("ipvs-sync-period", "use --iptables-sync-period, it serves every mode"),
    ("ipvs-tcp-timeout", IPVS),
    ("ipvs-tcpfin-timeout", IPVS),
    ("ipvs-udp-timeout", IPVS),
    ("kube-api-burst", ""),
    ("kube-api-content-type", ""),
    ("kube-api-qps", ""),
    ("log-flush-frequency", "log lines are written at once"),
    ("log-json-info-buffer-size", "log lines are written at once"),
    ("log-json-split-stream", ""),
    ("log-text-info-buffer-size", "log lines are written at once"),
    ("log-text-split-stream", ""),
    ("metrics-port", "use --metrics-bind-address (empty turns it off)"),
    ("oom-score-adj", "set it from outside, for example with OOMScoreAdjust= of systemd"),
    ("profiling", ""),
    ("proxy-port-range", "kube-proxy does not use it either"),
    ("show-hidden-metrics-for-version", ""),
    ("vmodule", "use --log-level with directives such as info,kubeferry::watch=debug"),
    ("write-config-to", ""),
];

const CONNTRACK: &str = "set the sysctl net.netfilter.nf_conntrack_* from outside";
const IPVS: &str = "there is no IPVS here";

/// Reads the command line, the program's name first.
///
/// # Errors
/// clap's error, `--help` and `--version` included: [`clap::Error::exit`] prints it to the right place and ends the process
/// with the right code. A flag of kube-proxy that is not honoured, or one of ours without its command, is explained.
pub fn parse<I, T>(args: I) -> Result<Cli, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Cli::try_parse_from(args).map_err(explain)
}

fn explain(error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return error };
    let argument = argument.split('=').next().unwrap_or_default().to_owned();
    let Some(name) = argument.strip_prefix("--") else { return error };
    if let Some((_, instead)) = KUBE_PROXY_FLAGS.iter().find(|(flag, _)| *flag == name) {
        let instead = if instead.is_empty() { String::new() } else { format!("; {instead}") };
        return unknown(&format!("kube-proxy's flag {argument} is not honoured yet: remove it{instead}"));
    }
    // A flag of ours that stands before the command, or without one, as in kube-proxy's command lines.
    let commands = Cli::command();
    let knows = |command: &&clap::Command| {
        command.get_arguments().any(|a| {
            let names = a.get_long_and_visible_aliases().unwrap_or_default();
            names.contains(&name)
        })
    };
    match commands.get_subcommands().find(knows) {
        Some(command) if is_top_level(&error) => {
            unknown(&format!("{argument} belongs after a command: kubeferry {} {argument} ...", command.get_name()))
        }
        _ => error,
    }
}

/// Whether the argument was met before any command: the usage line then names none.
fn is_top_level(error: &clap::Error) -> bool {
    match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => usage.to_string().contains("<COMMAND>"),
        _ => false,
    }
}

fn unknown(message: &str) -> clap::Error {
    Cli::command().error(ErrorKind::UnknownArgument, message)
}
