//! The page and its API, `status`, `top` and `/metrics` tell the same traffic.

use std::process::Command;

use kubeferry_tests::binary;
use kubeferry_tests::client::until;
use kubeferry_tests::netns::Netns;
use serde_json::Value;

use super::asking::{ask, json};

/// What is counted of something: connections, active ones, packets, bytes.
type Counts = [Option<u64>; 4];

const FIELDS: [&str; 4] = ["connections", "active", "packets", "bytes"];
const SERIES: [&str; 4] = ["connections_total", "active_connections", "packets_total", "bytes_total"];

/// Asks all of them about ports `tcp` and `udp` of the Service `web`, where nothing goes by and packets are counted, too.
///
/// # Panics
/// Two of them differ.
pub fn agree(node: &Netns) {
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
    let mut sums = [0; 4];
    for port in ["tcp", "udp"] {
        let facts = named(&service["ports"], port);
        let counts = counts(facts);
        assert!(counts.iter().all(Option::is_some), "{facts}");
        let series = SERIES.map(|series| metric(&metrics, series, port));
        assert_eq!(series, counts, "/metrics and the API of {port}");
        (0..4).for_each(|field| sums[field] += counts[field].unwrap_or_default());

        let of_status = named(&named(&status["services"], "default/web")["ports"], port);
        for endpoint in facts["endpoints"].as_array().unwrap() {
            let address = endpoint["address"].as_str().unwrap();
            let told = self::counts(endpoint);
            let told_there = of_status["endpoints"].as_array().unwrap().iter().find(|one| one["address"] == address);
            let there = told_there.map_or([Some(0), Some(0), None, None], self::counts);
            assert_eq!(there[..2], told[..2], "status and the API of {address}");
            // A part of the text for each port, in their order.
            let part = one.split("\n\n").find(|part| part.starts_with(&format!("{port} "))).unwrap();
            let line =
                part.lines().find(|line| line.starts_with(address)).unwrap_or_else(|| panic!("{address}: {one}"));
            assert_eq!(last_two(line)[..], told[..2], "top and the API of {address}");
        }
    }
    let row = named(&listed["items"], "web");
    assert_eq!(self::counts(row)[..2], [Some(sums[0]), Some(sums[1])], "the list and the sum of the ports");
    let line = list.lines().find(|line| line.starts_with("default/web ")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(cells[4..6], [sums[0].to_string(), sums[1].to_string()], "{line}");
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name} in {list}"))
}

fn counts(of: &Value) -> Counts {
    FIELDS.map(|field| of[field].as_u64())
}

fn metric(text: &str, series: &str, port: &str) -> Option<u64> {
    let start = format!("kubeferry_service_{series}{{");
    let lines = text.lines().filter(|line| line.starts_with(&start) && line.contains(&format!("port=\"{port}\"")));
    lines.map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
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
