//! The namespaces of the harness do what the other tests rely on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use kubeferry_tests::netns::{End, Netns, link};

const ONE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];

#[test]
fn two_linked_namespaces_talk_over_tcp() {
    let (client, server) = (Netns::new("client").unwrap(), Netns::new("server").unwrap());
    let near = End { namespace: &client, interface: "eth0", mac: ONE };
    link(near, End { namespace: &server, interface: "eth0", mac: OTHER }).unwrap();
    client.ip(&["addr add 10.9.0.1/24 dev eth0", "addr add 2001:db8:9::1/64 dev eth0 nodad"]).unwrap();
    server.ip(&["addr add 10.9.0.2/24 dev eth0", "addr add 2001:db8:9::2/64 dev eth0 nodad"]).unwrap();
    for address in ["10.9.0.2:80", "[2001:db8:9::2]:80"] {
        let listener = server.run(|| TcpListener::bind(address).unwrap()).unwrap();
        let mut from_client = client.run(|| TcpStream::connect(address).unwrap()).unwrap();
        from_client.write_all(b"hello").unwrap();
        drop(from_client);
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }
}

#[test]
fn a_child_runs_inside_and_a_namespace_goes_with_its_value_even_by_a_panic() {
    let namespace = Netns::new("short").unwrap();
    let handle = Path::new("/run/netns").join(namespace.name());
    let listed = namespace.output(Command::new("ip").args(["-brief", "link"]), "").unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(listed.lines().count(), 1, "only lo: {listed}");
    assert!(handle.exists());
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let inside = namespace;
        drop(inside.run(|| panic!("as a failing test does")));
    }));
    assert!(panicked.is_err());
    assert!(!handle.exists(), "{} is left behind", handle.display());
}

#[test]
fn what_a_killed_run_left_behind_is_removed() {
    // A process that is gone: its id is free until the kernel has handed out all others.
    let mut gone = Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let name = format!("kubeferry-test-{}-0-stale", gone.id());
    assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
    // The first namespace of a process looks for stale ones: start one.
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "two_linked_namespaces_talk_over_tcp"])
        .output()
        .unwrap();
    assert!(status.status.success(), "{status:?}");
    assert!(!Path::new("/run/netns").join(&name).exists(), "{name} is left behind");
}

#[test]
fn sysctls_and_errors_are_the_namespaces_own() {
    let namespace = Netns::new("sysctl").unwrap();
    namespace.sysctl("net/ipv4/ip_forward", "1").unwrap();
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
    assert_eq!(namespace.run(read).unwrap().trim(), "1");
    let error = format!("{:#}", namespace.ip(&["addr add 10.0.0.1/24 dev nothing0"]).unwrap_err());
    assert!(error.contains("nothing0"), "{error}");
    let error = format!("{:#}", namespace.sysctl("net/ipv4/no_such_key", "1").unwrap_err());
    assert!(error.contains("no_such_key"), "{error}");
}
