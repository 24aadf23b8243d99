use std::io::{Read, Write};
use std::net::TcpListener;

use std::time::Duration;

use super::*;
use crate::args::StatusOutput;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn port(name: &str, frontends: &[&str], ready: usize) -> PortStatus {
    PortStatus {
        name: name.into(),
        protocol: "tcp".into(),
        frontends: frontends.iter().map(|text| (*text).to_owned()).collect(),
        ready,
        local: 1,
        scheduler: "rr".into(),
        ..PortStatus::default()
    }
}

pub(crate) fn example() -> Status {
    Status {
        datapath: BTreeMap::new(),
        version: "0.1.0".into(),
        node: "worker-1".into(),
        backend: "nftables".into(),
        started: Some(at(0)),
        healthy: true,
        node_eligible: true,
        waiting_for: Vec::new(),
        last_sync: Some(LastSync { at: at(7_500), took: 0.00123, full: false, rows_written: 4, error: None }),
        syncs: 12,
        failures: 1,
        pending: 0,
        rows: [("frontends4".to_owned(), 3), ("frontends6".to_owned(), 0)].into(),
        drift: Drift { repairs: 1, rows: 2, last_repair: Some(at(7_000)), last_check: Some(at(7_490)), unrepaired: 0 },
        services: vec![
            ServiceStatus {
                name: "default/web".into(),
                kind: "NodePort".into(),
                ports: vec![port("http", &["10.96.0.50:80", "*:30080"], 3), port("", &["10.96.0.50:81"], 0)],
            },
            ServiceStatus {
                name: "kube-system/dns".into(),
                kind: "ClusterIP".into(),
                ports: vec![port("dns", &["10.96.0.10:53"], 2)],
            },
        ],
        counts_active: true,
        ignored: vec![IgnoredStatus { what: "Service default/bad".into(), why: "port 0".into() }],
        ignored_total: 1,
        settings: [("clusterCIDR".to_owned(), "10.244.0.0/16".to_owned())].into(),
    }
}

#[test]
fn prints_what_an_operator_asks_for() {
    let wanted = "\
kubeferry 0.1.0 on node worker-1, nftables

health    healthy
started   2h5m ago
last sync 10s ago, ok, partial, 4 rows written in 1.2ms
syncs     12, 1 failure, 0 changes waiting
drift     1 repair of 2 rows, the last 8m30s ago; looked 20s ago
rows      frontends4 3
settings  clusterCIDR=10.244.0.0/16

SERVICE          TYPE       PORT      READY  HERE  SCHEDULER  FRONTENDS
default/web      NodePort   http tcp  3      1     rr         10.96.0.50:80 *:30080
                            tcp       0      1     rr         10.96.0.50:81
kube-system/dns  ClusterIP  dns tcp   2      1     rr         10.96.0.10:53

Left out:
  Service default/bad: port 0
";
    assert_eq!(print(&example(), at(7_510)), wanted);
    let mut more = example();
    (more.ignored_total, more.drift) = (1_001, Drift { unrepaired: 3, ..Drift::default() });
    let text = print(&more, at(0));
    assert!(text.contains("\n  and 1000 more: the log has them"), "{text}");
    assert!(text.contains("drift     none repaired; 3 rows differ and cannot be repaired\n"), "{text}");
    let empty = print(&Status::default(), at(0));
    assert!(empty.contains("No Services.") && empty.contains("drift     none found"), "{empty}");
}

#[test]
fn problems_in_order_of_weight() {
    let problem = |change: fn(&mut Status)| {
        let mut status = example();
        change(&mut status);
        status.problem().unwrap_or_default()
    };
    assert_eq!(problem(|_| ()), "");
    assert!(problem(|s| s.last_sync.as_mut().unwrap().error = Some("no nft".into())).contains("failed: no nft"));
    assert!(problem(|s| s.healthy = false).contains("waited too long"));
    assert!(problem(|s| s.drift.unrepaired = 3).contains("3 rows"));
    assert!(problem(|s| s.last_sync = None).contains("not synced yet"));
    assert!(problem(|s| s.waiting_for = vec!["Services".into()]).contains("list of Services"));
}

#[test]
fn the_document_survives_the_wire_and_gaps() {
    let text = serde_json::to_string(&example()).unwrap();
    assert!(text.contains("\"type\":\"NodePort\"") && text.contains("\"rowsWritten\":4"), "{text}");
    assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), example());
    let old: Status = serde_json::from_str(r#"{"backend":"nftables","newer":1,"lastSync":{"took":1}}"#).unwrap();
    assert_eq!(old.last_sync.unwrap().took, 1.0);
}

/// Answers one connection with these bytes; returns the URL.
fn answers(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/status", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(bytes).unwrap();
    });
    url
}

fn args(url: &str) -> StatusArgs {
    StatusArgs { url: url.to_owned(), output: StatusOutput::Table, timeout: Duration::from_secs(20) }
}

#[test]
fn whoever_else_answers_is_told_apart() {
    for (bytes, part) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "no HTTP"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n404 page not found\n", "code 404: 404 page not found"),
        (b"HTTP/1.1 200 OK\r\n\r\nok", "kube-proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "another JSON document"),
        (b"", "no HTTP"),
    ] {
        let error = fetch(&args(&answers(bytes))).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn whoever_has_the_port_moves_no_cursor() {
    let is_plain = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n');
    let status = br#"HTTP/1.1 200 OK

{"backend": "nftables", "version": "\u001b[2J1", "settings": {"a\u001b]0;b\u0007": "c\u202ed\u0085"},
 "ignored": [{"what": "x\ny", "why": "z"}]}"#;
    let status: Vec<u8> = String::from_utf8_lossy(status).replacen("OK\n\n", "OK\r\n\r\n", 1).into_bytes();
    let (text, _) = fetch(&args(&answers(status.leak()))).unwrap();
    assert!(is_plain(&text) && !text.contains('\u{202e}'), "{text:?}");
    assert!(text.contains(r"kubeferry \u{1b}[2J1 on node") && text.contains(r"  x\ny: z"), "{text}");
    assert!(text.contains(r"a\u{1b}]0;b\u{7}="), "{text}");
    let error =
        fetch(&args(&answers(b"HTTP/1.1 404 Not Found\r\n\r\n\x1b[31mno\r\nsuch page"))).unwrap_err().to_string();
    assert!(is_plain(&error) && !error.contains('\n') && error.contains("no\\r\\nsuch page"), "{error:?}");
}

#[test]
fn nobody_there_says_what_to_do() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = fetch(&args(&format!("http://{address}/status"))).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("kubeferry run") && text.contains("--url"), "{text}");
}

#[test]
fn urls() {
    for url in ["https://127.0.0.1/status", "127.0.0.1:10249", "http://", "http:///status", "http://a b/", "ftp://x"] {
        assert!(matches!(get(url, Duration::from_secs(1)), Err(FetchError::Url(_))), "{url}");
    }
}

#[test]
fn a_silent_server_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let error = get(&url, Duration::from_millis(50)).unwrap_err();
    assert!(
        matches!(error, FetchError::Unreachable { ref source, .. } if source.kind() == std::io::ErrorKind::TimedOut),
        "{error}"
    );
}
