//! The flags of `run` with their values, for `/flagz`.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::CommandFactory;

use super::{Cli, go};
use crate::config::schema::{Effect, field_of_flag};

/// Every flag of `run` with the value that the command line gives it; without one, its default where that is a value (what is
/// taken from the node or the mode is none), or nothing. `arguments`
/// begin with the program's name and are those that [`super::parse`] took; empty where they are not those of `run`.
pub fn flags(arguments: impl IntoIterator<Item = OsString>) -> BTreeMap<String, String> {
    let mut command = Cli::command();
    let Ok(matches) = command.try_get_matches_from_mut(go::normalized(arguments.into_iter().collect())) else {
        return BTreeMap::new();
    };
    let (Some(given), Some(run)) = (matches.subcommand_matches("run"), command.find_subcommand("run")) else {
        return BTreeMap::new();
    };
    let arguments = run.get_arguments().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"));
    let value = |argument: &clap::Arg| {
        let name = argument.get_long()?.to_owned();
        let raw = given.get_raw(argument.get_id().as_str()).into_iter().flatten();
        let texts: Vec<_> = raw.map(|text| text.to_string_lossy()).collect();
        let names = argument.get_long_and_visible_aliases().unwrap_or_default();
        Some((name, if texts.is_empty() { default(&names).to_owned() } else { texts.join(",") }))
    };
    arguments.filter_map(value).collect()
}

/// The default of the field that one of these flags sets.
fn default(names: &[&str]) -> &'static str {
    // As a flag, and not in a file.
    if names.contains(&"proxy-mode") {
        return "nftables";
    }
    let Some(field) = names.iter().find_map(|name| field_of_flag(name)) else { return "" };
    let ours = if field.effect == Effect::Honoured { field.ours } else { None };
    let default = ours.unwrap_or(field.default);
    let is_value = !default.contains(' ') && !field.path.starts_with("ebpf.mapSizes.");
    if is_value { default } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> BTreeMap<String, String> {
        flags(line.split(' ').map(OsString::from))
    }

    #[test]
    fn all_flags_are_there_and_those_that_were_given_have_their_values() {
        let flags =
            of("kubeferry run --hostname-override n1 --nodeport-addresses 10.0.0.0/8,fd00::/8 --masquerade-all --once");
        for (name, value) in [
            ("node-name", "n1"),
            ("nodeport-addresses", "10.0.0.0/8,fd00::/8"),
            ("masquerade-all", "true"),
            ("once", "true"),
            ("bind-address-hard-fail", "false"),
            ("init-only", "false"),
            ("cluster-cidr", ""),
            ("healthz-bind-address", "0.0.0.0:10256"),
            ("iptables-min-sync-period", "0s"),
            ("kube-api-qps", "5"),
            ("log-format", "text"),
            ("proxy-mode", "nftables"),
            ("conntrack-min", "131072"),
            ("map-sizes", ""),
            ("xdp", "auto"),
        ] {
            assert_eq!(flags.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!flags.contains_key("help"));
    }

    #[test]
    fn other_commands_have_none() {
        assert!(of("kubeferry status").is_empty() && of("kubeferry --no-such").is_empty());
    }
}
