//! Requests to the servers of the proxy that no monitoring sends.

use std::io::{Read, Write};
use std::net::TcpStream;

use kubeferry_tests::client::DEADLINE;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;

use crate::cluster::Cluster;

/// The first line of the answer to these bytes; empty: the connection was closed without one.
fn ask(cluster: &Cluster, port: u16, request: &[u8]) -> String {
    let connect = || TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut stream = cluster.web.hosts.node.run(connect).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    // The answer may come, and the connection be closed, before all has been sent.
    drop(stream.write_all(request));
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while !answer.contains(&b'\n') {
        match stream.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
        }
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

on_both_datapaths! { hostile_requests_are_refused_and_the_next_is_answered, }

fn hostile_requests_are_refused_and_the_next_is_answered(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    let status = |line: &str| line.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok());
    let (health, metrics) = (10256, 10249);
    let get =
        |path: &str, headers: &str| format!("GET {path} HTTP/1.1\r\n{headers}Connection: close\r\n\r\n").into_bytes();
    let local = "Host: 127.0.0.1\r\n";
    let other = "Host: kube-proxy.kube-system.svc:10249\r\n";
    for (port, what, request, codes) in [
        (metrics, "a large header", get("/status", &format!("{local}A: {}\r\n", "a".repeat(4 << 20))), &[431, 400][..]),
        (metrics, "many headers", get("/status", &format!("{local}{}", "A: a\r\n".repeat(5000))), &[431, 400]),
        (metrics, "a long path", get(&format!("/{}", "a".repeat(4 << 20)), local), &[414, 431, 400, 404]),
        (
            metrics,
            "another method",
            b"EAT /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
            &[200],
        ),
        (metrics, "no HTTP", vec![0x16, 3, 1, 0, 0xff, b'\r', b'\n', b'\r', b'\n'], &[400]),
        (metrics, "half a word", b"GE\0 /\r\n\r\n".to_vec(), &[400]),
        (metrics, "another host's name", get("/status", "Host: rebound.example:10249\r\n"), &[421]),
        (metrics, "two hosts", get("/status", "Host: localhost\r\nHost: rebound.example\r\n"), &[421, 400]),
        (metrics, "settings under another name", get("/configz", other), &[421]),
        (metrics, "flags under another name", get("/flagz", other), &[421]),
        (metrics, "the page under another name", get("/", other), &[421]),
        (metrics, "the API under another name", get("/api/v1/services", other), &[421]),
        (
            metrics,
            "a reset under another name",
            b"DELETE /metrics/slis HTTP/1.1\r\nHost: a.example\r\n\r\n".to_vec(),
            &[421],
        ),
        // As kube-proxy answers them: they name no object.
        (metrics, "metrics under another name", get("/metrics", other), &[200]),
        (metrics, "its health under another name", get("/healthz", other), &[200]),
        (metrics, "the mode under another name", get("/proxyMode", other), &[200]),
        (metrics, "climbing", get("/status/../../etc/passwd", local), &[404]),
        (metrics, "two lengths", get("/status", &format!("{local}Content-Length: 4\r\nContent-Length: 5\r\n")), &[400]),
        (
            metrics,
            "an accept header without end",
            get("/metrics", &format!("{local}Accept: {}\r\n", "a,".repeat(9000))),
            &[200],
        ),
        (health, "another host's name at the health address", get("/healthz", "Host: node.example\r\n"), &[200, 503]),
    ] {
        let line = ask(&cluster, port, &request);
        // Whoever sends more than is read may be told nothing: the connection is reset under it.
        let refused = line.is_empty() && request.len() > 1 << 20;
        assert!(refused || status(&line).is_some_and(|code| codes.contains(&code)), "{what}: {line:?}");
        assert_eq!(status(&ask(&cluster, metrics, &get("/status", local))), Some(200), "after {what}");
    }
    let peak = cluster.peak_mib();
    assert!(peak < 300, "{peak} MiB");
}
