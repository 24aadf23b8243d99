//! Real connections through Services that come from the API server over TLS.

use std::net::{IpAddr, SocketAddr};

use kubeferry_tests::apiserver::ApiServer;
use kubeferry_tests::client::Connection;
use kubeferry_tests::hosts::Hosts;

use crate::node::{Node, service, slice};

#[test]
fn a_connection_reaches_the_endpoint_that_the_api_server_names() {
    let ip = |text: &str| [text.parse::<IpAddr>().unwrap()];
    let (web1, web2, client) = (ip("10.244.1.1"), ip("10.244.1.2"), ip("10.244.1.7"));
    let hosts: [(&str, &[IpAddr]); 3] = [("web1", &web1), ("web2", &web2), ("client", &client)];
    let Hosts { node, hosts } = Hosts::build(&ip("192.0.2.1"), &hosts).unwrap();
    for host in &hosts[..2] {
        host.serve(8080).unwrap();
    }
    let mut node = Node::with(node, ApiServer::start_tls);
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let kubeconfig = node.server.kubeconfig().display().to_string();
    node.start(&["--kubeconfig", &kubeconfig]);
    let vip: SocketAddr = "10.96.0.1:80".parse().unwrap();
    let reach = |wanted: &str| {
        let answered = || {
            let (server, _) = Connection::open(&hosts[2].namespace, vip).ok()?.ask().ok()?;
            (server == wanted).then_some(())
        };
        node.until(&format!("a connection to {vip} to reach {wanted}"), answered);
    };
    reach("web1");
    node.server.apply(&slice("web", &["10.244.1.2"])).unwrap();
    reach("web2");
}
