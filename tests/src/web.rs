//! The smallest cluster that something is served in: a node, two pods that answer for a Service, and one that asks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;

use crate::client::{Connection, until};
use crate::executors::Source;
use crate::flows::{Case, Node, Step, with_node};
use crate::hosts::Hosts;
use crate::load::{Load, Way};
use crate::netns::Netns;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1]}
cluster-cidr: [10.244.0.0/16]
";
/// The Service, at TCP and UDP port 80, and its endpoints.
pub const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  ports:
    - {name: tcp, port: 80}
    - {name: udp, protocol: UDP, port: 80}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}, {addresses: [10.244.1.2], nodeName: worker-1}]
";

/// The cluster. Nothing serves there yet.
#[derive(Debug)]
pub struct Web {
    /// The node, and the pods `web1` (10.244.1.1), `web2` (10.244.1.2) and `client`.
    pub hosts: Hosts,
    /// The objects, for the proxy.
    pub source: Source,
    /// The node, as flows have it.
    pub node: Node,
}

impl Web {
    /// Builds it, with the objects of [`MANIFESTS`].
    ///
    /// # Errors
    /// Namespaces cannot be made.
    pub fn build() -> Result<Self> {
        let ip = |last: u8| [IpAddr::from(Ipv4Addr::new(10, 244, 1, last))];
        let pods = [("web1", ip(1)), ("web2", ip(2)), ("client", ip(7))];
        let pods: Vec<(&str, &[IpAddr])> = pods.iter().map(|(name, ips)| (*name, ips.as_slice())).collect();
        let hosts = Hosts::build(&[Ipv4Addr::new(192, 0, 2, 1).into()], &pods)?;
        for name in ["web1", "web2"] {
            hosts.host(name).serve(8080)?;
        }
        let node = Node::parse(NODE)?;
        let source = Source::new(&Case { name: "web".into(), node: node.clone(), steps: Vec::new() })?;
        let web = Self { hosts, source, node };
        web.write(MANIFESTS)?;
        Ok(web)
    }

    /// Puts other objects in the place of those that were there.
    ///
    /// # Errors
    /// They cannot be read or written.
    pub fn write(&self, manifests: &str) -> Result<()> {
        self.source.write(&Step { manifests: with_node(&self.node, manifests)?, rows: Vec::new() })
    }

    /// The pod that asks.
    pub fn client(&self) -> &Netns {
        &self.hosts.host("client").namespace
    }

    /// The Service's address.
    pub fn vip(&self) -> SocketAddr {
        (Ipv4Addr::new(10, 96, 0, 10), 80).into()
    }

    /// Waits for an answer of the Service.
    ///
    /// # Errors
    /// There is none.
    pub fn until_served(&self) -> Result<Connection> {
        until("the Service to answer", || Connection::attempt(self.client(), self.vip()))
    }

    /// Has the pod ask all the time, by TCP and UDP, before, while and after `work` runs.
    ///
    /// # Errors
    /// One was not.
    pub fn under_load(&self, work: impl FnOnce()) -> Result<()> {
        Self::load_of(&[(self.client(), self.vip())], work)
    }

    /// As [`Web::under_load`], with as many requests to an endpoint itself, which no datapath has a part in: where these fail
    /// beside the others, the machine is too slow.
    ///
    /// # Errors
    /// One was not.
    pub fn under_load_beside_an_endpoint(&self, work: impl FnOnce()) -> Result<()> {
        let endpoint = (Ipv4Addr::new(10, 244, 1, 1), 8080).into();
        Self::load_of(&[(self.client(), self.vip()), (self.client(), endpoint)], work)
    }

    fn load_of(ways: &[Way<'_>], work: impl FnOnce()) -> Result<()> {
        Load::during(ways, |load| {
            load.go_on()?;
            work();
            load.go_on()
        })
        .map(drop)
    }
}
