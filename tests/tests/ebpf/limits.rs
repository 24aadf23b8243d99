//! What has no room, or no place.

use std::process::Command;

use kubeferry_tests::apiserver::{ApiServer, Resource};
use kubeferry_tests::binary;
use kubeferry_tests::client::{Connection, Running, ask_once, datagrams, until};
use kubeferry_tests::web::MANIFESTS;

use super::{Cluster, with};

/// Which of the Service's two ports finds room is nobody's business; the other one is left out whole.
fn until_one_port_is_served(cluster: &Cluster) {
    let served = || {
        let tcp = Connection::attempt(cluster.client(), cluster.vip()).and_then(|mut tcp| tcp.ask().ok());
        tcp.or_else(|| ask_once(&datagrams(cluster.client(), cluster.vip()).ok()?).ok().flatten())
    };
    until("one of both ports to answer", served).unwrap();
}

#[test]
fn what_does_not_fit_is_left_out_whole_and_named() {
    let cluster = Cluster::build();
    let log = cluster.once(|command| with(command, &["--map-sizes", "slots=3"])).unwrap_err();
    assert!(log.contains("the map slots is full") && log.contains("default/web"), "{log}");
    until_one_port_is_served(&cluster);
}

#[test]
fn the_service_of_what_does_not_fit_is_told_by_an_event() {
    let cluster = Cluster::build();
    let server = cluster.hosts.node.run(ApiServer::start).unwrap().unwrap();
    let node = "{apiVersion: v1, kind: Node, metadata: {name: worker-1}, \
                status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}";
    server.apply(&format!("{node}\n---\n{MANIFESTS}")).unwrap();
    let mut command = Command::new(binary::path().unwrap());
    command.args(["run", "--backend", "ebpf", "--node-name", "worker-1", "--server", &server.url()]);
    with(cluster.places.apply(&mut command), &["--map-sizes", "slots=3"]);
    let _running = Running::start_command(&mut command, &cluster.hosts.node).unwrap();
    let left_out = || {
        let events = server.objects(Resource::Event);
        events.into_iter().find(|event| event["reason"] == "FrontendLeftOut")
    };
    let event = until("an Event about what does not fit", left_out).unwrap();
    assert_eq!((&event["regarding"]["name"], &event["type"]), (&"web".into(), &"Warning".into()));
    assert!(
        event["note"].as_str().unwrap().contains("is not served: ") && event.to_string().contains("slots"),
        "{event}"
    );
    until_one_port_is_served(&cluster);
}

#[test]
fn a_missing_file_system_or_cgroup_is_named() {
    let cluster = Cluster::build();
    let log = cluster.once(|command| with(command, &["--bpffs-root", "/tmp"])).unwrap_err();
    assert!(log.contains("mount -t bpf bpf /tmp"), "{log}");
    let log = cluster.once(|command| with(command, &["--cgroup-root", "/tmp"])).unwrap_err();
    assert!(log.contains("/tmp") && log.contains("cgroup"), "{log}");
}
