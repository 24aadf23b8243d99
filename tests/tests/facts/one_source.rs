//! The page and its API, `status`, `top` and `/metrics` tell the same traffic, and the same of what is not counted.

use std::process::Command;

use kubeferry_tests::binary;
use kubeferry_tests::client::{ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::Web;
use serde_json::Value;

use super::asking::{ask, json};
use super::counters::{open, settled, start};

/// What is counted of something: connections, active ones, packets, bytes.
type Counts = [Option<u64>; 4];

const FIELDS: [&str; 4] = ["connections", "active", "packets", "bytes"];
const SERIES: [&str; 4] = ["connections_total", "active_connections", "packets_total", "bytes_total"];

on_both_datapaths! {
    all_tell_the_same_at_every_level,
}

/// Which of [`FIELDS`] the API, `status` and `top` tell at a level, and which of [`SERIES`] `/metrics` has. The programs of eBPF count
/// connections at each.
fn told_at(datapath: &Datapath, level: &str) -> ([bool; 4], [bool; 4]) {
    match (datapath, level) {
        (_, "full") => ([true; 4], [true; 4]),
        (Datapath::Nftables, "connections") => ([true, false, false, false], [true, false, false, false]),
        (Datapath::Ebpf(_), "connections") => ([true, true, false, false], [true, true, false, false]),
        (Datapath::Nftables, _) => ([false; 4], [false; 4]),
        (Datapath::Ebpf(_), _) => ([true, true, false, false], [false; 4]),
    }
}

fn all_tell_the_same_at_every_level(datapath: Datapath) {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    for level in ["off", "connections", "full"] {
        let running = start(&web, &datapath, level);
        drop(web.until_served().unwrap());
        open(&web, web.vip(), 7);
        let socket = datagrams(web.client(), web.vip()).unwrap();
        until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap();
        if told_at(&datapath, level).0[0] {
            let count = settled(node, "tcp");
            assert!(count >= 7, "{level}: {count}");
        }
        agree(node, &datapath, level);
        assert!(running.stop().unwrap().success());
    }
}

/// Asks all of them about ports `tcp` and `udp` of the Service `web`, where nothing goes by.
///
/// # Panics
/// Two of them differ, or tell something else than is counted at this level.
pub fn agree(node: &Netns, datapath: &Datapath, level: &str) {
    let told = || {
        let service = json(node, "/api/v1/services/default/web");
        ["tcp", "udp"].map(|port| counts(named(&service["ports"], port)))
    };
    let asked = || {
        let before = told();
        let answers = ["/api/v1/services/default/web", "/api/v1/services", "/status"].map(|path| json(node, path));
        let metrics = ask(node, "/metrics").body;
        // Each looks twice, for rates.
        let texts = [&["top", "--interval", "200ms"][..], &["top", "--interval", "200ms", "--service", "web"]];
        let texts = texts.map(|arguments| run(node, arguments));
        (told() == before).then_some((answers, metrics, texts))
    };
    let ([service, listed, status], metrics, [list, one]) =
        until("all of them to be asked while nothing goes by", asked).unwrap();
    let (is_told, is_in_metrics) = told_at(datapath, level);
    let mut sums = counts(&Value::Null);
    for port in ["tcp", "udp"] {
        let facts = named(&service["ports"], port);
        let counts = counts(facts);
        assert_eq!(counts.map(|count| count.is_some()), is_told, "{level}: {facts}");
        for field in 0..4 {
            let series = metric(&metrics, SERIES[field], port);
            let expected = counts[field].filter(|_| is_in_metrics[field]);
            assert_eq!(series, expected, "{level}: {} of {port} in /metrics and the API", FIELDS[field]);
            sums[field] = counts[field].map(|count| sums[field].unwrap_or_default() + count);
        }

        let of_status = &named(&named(&status["services"], "default/web")["ports"], port)["endpoints"];
        for endpoint in facts["endpoints"].as_array().unwrap() {
            let address = endpoint["address"].as_str().unwrap();
            let told = self::counts(endpoint);
            let told_there = of_status.as_array().into_iter().flatten().find(|one| one["address"] == address);
            // Who got none is not in the list; what is not counted is 0 there.
            let there = told_there.map_or([Some(0); 4], self::counts);
            let expected = [told[0].or(Some(0)), told[1].or(Some(0))];
            assert_eq!(there[..2], expected, "{level}: status and the API of {address}");
            // A part of the text for each port, in their order.
            let part = one.split("\n\n").find(|part| part.starts_with(&format!("{port} "))).unwrap();
            let line =
                part.lines().find(|line| line.starts_with(address)).unwrap_or_else(|| panic!("{address}: {one}"));
            assert_eq!(last_two(line)[..], told[..2], "{level}: top and the API of {address}");
        }
    }
    assert_eq!(status["countsActive"], is_told[1], "{level}: {status}");
    let row = named(&listed["items"], "web");
    assert_eq!(self::counts(row)[..2], sums[..2], "{level}: the list and the sum of the ports");
    let line = list.lines().find(|line| line.starts_with("default/web ")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    let sums = [sums[0], sums[1]].map(|sum| sum.map_or("-".to_owned(), |sum| sum.to_string()));
    assert_eq!(cells[4..6], sums, "{level}: {line}");
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {list}"))
}

fn counts(of: &Value) -> Counts {
    FIELDS.map(|field| of[field].as_u64())
}

/// The sum of a series of a port; `None`: there is none.
fn metric(text: &str, series: &str, port: &str) -> Option<u64> {
    let start = format!("kubeferry_service_{series}{{");
    let lines = text.lines().filter(|line| line.starts_with(&start) && line.contains(&format!("port=\"{port}\"")));
    let mut values = lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).peekable();
    values.peek().is_some().then(|| values.sum())
}

/// Connections and active ones stand last in a line.
fn last_two(line: &str) -> [Option<u64>; 2] {
    let mut cells = line.split_whitespace().rev().map(|cell| cell.parse().ok());
    let active = cells.next().flatten();
    [cells.next().flatten(), active]
}

fn run(node: &Netns, arguments: &[&str]) -> String {
    let output = node.output(Command::new(binary::path().unwrap()).args(arguments), "").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
