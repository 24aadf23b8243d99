//! The tables of `docs/configuration.md`: what becomes of every field and every flag of kube-proxy.

use std::fmt::Write;

use clap::CommandFactory;

use super::flags::FLAGS;
use super::schema::{Effect, FIELDS, Field, Kind, field_of_flag};

/// Where the generated part of the file begins and ends.
pub const MARKS: [&str; 2] = ["<!-- generated from proxy/src/config/ -->\n", "<!-- end of the generated part -->\n"];

/// The generated part, in Markdown.
pub fn markdown() -> String {
    let mut text = String::from(
        "\n## Fields, and the flags that set them\n\n\
         | field | flag | holds | kube-proxy's default | ours | here |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    let (theirs, ours): (Vec<&Field>, Vec<&Field>) = FIELDS.iter().partition(|field| field.block() != Some("ebpf"));
    theirs.into_iter().for_each(|field| row(&mut text, field));
    text += "\n## Flags without a field\n\n| flag | here |\n| --- | --- |\n";
    for flag in FLAGS {
        let effect = if flag.refused { "**refused**" } else { "honoured" };
        let _ = writeln!(text, "| `--{}` | {effect}: {} |", flag.name, flag.note);
    }
    text += "\n## Our block `ebpf`\n\n| field | flag | holds | default | here |\n| --- | --- | --- | --- | --- |\n";
    for field in ours {
        let flag = field.flag.map_or_else(String::new, |flag| format!("`--{flag}`"));
        let _ = writeln!(
            text,
            "| `{}` | {flag} | {} | {} | {} |",
            field.path,
            holds(field),
            quoted(field.default),
            here(field)
        );
    }
    text +=
        "\n## Flags that only Kubeferry has\n\nIn force beside `--config`, too.\n\n| flag | here |\n| --- | --- |\n";
    for (name, help) in own_flags() {
        let _ = writeln!(text, "| `--{name}` | {help} |");
    }
    text + "\n"
}

/// The flags of `run` that kube-proxy does not have, and the first sentences of their help.
pub fn own_flags() -> Vec<(String, String)> {
    let command = crate::args::Cli::command();
    let run = command.find_subcommand("run").into_iter();
    let theirs = |name: &str| {
        field_of_flag(name).is_some_and(|field| field.block() != Some("ebpf"))
            || FLAGS.iter().any(|flag| flag.name == name)
    };
    let mut flags = Vec::new();
    for arg in run.flat_map(|run| run.get_arguments()) {
        let names = arg.get_long_and_visible_aliases().unwrap_or_default();
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ").replace('|', "\\|");
        if !names.is_empty() && !names.iter().any(|name| theirs(name)) {
            flags.push((names[0].to_owned(), help));
        }
    }
    flags
}

fn row(text: &mut String, field: &Field) {
    let flag = field.flag.map_or_else(String::new, |flag| format!("`--{flag}`"));
    let ours = field.ours.map_or_else(|| "the same".to_owned(), quoted);
    let ours = if field.default.is_empty() && field.ours.is_none() { String::new() } else { ours };
    let default = quoted(field.default);
    let _ = writeln!(text, "| `{}` | {flag} | {} | {default} | {ours} | {} |", field.path, holds(field), here(field));
}

fn quoted(text: &str) -> String {
    match text {
        "" => String::new(),
        sentence if sentence.contains(' ') => sentence.to_owned(),
        value => format!("`{value}`"),
    }
}

fn here(field: &Field) -> String {
    match (field.effect, field.note) {
        (Effect::Honoured, "") => "honoured".to_owned(),
        (Effect::Honoured, note) => format!("honoured: {note}"),
        (Effect::Warned, note) => format!("**warned about**: {note}"),
    }
}

fn holds(field: &Field) -> String {
    match field.kind {
        Kind::Text => "string".to_owned(),
        Kind::Bool => "boolean".to_owned(),
        Kind::Integer(min, max) => format!("{min} to {max}"),
        Kind::Number => "number".to_owned(),
        Kind::Duration => "duration".to_owned(),
        Kind::Nanoseconds => "duration or ns".to_owned(),
        Kind::Quantity => "bytes".to_owned(),
        Kind::Texts => "list of strings".to_owned(),
        Kind::Switches => "name: boolean".to_owned(),
        Kind::Modules => "list of patterns".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// kube-proxy 1.36's flags: `options.go`, and those of `component-base/logs`.
    const THEIRS: &str = "config write-config-to cleanup init-only feature-gates kubeconfig master kube-api-content-type \
        kube-api-burst kube-api-qps hostname-override bind-address healthz-bind-address metrics-bind-address \
        bind-address-hard-fail profiling show-hidden-metrics-for-version proxy-mode iptables-masquerade-bit masquerade-all \
        iptables-localhost-nodeports iptables-sync-period iptables-min-sync-period ipvs-sync-period ipvs-min-sync-period \
        ipvs-scheduler ipvs-exclude-cidrs ipvs-strict-arp ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout \
        detect-local-mode pod-bridge-interface pod-interface-name-prefix cluster-cidr nodeport-addresses oom-score-adj \
        conntrack-max-per-core conntrack-min conntrack-tcp-timeout-established conntrack-tcp-timeout-close-wait \
        conntrack-tcp-be-liberal conntrack-udp-timeout conntrack-udp-timeout-stream config-sync-period healthz-port \
        metrics-port version logging-format log-flush-frequency v vmodule log-json-split-stream log-json-info-buffer-size \
        log-text-split-stream log-text-info-buffer-size";

    #[test]
    fn every_field_and_every_flag_has_a_row() {
        let text = markdown();
        for flag in THEIRS.split_whitespace() {
            assert!(text.contains(&format!("| `--{flag}` |")), "--{flag}");
        }
        for field in FIELDS {
            let row = text.lines().find(|line| line.starts_with(&format!("| `{}` |", field.path))).expect(field.path);
            assert!(
                row.contains("honoured") || row.contains("**warned about**: ") || field.block() == Some("ebpf"),
                "{row}"
            );
        }
        let warned = FIELDS.iter().filter(|field| field.effect == Effect::Warned);
        assert!(warned.clone().all(|field| !field.note.is_empty()), "each says why");
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert!(rows.iter().all(|row| [3, 6, 7].contains(&columns(row))), "no cell has a bar");
    }

    #[test]
    fn run_takes_every_flag_of_kube_proxy() {
        let command = crate::args::Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let known: Vec<&str> =
            run.get_arguments().flat_map(|arg| arg.get_long_and_visible_aliases().unwrap_or_default()).collect();
        for flag in THEIRS.split_whitespace().filter(|flag| *flag != "version") {
            assert!(known.contains(&flag), "--{flag}");
        }
        for flag in FLAGS.iter().filter(|flag| flag.refused) {
            let error = crate::args::parse(["kubeferry", "run", &format!("--{}=1", flag.name)]).unwrap_err();
            assert!(error.to_string().contains(flag.note), "{error}");
        }
        assert!(own_flags().iter().all(|(name, _)| !THEIRS.split_whitespace().any(|theirs| theirs == name)));
    }

    #[test]
    fn the_file_in_docs_is_the_one_that_is_generated() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once(MARKS[0]).expect(MARKS[0]);
        let (found, after) = rest.split_once(MARKS[1]).expect(MARKS[1]);
        if std::env::var_os("KUBEFERRY_WRITE_DOCS").is_some() {
            std::fs::write(&path, [before, MARKS[0], &markdown(), MARKS[1], after].concat()).unwrap();
            return;
        }
        assert!(
            found == markdown(),
            "docs/configuration.md is out of date: KUBEFERRY_WRITE_DOCS=1 cargo test -p kubeferry --lib config::table"
        );
    }
}
