//! The node with two Services, of which the second has no endpoint.

use std::net::{SocketAddr, UdpSocket};
use std::ops::Deref;
use std::process::Command;

use kubeferry_tests::binary;
use kubeferry_tests::client::{Connection, DEADLINE};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Follower;
use kubeferry_tests::served;
use serde_json::Value;

/// Nothing in the pod reads what comes to the port `silent`.
pub const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: tcp, port: 80}, {name: other, port: 81}, {name: udp, protocol: UDP, port: 80}, {name: silent, protocol: UDP, port: 83}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: other, port: 8080}, {name: udp, protocol: UDP, port: 8080}, {name: silent, protocol: UDP, port: 8083}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
---
apiVersion: v1
kind: Service
metadata: {name: other, namespace: default}
spec: {clusterIP: 10.96.0.11, ports: [{name: tcp, port: 80}]}
";

pub struct Served(served::Served);

impl Deref for Served {
    type Target = served::Served;

    fn deref(&self) -> &served::Served {
        &self.0
    }
}

impl Served {
    pub fn on(datapath: Datapath) -> Self {
        Self(served::Served::start(datapath, MANIFESTS, &[]).unwrap())
    }

    pub fn restart(&mut self, flags: &[&str]) {
        self.0.restart(flags).unwrap();
    }

    pub fn trace(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(binary::path().unwrap());
        command.args(["trace", "--live"]).args(flags);
        command
    }

    pub fn follow(&self, flags: &[&str]) -> Follower {
        Follower::start(flags, self.node()).unwrap()
    }

    /// Sends as many first datagrams as there is time for, until `end`; how many.
    pub fn flood(&self, end: impl Fn() -> bool + Sync) -> u32 {
        let flood = || {
            let mut sent = 0;
            while !end() {
                let socket = UdpSocket::bind("10.244.1.7:0").unwrap();
                sent += u32::from(socket.send_to(b"?\n", self.web.vip()).is_ok());
            }
            sent
        };
        self.web.client().run(flood).unwrap()
    }

    /// Connects to a port of `web`; from where, and to where.
    pub fn connect(&self, port: u16) -> (SocketAddr, SocketAddr) {
        let to = SocketAddr::new(self.web.vip().ip(), port);
        let mut connection = Connection::open(self.web.client(), to).unwrap();
        connection.ask().unwrap();
        (connection.local().unwrap(), to)
    }

    /// A document of the proxy's API.
    pub fn api(&self, path: &str) -> Option<Value> {
        let get = || kubeferry::status::get(&format!("http://127.0.0.1:10249{path}"), DEADLINE);
        let response = self.node().run(get).unwrap().ok().filter(|response| response.code == 200)?;
        serde_json::from_str(&response.body).ok()
    }

    /// What the model says of a connection of the client to this destination.
    pub fn told(&self, to: &str) -> Option<Value> {
        self.api(&format!("/api/v1/trace?from=10.244.1.7&to={to}"))
    }

    pub fn tables(&self) -> String {
        let output = self.node().output(Command::new("nft").args(["list", "tables"]), "").unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}
