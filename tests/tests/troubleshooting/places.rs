//! Sections 5 and 6: what depends on where somebody asks from, and at which address of the node.

use std::net::SocketAddr;
use std::thread;

use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::MANIFESTS;
use serde_json::Value;

use super::page::{commands, quoted, section, shows};
use super::served::Served;

/// The Service as a load balancer's, for pods alone; and with the policy that holds for pods and node alike.
fn ranged() -> String {
    let spec = "  type: LoadBalancer\n  clusterIP: 10.96.0.10\n  loadBalancerSourceRanges: [10.244.0.0/16]\n";
    let status = "status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}\n---\n";
    MANIFESTS.replace("  clusterIP: 10.96.0.10\n", spec).replacen("---\n", status, 1)
}

/// What the page's two questions are answered, with another destination if there is one; from a pod, and from the node.
fn asked(served: &Served, to: Option<&str>) -> [Value; 2] {
    let commands = commands(&section(5), "curl -s ");
    let [pod, node] = commands.as_slice() else { panic!("{commands:?}") };
    assert!(pod.contains("from=10.244.1.7&") && node.contains("from=192.0.2.1&"), "{commands:?}");
    [pod, node].map(|command| {
        let command = to.map_or(command.clone(), |to| command.replace("10.96.0.10", to));
        serde_json::from_str(&served.enter(&command)).unwrap()
    })
}

/// Tries it from both.
fn reaches(served: &Served, to: &str) -> [bool; 2] {
    let to = to.parse().unwrap();
    [served.web.client(), served.node()].map(|from| Connection::attempt(from, to).is_some())
}

fn answers_from_a_pod_and_from_the_node_are_compared(datapath: Datapath) {
    let served = Served::start(datapath, &ranged(), &[]);
    let [pod, node] = asked(&served, None);
    let outcomes = |answers: [&Value; 2]| answers.map(|answer| answer["outcome"].as_str().unwrap().to_owned());
    assert_eq!(outcomes([&pod, &node]), ["endpoints", "endpoints"]);
    assert_eq!((&pod["masquerade"], &node["masquerade"]), (&false.into(), &true.into()));
    assert_eq!(reaches(&served, "10.96.0.10:80"), [true, true]);
    let mut why = format!("{} {}", pod["why"], node["why"]);

    let [pod, node] = asked(&served, Some("198.51.100.7"));
    assert_eq!(outcomes([&pod, &node]), ["endpoints", "drop"]);
    assert_eq!(reaches(&served, "198.51.100.7:80"), [true, false]);
    why += &node["why"].to_string();
    let section = section(5);
    let reasons = quoted(&section);
    assert!(reasons.len() >= 3, "{reasons:?}");
    for reason in reasons {
        assert!(why.contains(reason), "nothing says {reason:?}: {why}");
    }

    // It holds for both alike, as the page says.
    let elsewhere = ranged().replace("nodeName: worker-1", "nodeName: worker-2");
    served
        .change(&elsewhere.replace("  type: LoadBalancer\n", "  type: LoadBalancer\n  internalTrafficPolicy: Local\n"));
    let [pod, node] = asked(&served, None);
    assert_eq!(outcomes([&pod, &node]), ["drop", "drop"]);
    assert_eq!(reaches(&served, "10.96.0.10:80"), [false, false]);
}

fn the_nodes_own_packet_is_followed(datapath: Datapath) {
    let served = Served::start(datapath, MANIFESTS, &[]);
    let command = &commands(&section(5), "kubeferry trace --live ")[0];
    let text = thread::scope(|scope| {
        let trace = scope.spawn(|| served.enter(&format!("{command} --count 1 --for 1m")));
        while !trace.is_finished() {
            drop(Connection::attempt(served.node(), served.web.vip()));
        }
        trace.join().unwrap()
    });
    let way = text.lines().find(|line| line.contains("went out by web")).unwrap_or_else(|| panic!("{text}"));
    assert!(way.contains(" → 10.244.1."), "{text}");
}

/// The Service with a node port.
fn with_node_port() -> String {
    let spec = "  type: NodePort\n  clusterIP: 10.96.0.10\n";
    MANIFESTS
        .replace("  clusterIP: 10.96.0.10\n", spec)
        .replace("{name: tcp, port: 80}", "{name: tcp, port: 80, nodePort: 30080}")
}

/// The node's primary address, and another that it has.
const PRIMARY: &str = "192.0.2.1";
const SECOND: &str = "192.0.2.77";

fn node_ports_answer_where_the_model_says(datapath: Datapath) {
    let mut served = Served::start(datapath, &with_node_port(), &[]);
    served.node().ip(&[format!("addr add {SECOND}/32 dev eth0")]).unwrap();
    let section = section(6);
    let command = &commands(&section, "curl -s ")[0];
    assert!(command.contains(SECOND), "{command}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let path = file.display().to_string();
    for (mode, answering) in [("nftables", &[PRIMARY][..]), ("iptables", &[PRIMARY, SECOND])] {
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\nclusterCIDR: 10.244.0.0/16\n"
        );
        std::fs::write(&file, text).unwrap();
        served.restart(&["--config", &path]);
        for ip in [PRIMARY, SECOND, "127.0.0.1"] {
            let answers = answering.contains(&ip);
            let told = || -> Value { serde_json::from_str(&served.enter(&command.replace(SECOND, ip))).unwrap() };
            let outcome = if answers { "endpoints" } else { "none" };
            until(&format!("{mode}, {ip}: {outcome}"), || (told()["outcome"] == outcome).then_some(())).unwrap();
            let from = if ip == "127.0.0.1" { served.node() } else { served.web.client() };
            let to: SocketAddr = format!("{ip}:30080").parse().unwrap();
            assert_eq!(Connection::attempt(from, to).is_some(), answers, "{mode}, {ip}");
        }
        let check = &commands(&section, "kubeferry config check ")[0];
        let printed = served.enter(&check.replace("FILE", &path));
        let shown = printed.split_once("nodePortAddresses:").unwrap_or_else(|| panic!("{printed}")).1;
        assert_eq!(shown.split_whitespace().next() == Some("null"), mode == "iptables", "{printed}");
        if mode == "nftables" {
            shows(&section, "nodePortAddresses", &printed);
        }
    }
}

on_both_datapaths! {
    answers_from_a_pod_and_from_the_node_are_compared,
    the_nodes_own_packet_is_followed,
    node_ports_answer_where_the_model_says,
}
