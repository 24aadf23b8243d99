//! The end of the datapath: clean-up, and the other datapath in its place.

use std::process::Command;
use std::time::Duration;

use kubeferry_tests::binary;
use kubeferry_tests::client::{patience, until};

use super::Cluster;

#[test]
fn cleanup_leaves_nothing_and_the_other_backend_takes_over() {
    let cluster = Cluster::build();
    cluster.once(|_| ()).unwrap();
    drop(cluster.until_served().unwrap());
    let mut nftables = cluster.source.command("run").unwrap();
    nftables.args(["--once", "--backend", "nftables", "--bpffs-root"]).arg(cluster.places.bpffs());
    assert!(cluster.hosts.node.output(&mut nftables, "").unwrap().status.success());
    assert_eq!(cluster.places.pins().unwrap(), Vec::<String>::new(), "nftables has taken over");
    drop(cluster.until_served().unwrap());
    cluster.once(|_| ()).unwrap();
    let tables = cluster.hosts.node.nft(&["list", "tables"], "").unwrap();
    assert!(!tables.contains("table inet kubeferry\n"), "eBPF has taken over: {tables}");
    drop(cluster.until_served().unwrap());
    let mut astray = Command::new(binary::path().unwrap());
    astray.args(["cleanup", "--bpffs-root", "/proc/self"]);
    let output = cluster.hosts.node.output(&mut astray, "").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    let go_on = !output.status.success() && said.contains("programs of the eBPF datapath go on at");
    // Before Linux 6.6 they are filters, which are found at the devices and removed without any pin.
    assert_eq!(go_on, has_tcx(), "{said}");
    for expected in [if go_on { "attached programs" } else { "" }, "nothing to remove"] {
        let output = cluster.cleanup();
        assert!(output.status.success());
        let text = String::from_utf8_lossy(&output.stdout).to_string();
        assert!(text.contains(expected), "{text}");
    }
    assert!(!cluster.places.bpffs().join("kubeferry").exists());
}

/// Whether the kernel has TCX hooks: Linux 6.6 and later.
fn has_tcx() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 6)
}

#[test]
fn connections_of_the_other_backend_go_on() {
    let cluster = Cluster::build();
    // No longer than an end may take here: what is forgotten before is reset.
    let seconds = patience(Duration::from_secs(1)).as_secs().to_string();
    for state in ["time_wait", "fin_wait", "last_ack", "close_wait", "close"] {
        let key = format!("net/netfilter/nf_conntrack_tcp_timeout_{state}");
        cluster.hosts.node.sysctl(&key, &seconds).unwrap();
    }
    let mut nftables = cluster.source.command("run").unwrap();
    nftables.args(["--once", "--backend", "nftables", "--bpffs-root"]).arg(cluster.places.bpffs());
    assert!(cluster.hosts.node.output(&mut nftables, "").unwrap().status.success());
    let mut before: Vec<_> = (0..8).map(|_| cluster.until_served().unwrap()).collect();
    let endpoints: Vec<_> = before.iter_mut().map(|connection| connection.ask().unwrap().0).collect();
    assert!(endpoints.iter().any(|one| *one != endpoints[0]), "{endpoints:?}");
    let tables = || cluster.hosts.node.nft(&["list", "tables"], "").unwrap();
    cluster
        .under_load(|| {
            let running = cluster.start();
            until("eBPF to be in force", || cluster.status()).unwrap();
            until("the rules to go", || (!tables().contains("table inet kubeferry\n")).then_some(())).unwrap();
            let mut new = cluster.until_served().unwrap();
            for _ in 0..20 {
                for (connection, endpoint) in before.iter_mut().zip(&endpoints) {
                    assert_eq!(connection.ask().unwrap().0, *endpoint, "it goes on");
                }
                new.ask().unwrap();
            }
            assert!(tables().contains("table inet kubeferry-established"), "{}", tables());
            before.clear();
            // It is looked at twice in a minute.
            let gone = || tables().is_empty().then_some(());
            (0..3)
                .find_map(|_| until("connection tracking to be left", gone).ok())
                .unwrap_or_else(|| panic!("{}", tables()));
            for _ in 0..20 {
                new.ask().unwrap();
            }
            drop(running);
        })
        .unwrap();
}
