//! The commands that only say something: odd input, and readers that go away.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::BTreeMap;
use std::io::{PipeWriter, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use kubeferry_tests::binary;
use kubeferry_tests::client::DEADLINE;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::netns::{Netns, output};
use serde_json::{Value, json};

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1]}
cluster-cidr: [10.244.0.0/16]
";
const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}, {name: bad, port: 80000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
";

/// A folder with one Service, one of whose ports is ignored with a complaint, and a configuration with an unknown field.
fn source() -> Source {
    let mut node = Node::parse(NODE).unwrap();
    node.config = Some(BTreeMap::from([("noSuchField".into(), json!(1))]));
    let case = Case { name: "command line".into(), node: node.clone(), steps: Vec::new() };
    let source = Source::new(&case).unwrap();
    source.write(&Step { manifests: with_node(&node, MANIFESTS).unwrap(), rows: Vec::new() }).unwrap();
    source
}

/// The writing end of a pipe that nobody reads.
fn unread() -> PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer
}

#[test]
fn every_command_says_the_programs_name_and_version() {
    let said = |line: &[&str]| {
        let output = Command::new(binary::path().unwrap()).args(line).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{line:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let whole = said(&["--version"]);
    assert!(whole.starts_with("kubeferry ") && whole.lines().count() == 1, "{whole}");
    for line in
        [["run", "--version"].as_slice(), &["run", "--version=raw"], &["top", "-V"], &["config", "check", "--version"]]
    {
        assert_eq!(said(line), whole, "{line:?}");
    }
}

/// Of two endpoints the source may be chosen; an only one is.
#[test]
fn a_source_that_is_an_endpoint_is_masqueraded_if_it_is_chosen() {
    let source = source();
    let said = |manifests: &str, from: &str| {
        let manifests = with_node(&Node::parse(NODE).unwrap(), manifests).unwrap();
        source.write(&Step { manifests, rows: Vec::new() }).unwrap();
        let flow = ["--from", from, "--to", "tcp:10.96.0.10:80"];
        let output = output(source.offline("trace").unwrap().args(flow), "").unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    let first = |lines: &[String]| lines.first().unwrap().split(" → ").nth(1).unwrap().to_owned();
    let alone = said(MANIFESTS, "10.244.1.1");
    assert_eq!(first(&alone), "10.244.1.1:8080 masquerade (10.244.1.1:8080 is the source itself)");
    assert_eq!(alone.last().unwrap(), "the source address is masqueraded, as the endpoint is the source itself");
    let two = MANIFESTS.replace("[{addresses: [10.244.1.1]", "[{addresses: [10.244.1.2]}, {addresses: [10.244.1.1]");
    let both = said(&two, "10.244.1.1");
    assert!(first(&both).ends_with(" (masquerade if 10.244.1.1:8080, which is the source itself)"), "{both:?}");
    assert_eq!(both.last().unwrap(), "the source address is kept, unless the endpoint is the source itself");
    assert_eq!(said(&two, "10.244.1.3").last().unwrap(), "the source address is kept");
}

/// Runs `kubeferry trace --stdin --output json`: whether it succeeded, and its answers.
fn trace(input: &[u8]) -> (bool, Vec<Value>) {
    let source = source();
    let mut command = source.offline("trace").unwrap();
    command.args(["--stdin", "--output", "json"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let answers = String::from_utf8(output.stdout).unwrap();
    (output.status.success(), answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn a_line_that_is_not_utf8_costs_the_other_flows_nothing() {
    let mut input = br#"{"from":"10.244.1.7","to":"tcp:10.96.0.10:80"}"#.to_vec();
    input.extend(b"\n{\"from\":\"\xff\xfe\",\"to\":\"tcp:10.96.0.10:80\"}\n\n\xff\n");
    input.extend(br#"{"from":"10.244.1.7","to":"tcp:10.96.0.11:80"}"#);
    let (success, answers) = trace(&input);
    assert!(!success, "some lines were no flows");
    let said: Vec<_> = answers
        .iter()
        .map(|answer| answer["outcome"].as_str().or(answer["error"].as_str().map(|error| &error[..7])))
        .collect();
    assert_eq!(said, [Some("endpoints"), Some("line 2:"), Some("line 4:"), Some("none")], "{answers:?}");
    assert!(answers[1]["error"].as_str().unwrap().contains("utf-8"), "{answers:?}");
}

#[test]
fn addresses_of_a_flow_are_read_as_those_of_objects() {
    for (from, to) in [
        ("10.244.1.007", "tcp:10.96.0.010:80"),
        ("::ffff:10.244.1.7", "tcp:[::ffff:10.96.0.10]:80"),
        ("::ffff:0af4:0107", "TCP:[::ffff:10.96.0.010]:0080"),
    ] {
        let (success, answers) = trace(json!({"from": from, "to": to}).to_string().as_bytes());
        assert!(success && answers[0]["service"] == "default/web", "{from} {to}: {answers:?}");
        assert_eq!(answers[0]["endpoints"], json!(["10.244.1.1:8080"]));
        assert_eq!(answers[0]["masquerade"], false, "{from} is a pod's");
        let source = source();
        let line = output(source.offline("trace").unwrap().args(["--from", from, "--to", to]), "").unwrap();
        let text = String::from_utf8(line.stdout).unwrap();
        assert!(text.starts_with("from 10.244.1.7 tcp 10.96.0.10:80 → 10.244.1.1:8080\n"), "{from} {to}: {text}");
    }
    for (from, to) in [
        ("10.244.1.256", "tcp:10.96.0.10:80"),
        ("10.244.1", "tcp:10.96.0.10:80"),
        (" 10.244.1.7", "tcp:10.96.0.10:80"),
        ("10.244.1.7", "tcp:10.96.0.10"),
        ("10.244.1.7", "tcp:10.96.0.10:+80"),
        ("10.244.1.7", "tcp:10.96.0.10:65536"),
        ("10.244.1.7", "tcp:[10.96.0.10]:80"),
        ("10.244.1.7", "tcp:fd00::1:80"),
        ("10.244.1.7", "icmp:10.96.0.10:80"),
    ] {
        let (success, answers) = trace(json!({"from": from, "to": to}).to_string().as_bytes());
        assert!(!success && answers[0]["error"].is_string(), "{from} {to}: {answers:?}");
    }
}

#[test]
fn a_reader_that_has_gone_ends_a_command_quietly() {
    let source = source();
    let flow = ["--from", "10.244.1.7", "--to", "tcp:10.96.0.10:80"];
    let mut plan = source.offline("plan").unwrap();
    let mut trace = source.offline("trace").unwrap();
    let mut cleanup = Command::new(binary::path().unwrap());
    let node = Netns::new("quiet").unwrap();
    for (command, name) in [(&mut plan, "plan"), (trace.args(flow), "trace"), (cleanup.arg("cleanup"), "cleanup")] {
        command.stdin(Stdio::null()).stdout(unread()).stderr(Stdio::piped());
        quiet(name, &node.spawn(command).unwrap().wait_with_output().unwrap());
    }
    let mut many = source.offline("trace").unwrap();
    many.arg("--stdin").stdin(Stdio::piped()).stdout(unread()).stderr(Stdio::piped());
    let mut child = many.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Its input does not end: it has to see for itself that nobody listens.
    while stdin.write_all(b"{\"from\":\"10.244.1.7\",\"to\":\"tcp:10.96.0.10:80\"}\n").is_ok() {}
    quiet("trace --stdin", &child.wait_with_output().unwrap());
    for (healthy, code) in [(true, 0), (false, 1)] {
        let output = status(healthy, |command| command.stdout(unread()).stderr(Stdio::piped()));
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

fn quiet(name: &str, output: &Output) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {} {stderr}", output.status);
    let others: Vec<_> =
        stderr.lines().filter(|line| !line.starts_with("warning: ") && !line.starts_with("ignored: ")).collect();
    assert!(others.is_empty(), "{name}: {stderr}");
}

/// `kubeferry status` of a proxy that says this of itself.
fn status(healthy: bool, change: impl FnOnce(&mut Command) -> &mut Command) -> Output {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/status", listener.local_addr().unwrap());
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (mut request, mut part) = (Vec::new(), [0; 512]);
        while !request.ends_with(b"\r\n\r\n") {
            let length = stream.read(&mut part).unwrap();
            assert!(length > 0, "half a request: {request:?}");
            request.extend(&part[..length]);
        }
        let sync = json!({"at": "2026-01-01T00:00:00Z", "took": 0.1, "full": true, "rowsWritten": 1});
        let body = json!({"backend": "nftables", "healthy": healthy, "node": "worker-1", "lastSync": sync});
        write!(stream, "HTTP/1.0 200 OK\r\n\r\n{body}").unwrap();
    });
    let mut command = Command::new(binary::path().unwrap());
    let output = change(command.args(["status", "--url", &url]).stdin(Stdio::null())).spawn().unwrap();
    let output = output.wait_with_output().unwrap();
    serve.join().unwrap();
    output
}

#[test]
fn nobody_has_to_listen_to_standard_error() {
    let source = source();
    let node = Netns::new("deaf").unwrap();
    let plan = source.offline("plan").unwrap();
    let mut trace = source.offline("trace").unwrap();
    trace.args(["--from", "10.244.1.7", "--to", "tcp:10.96.0.10:80"]);
    let mut run = source.command("run").unwrap();
    run.arg("--once");
    for (mut command, name) in [(plan, "plan"), (trace, "trace"), (run, "run --once")] {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(unread());
        let output = node.spawn(&mut command).unwrap().wait_with_output().unwrap();
        assert!(output.status.success(), "{name}: {}", output.status);
        assert!(name.starts_with("run") || !output.stdout.is_empty(), "{name} says what was asked");
    }
    let mut wrong = source.offline("trace").unwrap();
    wrong.args(["--from", "10.244.1.7", "--to", "nothing"]).stderr(unread());
    assert_eq!(wrong.status().unwrap().code(), Some(1), "an error keeps its exit code");
}
