//! `kubeferry top`: what a person sees in a terminal and what keys do, and the same as plain text.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod screens;
mod stranger;

use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubeferry::facts::{EndpointFacts, HealthFacts, HealthState, NodeFacts, Policies};
use kubeferry_tests::client::{Connection, DEADLINE, Running, synced, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::terminal::Terminal;
use kubeferry_tests::web::Web;
use serde_json::json;
use stranger::Stranger;

const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
  - {addresses: [10.244.1.1], nodeName: worker-1}
  - {addresses: [10.244.1.2], nodeName: worker-1, conditions: {ready: false, serving: true, terminating: true}}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default, annotations: {kubeferry.dev/scheduler: red}}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: 80}]}
";

struct Served {
    // In this order: what runs ends before what it runs in.
    running: Running,
    _datapath: Datapath,
    web: Web,
}

impl Served {
    fn new() -> Self {
        Self::on(Datapath::Nftables)
    }

    fn on(datapath: Datapath) -> Self {
        Self::with(datapath, &[])
    }

    fn with(datapath: Datapath, flags: &[&str]) -> Self {
        let web = Web::build().unwrap();
        web.write(MANIFESTS).unwrap();
        let mut command = datapath.command(&web.source).unwrap();
        let running = Running::start_command(command.args(flags), &web.hosts.node).unwrap();
        until("the first sync", || synced(&web.hosts.node)).unwrap();
        Self { running, _datapath: datapath, web }
    }

    fn terminal(&self, columns: u16, flags: &[&str]) -> Terminal {
        Terminal::start(&mut top(flags), &self.web.hosts.node, 24, columns).unwrap()
    }

    fn plain(&self, flags: &[&str]) -> String {
        let output = self.web.hosts.node.output(&mut top(flags), "").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn top(flags: &[&str]) -> Command {
    let mut command = Command::new(kubeferry_tests::binary::path().unwrap());
    command.arg("top").args(flags);
    command
}

#[test]
fn a_person_looks_around_with_keys() {
    let served = Served::new();
    let mut terminal = served.terminal(120, &["--interval", "200ms", "--sort", "name"]);
    let screen = terminal.until("both Services", |screen| screen.contains("default/web")).unwrap();
    let lines: Vec<&str> = screen.lines().map(str::trim_end).collect();
    let head = "worker-1 nftables healthy | 2 services (0 degraded, 1 down), 1 endpoints ready, ";
    assert!(lines[0].starts_with(head) && lines[0].ends_with(", --service-metrics off"), "{screen}");
    assert!(lines[1].starts_with("syncs ") && lines[1].ends_with("differ now"), "{screen}");
    assert_eq!(lines[2], "2 of 2 Services by name", "{screen}");
    assert!(lines[4].starts_with("default/empty") && lines[4].contains("down"), "{screen}");
    assert!(lines[5].starts_with("default/web") && lines[5].contains("ok") && lines[5].contains("random"), "{screen}");
    // Down, Enter: the Service with its endpoints.
    terminal.press("j\r").unwrap();
    let screen = terminal.until("the endpoints", |screen| screen.contains("10.244.1.2:8080")).unwrap();
    let line = |part: &str| screen.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{screen}"));
    assert!(line("http tcp").contains("10.96.0.10:80"), "{screen}");
    assert!(line("10.244.1.1:8080").contains("ready") && line("10.244.1.1:8080").contains("100.0%"), "{screen}");
    assert!(line("10.244.1.2:8080").contains("ending"), "{screen}");
    // Escape goes back; a search, kept by Enter; the next order.
    terminal.press("\x1b").unwrap();
    terminal.until("the list", |screen| screen.contains("default/empty")).unwrap();
    terminal.press("/emp").unwrap();
    terminal
        .until("what the search finds", |screen| screen.contains("1 of 2 Services") && screen.contains("search: emp_"))
        .unwrap();
    terminal.press("\rs").unwrap();
    terminal
        .until("another order", |screen| screen.contains("by connections") && screen.contains("search: emp"))
        .unwrap();
    terminal.press("p").unwrap();
    terminal.until("the pause", |screen| screen.contains("PAUSED")).unwrap();
    terminal.press("q").unwrap();
    assert!(terminal.ended().unwrap().success());
    terminal.until("the terminal as it was", |screen| !screen.contains("Services by")).unwrap();
}

#[test]
fn a_proxy_that_ends_is_told_and_a_signal_gives_the_terminal_back() {
    let served = Served::new();
    let mut terminal = served.terminal(120, &["--interval", "100ms"]);
    terminal.until("the list", |screen| screen.contains("default/web")).unwrap();
    let Served { running, _datapath, web: _web } = served;
    drop(running);
    let screen = terminal.until("the problem", |screen| screen.contains("no proxy answers")).unwrap();
    assert!(screen.contains("default/web"), "what is known stays: {screen}");
    let id = rustix::process::Pid::from_raw(i32::try_from(terminal.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    terminal.ended().unwrap();
    terminal.until("the terminal as it was", |screen| !screen.contains("default/web")).unwrap();
}

#[test]
fn it_ends_when_its_terminal_is_gone() {
    let served = Served::new();
    for flags in [&["--interval", "100ms"][..], &["--interval", "1h"]] {
        let mut terminal = served.terminal(120, flags);
        terminal.until("the list", |screen| screen.contains("default/web")).unwrap();
        terminal.hang_up();
        terminal.ended().unwrap();
    }
}

#[test]
fn connections_are_counted_beside_the_promise() {
    let served = Served::on(Datapath::ebpf().unwrap());
    for _ in 0..7 {
        Connection::open(served.web.client(), served.web.vip()).unwrap().ask().unwrap();
    }
    let row = |text: &str| text.lines().find(|line| line.contains("10.244.1.1:8080")).unwrap_or_default().to_owned();
    let cells = ["10.244.1.1:8080", "worker-1", "ready", "1", "-", "100.0%", "100.0%", "7"];
    let counted = |text: &String| row(text).split_whitespace().take(8).eq(cells);
    until("connections to be counted", || Some(served.plain(&["--service", "web"])).filter(counted)).unwrap();
    let terminal = served.terminal(120, &["--service", "web", "--interval", "100ms"]);
    let bar = "███████████████████|";
    let screen = terminal.until("the bar", |screen| screen.contains(bar)).unwrap();
    let words: Vec<_> = row(&screen).split_whitespace().map(str::to_owned).collect();
    assert_eq!(words[4..8], [bar, "-", "100.0%", "100.0%"], "{screen}");
    assert_eq!(words[8], "7", "{screen}");
    // What comes while somebody looks is told by itself.
    for _ in 0..3 {
        Connection::open(served.web.client(), served.web.vip()).unwrap().ask().unwrap();
    }
    let lately = |screen: &str| screen.contains(", 3 in the last ") && screen.contains("100.0%  100.0%   100.0%    10");
    terminal.until("what came lately", lately).unwrap();
    let list = served.plain(&["--sort", "connections"]);
    let first: Vec<_> = list.lines().find(|line| line.starts_with("default/")).unwrap().split_whitespace().collect();
    assert_eq!((first[0], first[4]), ("default/web", "10"), "{list}");
}

#[test]
fn without_a_terminal_it_is_plain_text() {
    let served = Served::new();
    let list = served.plain(&["--sort", "name"]);
    assert!(list.contains("2 of 2 Services by name\n") && !list.contains('\x1b'), "{list}");
    let rows: Vec<&str> = list.lines().filter(|line| line.starts_with("default/")).collect();
    assert!(
        rows[0].starts_with("default/empty  down    0") && rows[1].starts_with("default/web    ok      1"),
        "{list}"
    );
    let one = served.plain(&["--service", "web", "--count", "2", "--interval", "100ms"]);
    assert_eq!(one.matches("\nhttp tcp 10.96.0.10:80, random, 1 ready\n").count(), 2, "{one}");
    assert!(one.lines().any(|line| line.starts_with("10.244.1.2:8080  worker-1  ending")), "{one}");
    assert!(served.plain(&["--service", "nobody"]).contains("not served here"));
}

/// Who looks once sees what goes by, and not that nobody has looked before.
fn one_look_has_rates(datapath: Datapath) {
    let served = Served::with(datapath, &["--service-metrics", "connections"]);
    let (over, start) = (AtomicBool::new(false), Instant::now());
    let (list, one) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) && start.elapsed() < DEADLINE {
                Connection::open(served.web.client(), served.web.vip()).unwrap().ask().unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        // Nobody has asked this proxy for traffic before.
        let (list, one) = (served.plain(&["--sort", "name"]), served.plain(&["--service", "web", "--interval", "1s"]));
        over.store(true, Ordering::Release);
        (list, one)
    });
    let words = |text: &str, start: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
        line.split_whitespace().map(str::to_owned).collect()
    };
    let rate = |text: &str| text.parse::<f64>().unwrap_or_default();
    let web = words(&list, "default/web");
    assert!(rate(&web[3]) > 0.0, "{list}");
    let node = list.lines().find(|line| line.contains(" conn/s")).unwrap();
    assert!(!node.contains(" - conn/s"), "{list}");
    let endpoint = words(&one, "10.244.1.1:8080");
    assert_eq!(endpoint[4..7], ["100.0%", "100.0%", "100.0%"], "{one}");
    assert!(one.contains(", 1 ready, ") && one.contains(" in the last "), "{one}");
}

on_both_datapaths! { one_look_has_rates, }

/// What is not counted is not waited for.
#[test]
fn without_counters_it_says_so_at_once() {
    let list = Served::new().plain(&["--sort", "name", "--interval", "1h"]);
    assert!(list.contains(", --service-metrics off\n") && list.contains("2 of 2 Services"), "{list}");
}

/// Asks `url` once, and gives what is said of the failure.
fn failure(url: &str) -> String {
    let output = top(&["--url", url]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn whoever_else_is_at_the_address_is_told() {
    // Nobody: the port was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(failure(&format!("http://{free}")).contains("no proxy answers at http://"));
    let other = Stranger::new(|_| ("404 Not Found", "404 page not found".to_owned()));
    assert!(failure(&other.url).contains("has no API of Kubeferry: is it kube-proxy, or an older Kubeferry?"));
    let other = Stranger::new(|_| ("200 OK", "{}".to_owned()));
    assert!(failure(&other.url).contains("has no API of Kubeferry"));
    let other = Stranger::new(|_| ("200 OK", "ok".to_owned()));
    assert!(failure(&other.url).contains("answers with something else"));
    let other = Stranger::new(|_| ("503 Service Unavailable", "\x1b[2Jbusy".to_owned()));
    let said = failure(&other.url);
    assert!(said.contains("code 503: \\u{1b}[2Jbusy") && !said.contains('\x1b'), "{said}");
    assert!(failure("https://127.0.0.1:10249").contains("must be like http://"));
}

/// Clears the screen, sets the title, turns the direction of writing, ends the line.
const NASTY: &str = "\x1b[2J\x1b]0;owned\x07\u{202e}\u{9b}31m\r\nnext";
const TAMED: &str = "\\u{1b}[2J\\u{1b}]0;owned\\u{7}\\u{202e}\\u{9b}31m\\r\\nnext";

/// Facts of a proxy that takes any text for a name.
fn nasty(path: &str) -> String {
    let text = || NASTY.to_owned();
    let health = HealthFacts { state: HealthState::Degraded, reason: Some(text()) };
    let answer = match path {
        "/api/v1/node" => serde_json::to_string(&NodeFacts {
            node: text(),
            backend: text(),
            problem: Some(text()),
            ..NodeFacts::default()
        }),
        path if path.starts_with("/api/v1/services/") => serde_json::to_string(&json!({
            "namespace": NASTY, "name": NASTY, "type": NASTY, "health": health, "policies": Policies::default(),
            "sourceRanges": [], "truncated": false, "ignored": [],
            "ports": [{
                "name": NASTY, "protocol": NASTY, "family": NASTY, "scheduler": NASTY, "counts": {},
                "frontends": [{"address": NASTY, "role": "clusterIp", "state": "contested", "heldBy": NASTY}],
                "endpoints": [EndpointFacts { address: text(), node: Some(text()), ..EndpointFacts::default() }],
            }],
        })),
        _ => serde_json::to_string(&json!({"total": 1, "found": 1, "skipped": 0, "items": [{
            "namespace": "", "name": NASTY, "type": NASTY, "addresses": [], "ports": [], "portsTotal": 0,
            "endpoints": {}, "scheduler": NASTY, "policies": Policies::default(), "health": health,
        }]})),
    };
    answer.unwrap()
}

#[test]
fn names_of_objects_are_text_and_nothing_else() {
    let stranger = Stranger::new(|path| ("200 OK", nasty(path)));
    for flags in [&[][..], &["--service", "a/b"]] {
        let output = top(&["--url", &stranger.url]).args(flags).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains(TAMED), "{text}");
        let orders = |letter: char| (letter.is_control() && letter != '\n') || letter == '\u{202e}';
        assert!(!text.contains(orders), "{text:?}");
        let lines = if flags.is_empty() { 8 } else { 11 };
        assert_eq!(text.lines().count(), lines, "no line more than there are: {text}");
    }
    let network = Netns::new("top").unwrap();
    let stranger = network.run(|| Stranger::new(|path| ("200 OK", nasty(path)))).unwrap();
    let mut terminal = Terminal::start(&mut top(&["--url", &stranger.url]), &network, 24, 160).unwrap();
    let list = terminal.until("the list", |screen| screen.contains("1 of 1 Services")).unwrap();
    assert!(list.contains(&format!("/{TAMED}")), "{list}");
    terminal.press("\r").unwrap();
    let one = terminal.until("the Service", |screen| screen.contains("traffic policy: internal Cluster")).unwrap();
    assert!(one.contains(&TAMED[..30]) && !one.contains('\u{202e}'), "{one}");
    assert_eq!(terminal.title(), "", "nobody sets the title");
}

#[test]
fn a_narrow_terminal_has_room_for_it() {
    let served = Served::new();
    let mut terminal = served.terminal(80, &["--sort", "name"]);
    let screen = terminal.until("both Services", |screen| screen.contains("default/web")).unwrap();
    let lines: Vec<&str> = screen.lines().map(str::trim_end).collect();
    assert_eq!(lines[0], "worker-1 nftables healthy", "{screen}");
    assert!(lines[3].starts_with("drift: 0 repairs") && lines[4] == "2 of 2 Services by name", "{screen}");
    assert!(lines[5].starts_with("SERVICE") && lines[5].ends_with("SCHEDULER"), "{screen}");
    terminal.press("j\r").unwrap();
    let screen = terminal.until("the endpoints", |screen| screen.contains("10.244.1.2:8080")).unwrap();
    let line = screen.lines().find(|line| line.contains("10.244.1.1:8080")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..4], ["10.244.1.1:8080", "worker-1", "ready", "1"], "{screen}");
}
