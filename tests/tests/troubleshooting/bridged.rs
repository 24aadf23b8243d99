//! Section 7: pods on one bridge.

use std::thread;
use std::time::Duration;

use kubeferry_tests::bridge::{Bridged, VIPS};
use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;

use super::page::{code, commands, section};
use super::served::enter;

/// For a connection that is not expected: as long as two attempts of the kernel take.
const SHORT: Duration = Duration::from_secs(4);

/// The end of the trace of a connection that this pod opens.
fn followed(node: &Netns, pod: &Netns, is_made: bool) -> String {
    let command = &commands(&section(7), "kubeferry trace --live ")[0];
    let text = thread::scope(|scope| {
        let trace = scope.spawn(|| enter(node, &format!("{command} --count 1 --for 1m")));
        while !trace.is_finished() {
            let made = Connection::open_within(pod, VIPS[0].parse().unwrap(), SHORT).is_ok();
            assert_eq!(made, is_made, "from {}", pod.name());
        }
        trace.join().unwrap()
    });
    text.lines().find(|line| line.trim_start().starts_with("went ")).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn the_packet_arrives_and_its_answer_is_lost_until_the_bridge_calls() {
    let bridged = Bridged::start(Datapath::Nftables, false, false).unwrap();
    let [client, web] = ["client", "web"].map(|name| bridged.pod(name));
    // Who reaches itself is answered, as its address is masqueraded.
    for (pod, is_made) in [(client, false), (web, true)] {
        let end = followed(&bridged.node, pod, is_made);
        assert!(end.contains(" → 10.244.1.1:8080"), "{end}");
    }
    let section = section(7);
    let setting = code(&section).into_iter().find(|code| code.starts_with("net.bridge.")).unwrap();
    enter(&bridged.node, &format!("sysctl -w {setting}"));
    let vip = VIPS[0].parse().unwrap();
    until("the other pod to be answered", || Connection::attempt(client, vip)).unwrap();
    let end = followed(&bridged.node, client, true);
    assert!(end.contains(" → 10.244.1.1:8080"), "{end}");
    assert!(
        Connection::open_within(web, vip, SHORT).is_err(),
        "a bridge sends nothing back to the port that it came by"
    );
    assert!(section.contains("hairpin mode of the bridge's ports"));
    bridged.node.ip(&["link set web type bridge_slave hairpin on"]).unwrap();
    assert_eq!(Connection::open(web, vip).unwrap().ask().unwrap().0, "web");
}

#[test]
fn ebpf_needs_neither() {
    assert!(section(7).contains("With eBPF neither is needed"));
    let bridged = Bridged::start(Datapath::ebpf().unwrap(), false, false).unwrap();
    for name in ["client", "web"] {
        let (server, _) = Connection::open(bridged.pod(name), VIPS[0].parse().unwrap()).unwrap().ask().unwrap();
        assert_eq!(server, "web");
    }
}
