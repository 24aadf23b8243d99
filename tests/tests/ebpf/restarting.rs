//! A start after another: what the earlier left is adopted or moved, and nobody notices.

use std::net::SocketAddr;

use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::{Connection, Running, until};
use kubeferry_tests::netns::tool;
use kubeferry_tests::web::MANIFESTS;

use super::{Cluster, with};

#[test]
fn a_second_sync_adopts_everything_and_writes_nothing() {
    let cluster = Cluster::build();
    let log = cluster.once(|_| ()).unwrap();
    assert!(!log.contains(" ops=0 "), "{log}");
    let before = cluster.places.pins().unwrap();
    let mut connection = cluster.until_served().unwrap();
    let log = cluster.once(|_| ()).unwrap();
    assert!(log.contains(" ops=0 "), "{log}");
    assert_eq!(cluster.places.pins().unwrap(), before);
    connection.ask().unwrap();
}

#[test]
fn kill_and_restart_under_load_cost_no_connection() {
    let cluster = Cluster::build();
    let running = cluster.start();
    let mut connection = cluster.until_served().unwrap();
    let (before, _) = connection.ask().unwrap();
    cluster
        .under_load(|| {
            // SIGKILL.
            drop(running);
            let again = cluster.start();
            until("the second run to be in force", || cluster.status()).unwrap();
            drop(again);
        })
        .unwrap();
    assert_eq!(connection.ask().unwrap().0, before, "the connection goes on");
}

#[test]
fn other_sizes_of_maps_move_everything_under_load() {
    let cluster = Cluster::build();
    cluster.once(|_| ()).unwrap();
    drop(cluster.until_served().unwrap());
    let before = cluster.places.pins().unwrap();
    cluster
        .under_load(|| {
            cluster.once(|command| with(command, &["--map-sizes", "frontends=1000"])).unwrap();
        })
        .unwrap();
    let after = cluster.places.pins().unwrap();
    assert_eq!(after.len(), before.len(), "the old maps and programs are gone");
    assert_ne!(after, before);
}

#[test]
fn a_configuration_file_sets_it_and_a_changed_one_is_taken_over() {
    let cluster = Cluster::build();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.conf");
    let write = |fields: &str| {
        let (bpffs, cgroup) = (cluster.places.bpffs().display(), cluster.places.cgroup().display());
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ebpf\n\
             clusterCIDR: 10.244.0.0/16\nebpf:\n  bpffsRoot: {bpffs}\n  cgroupRoot: {cgroup}\n  \
             mapSizes: {{flows: 20000, affinity: 1000, sockets: 1000, slots: 16384}}\n{fields}"
        );
        // In one piece, as an editor that saves does.
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
    };
    write("");
    let mut command = cluster.source.command("run").unwrap();
    let mut running = Running::start_command(command.arg("--config").arg(&path), &cluster.hosts.node).unwrap();
    drop(cluster.until_served().unwrap());
    let pins = cluster.places.pins().unwrap();
    assert!(!pins.is_empty(), "the file's places are used");

    let differs = || {
        let mut command = cluster.source.command("plan").unwrap();
        let output = cluster.hosts.node.output(command.arg("--diff").arg("--config").arg(&path), "").unwrap();
        assert!(output.status.success(), "{output:?}");
        !output.stdout.is_empty()
    };
    until("the kernel to have what the file asks for", || (!differs()).then_some(())).unwrap();
    write("nftables: {masqueradeAll: true}\nnodePortAddresses: [192.0.2.0/24]\n");
    until("the kernel to follow the changed file", || (!differs()).then_some(())).unwrap();
    write("clusterCIDR: 10.245.0.0/16\n");
    assert_eq!(running.ended().unwrap().code(), Some(3), "its programs know pods by what they were told at the start");
    drop(cluster.until_served().unwrap());
    assert!(cluster.cleanup().status.success());
}

#[test]
fn maps_that_somebody_has_frozen_are_replaced_by_a_restart() {
    let cluster = Cluster::build();
    let running = cluster.start();
    let mut connection = cluster.until_served().unwrap();
    let (before, _) = connection.ask().unwrap();
    Pinned::open(cluster.places.bpffs()).unwrap().freeze_frontends().unwrap();
    let pins = cluster.places.pins().unwrap();
    cluster
        .under_load(|| {
            drop(running);
            let again = cluster.start();
            until("the second run to be in force", || cluster.status()).unwrap();
            let more = MANIFESTS
                .replace("10.96.0.10", "10.96.0.11")
                .replace("name: web", "name: more")
                .replace(": web}", ": more}");
            cluster.write(&format!("{MANIFESTS}---{more}")).unwrap();
            let other = SocketAddr::new([10, 96, 0, 11].into(), 80);
            until("a change to be in force", || Connection::attempt(cluster.client(), other)).unwrap();
            let are_gone = || (cluster.places.pins().ok()?.len() == pins.len()).then_some(());
            until("nothing of the frozen ones to be left", are_gone).unwrap();
            drop(again);
        })
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(connection.ask().unwrap().0, before, "the connection goes on");
}

#[test]
fn a_move_to_other_maps_that_fails_keeps_no_connection_from_opening() {
    let cluster = Cluster::build();
    cluster.once(|_| ()).unwrap();
    let mut before = cluster.until_served().unwrap();
    // A pin of a device that has gone, as it seems, which cannot be removed: something is mounted there.
    let pin = cluster.places.bpffs().join("kubeferry/links/tc_ingress-999999");
    std::fs::create_dir(&pin).unwrap();
    tool("mount", &["-t", "tmpfs", "none", &pin.display().to_string()], "").unwrap();
    let moves = || cluster.once(|command| with(command, &["--map-sizes", "frontends=1000"]));
    let log = moves().unwrap_err();
    assert!(log.contains("tc_ingress-999999"), "{log}");
    let again = || Connection::attempt(cluster.client(), cluster.vip());
    until("a connection by programs that have come", again).unwrap().ask().unwrap();
    before.ask().unwrap();
    tool("umount", &[&pin.display().to_string()], "").unwrap();
    moves().unwrap();
    before.ask().unwrap();
}
