//! Clients that connect and say nothing: probes are answered, and the proxy goes on with its work.

use std::net::{SocketAddr, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::node::{Node, service, socket};

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: lb, namespace: default}, spec: {type: LoadBalancer, \
    externalTrafficPolicy: Local, healthCheckNodePort: 32001, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], \
    ipFamilies: [IPv4], ports: [{name: http, protocol: TCP, port: 80, nodePort: 30001}]}}\n";
/// More than the proxy may have open files.
const SILENT: usize = 1500;

#[test]
fn thousands_of_silent_clients_keep_no_probe_from_its_answer() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut node = Node::new();
    node.server.apply(SERVICE).unwrap();
    node.run();
    node.expect("a sync", &["10.96.0.9:80"]);
    let servers = [("127.0.0.1:10256", "/livez"), ("127.0.0.1:10249", "/healthz"), ("192.0.2.1:32001", "/")];
    for (address, path) in servers {
        node.ask(&format!("http://{address}{path}"));
    }
    node.limit_open_files(1024);
    let connect =
        |address: SocketAddr| (0..SILENT).filter_map(|_| TcpStream::connect(address).ok()).collect::<Vec<_>>();
    let silent: Vec<_> =
        servers.iter().map(|(address, _)| node.namespace.run(|| connect(socket(address))).unwrap()).collect();
    assert!(silent.iter().all(|streams| streams.len() > SILENT / 2), "the kernel took most of them");
    // Each is answered at the first attempt, many times over.
    for (address, path) in servers {
        for _ in 0..20 {
            let answer = node.get(&format!("http://{address}{path}"));
            let code = answer.map(|answer| answer.code);
            assert_eq!(code, Some(if path == "/" { 503 } else { 200 }), "{address}; the log:\n{}", node.log());
        }
    }
    let open = node.metric("process_open_fds").unwrap();
    assert!(open < 800.0, "{open} open files");
    // What it is there for goes on.
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.expect("another Service", &["10.96.0.1:80", "10.96.0.9:80"]);
    assert!(!node.log().contains("too many open files"), "{}", node.log());
    drop(silent);
}
