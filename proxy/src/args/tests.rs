use clap::CommandFactory;
use clap::error::ErrorKind;

use super::*;
use crate::settings::Settings;

fn run(flags: &[&str]) -> RunArgs {
    let line = ["kubeferry", "run"].iter().chain(flags);
    match parse(line).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

fn refused(line: &[&str]) -> String {
    parse(line).unwrap_err().to_string()
}

#[test]
fn definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn kube_proxys_spellings_are_accepted() {
    let ours = run(&["--node-name", "n1", "--server", "https://h:1", "--log-format", "json"]);
    let theirs = run(&["--hostname-override=n1", "--master=https://h:1", "--logging-format=json"]);
    assert_eq!(ours, theirs);
    assert_eq!(ours.common.source.node_name.as_deref(), Some("n1"));
}

#[test]
fn booleans_are_switches_or_go_booleans() {
    assert_eq!(run(&[]).common.datapath.masquerade_all, None);
    assert_eq!(run(&["--masquerade-all"]).common.datapath.masquerade_all, Some(true));
    assert_eq!(run(&["--masquerade-all=F"]).common.datapath.masquerade_all, Some(false));
    assert!(refused(&["kubeferry", "run", "--masquerade-all=maybe"]).contains("true or false"));
}

#[test]
fn every_boolean_of_kube_proxy_takes_gos_values() {
    // Those of `options.go` and of `component-base/logs`.
    for flag in [
        "cleanup",
        "init-only",
        "bind-address-hard-fail",
        "profiling",
        "masquerade-all",
        "iptables-localhost-nodeports",
        "ipvs-strict-arp",
        "conntrack-tcp-be-liberal",
        "log-text-split-stream",
        "log-json-split-stream",
    ] {
        let plain = run(&[&format!("--{flag}")]);
        assert_ne!(plain, run(&[]), "--{flag}");
        for (texts, on) in
            [(["1", "t", "T", "true", "TRUE", "True"], true), (["0", "f", "F", "false", "FALSE", "False"], false)]
        {
            for text in texts {
                // Without it the last two are refused.
                let gate = "--feature-gates=LoggingAlphaOptions=true";
                let got = run(&[&format!("--{flag}={text}"), gate]);
                let loaded = Settings::resolve(&got.common, &got.serve, None, "n1").map(|loaded| loaded.settings);
                let wanted = run(&[&format!("--{flag}={on}"), gate]);
                let wanted = Settings::resolve(&wanted.common, &wanted.serve, None, "n1").map(|loaded| loaded.settings);
                assert_eq!(loaded.unwrap(), wanted.unwrap(), "--{flag}={text}");
                assert_eq!(
                    (got.serve.cleanup, got.serve.init_only),
                    (on && flag == "cleanup", on && flag == "init-only")
                );
            }
        }
        // As with pflag, a value stands behind `=`: what follows is another argument.
        assert_eq!(run(&[&format!("--{flag}"), "--node-name=n1"]).common.source.node_name.as_deref(), Some("n1"));
    }
    for text in ["yes", "", "2"] {
        assert!(refused(&["kubeferry", "run", &format!("--cleanup={text}")]).contains("true or false"), "{text:?}");
    }
    for (flag, kind) in [("--version", ErrorKind::DisplayVersion), ("--help", ErrorKind::DisplayHelp)] {
        assert_eq!(parse(["kubeferry", "run", &format!("{flag}=true")]).unwrap_err().kind(), kind);
        assert_eq!(run(&[&format!("{flag}=false")]), run(&[]));
    }
    assert_eq!(parse(["kubeferry", "--version=raw"]).unwrap_err().kind(), ErrorKind::DisplayVersion);
}

#[test]
fn every_command_has_the_programs_name_and_version() {
    let wanted = format!("kubeferry {}\n", crate::version::TEXT);
    for line in [
        vec!["--version"],
        vec!["run", "--version"],
        vec!["run", "-V"],
        vec!["config", "--version"],
        vec!["config", "check", "--version"],
    ] {
        let said = parse([["kubeferry"].as_slice(), &line].concat()).unwrap_err();
        assert_eq!((said.kind(), said.to_string()), (ErrorKind::DisplayVersion, wanted.clone()), "{line:?}");
    }
}

#[test]
fn empty_paths_and_numbers_are_read_as_gos() {
    let empty = ["--config=", "--kubeconfig=", "--master=", "--write-config-to="];
    assert_eq!(run(&empty), run(&[]));
    assert_eq!(run(&["--config", "", "--config=a"]).common.source.config, Some("a".into()));
    assert_eq!(run(&["--config=a", "--config="]).common.source.config, None);
    for command in ["plan", "trace", "config"] {
        let mut line = vec!["kubeferry", command];
        line.extend(match command {
            "trace" => ["--stdin"].as_slice(),
            "config" => &["check", "file"],
            _ => &[],
        });
        let with = line.iter().chain(&["--kubeconfig=", "--server="]);
        assert_eq!(parse(with).unwrap(), parse(&line).unwrap(), "{command}");
    }
    let ports = run(&["--healthz-port=0x2800", "--metrics-port=0"]).serve;
    assert_eq!((ports.healthz_port, ports.metrics_port), (Some(10240), Some(0)));
    for port in ["-1", "65536", "x"] {
        assert!(refused(&["kubeferry", "run", &format!("--healthz-port={port}")]).contains("give a port"), "{port}");
    }
    let args = run(&[
        "--conntrack-min=0x10",
        "--oom-score-adj=-0b11",
        "--iptables-masquerade-bit=017",
        "--nodeport-addresses=",
    ]);
    let settings = Settings::resolve(&args.common, &args.serve, None, "n1").unwrap().settings;
    assert_eq!((settings.node.conntrack.min, settings.node.oom_score_adj), (16, -3));
    assert_eq!(settings.datapath.masquerade_bit, 15);
}

#[test]
fn the_last_of_a_repeated_flag_wins_and_lists_may_be_split() {
    let args = run(&["--cluster-cidr=a", "--cluster-cidr=b", "--nodeport-addresses=10.0.0.0/8,fd00::/8"]);
    assert_eq!(args.common.datapath.cluster_cidr.as_deref(), Some("b"));
    assert_eq!(args.common.datapath.nodeport_addresses.unwrap(), ["10.0.0.0/8", "fd00::/8"]);
}

#[test]
fn verbosity_is_a_number_or_alone() {
    for (flags, wanted) in
        [(&["-v=2"][..], 2), (&["-v", "6"], 6), (&["--v=1"], 1), (&["-v"], 4), (&["-v", "--once"], 4)]
    {
        assert_eq!(run(flags).common.log.v, Some(wanted), "{flags:?}");
    }
}

#[test]
fn sources_exclude_each_other() {
    let error = parse(["kubeferry", "run", "--manifests", "d", "--kubeconfig", "f"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ArgumentConflict);
}

#[test]
fn flags_that_kube_proxy_once_had_are_explained() {
    let text = refused(&["kubeferry", "run", "--proxy-port-range=0"]);
    assert!(text.contains("--proxy-port-range is not accepted: gone from kube-proxy too"), "{text}");
    assert!(refused(&["kubeferry", "run", "--cluster-cdir=x"]).contains("--cluster-cidr"));
    assert!(!refused(&["kubeferry", "run", "--nonsense"]).contains("kube-proxy"));
    let text = refused(&["kubeferry", "--oom-score-adj=1"]);
    assert!(text.contains("belongs after a command: kubeferry run --oom-score-adj"), "{text}");
}

#[test]
fn other_flags_of_kube_proxy_keep_their_text() {
    let args = run(&["--oom-score-adj", "-5", "--profiling", "--vmodule=a=1"]);
    assert_eq!(args.serve.kube_proxy.given(), [("profiling".to_owned(), "true"), ("oom-score-adj".to_owned(), "-5")]);
    assert_eq!(args.serve.kube_proxy_log.given(), [("vmodule".to_owned(), "a=1")]);
}

#[test]
fn a_flag_without_its_command_is_told_where_it_belongs() {
    let text = refused(&["kubeferry", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=n1"]);
    assert!(text.contains("kubeferry run --config"), "{text}");
}

#[test]
fn trace_wants_one_flow_or_stdin() {
    let line = |more: &[&str]| {
        let mut line = vec!["kubeferry", "trace", "--manifests", "d"];
        line.extend(more);
        parse(line)
    };
    assert!(line(&["--from", "10.0.0.1", "--to", "tcp:10.96.0.1:80", "--iif", "eth0"]).is_ok());
    assert!(line(&["--stdin", "--output", "json"]).is_ok());
    assert!(line(&["--from", "[fd00::1]:40000", "--to", "tcp:[fd00:1::1]:80"]).is_ok());
    assert!(line(&["--from", "10.0.0.1:x", "--to", "tcp:10.96.0.1:80"]).is_err());
    assert!(line(&["--from", "10.0.0.1"]).is_err());
    assert!(line(&["--stdin", "--from", "10.0.0.1"]).is_err());
    assert!(line(&["--from", "ten", "--to", "tcp:10.96.0.1:80"]).is_err());
}

#[test]
fn help_names_every_flag_and_its_field() {
    let mut command = Cli::command();
    let help = command.find_subcommand_mut("run").unwrap().render_long_help().to_string();
    for text in
        ["SIGTERM", "--cluster-cidr", "[config: clusterCIDR]", "--hostname-override", "0.0.0.0:10256", "Examples:"]
    {
        assert!(help.contains(text), "{text} in\n{help}");
    }
}

#[test]
fn status_waits_for_a_go_duration() {
    let status = |timeout: &str| match parse(["kubeferry", "status", "--timeout", timeout]).map(|cli| cli.command) {
        Ok(Command::Status(args)) => Some(args.timeout),
        _ => None,
    };
    assert_eq!(status("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(status("0"), None);
    assert_eq!(status("5"), None);
}
