//! The objects of a [`Place`](super::Place), complete as an API server shows them, so that they serve from a folder, too.

use std::fmt::Write;

use anyhow::Result;

use crate::flows::Node;
use crate::small::NODE;

const SERVICE_CIDR: &str = "
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, 'fd00:10:96::/112']}
";

/// What there is beside the Node: the Service `web` with its node port, whose endpoints are `web`; the Service `mark` of UDP
/// alone, by whose endpoint a test tells whether its last change is in force; and `more` others, at `10.96.1.0` and up, which
/// have the endpoints of `web`. Endpoints are the numbers of the pods `web1` and `web2`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Objects {
    /// The endpoints of `web`.
    pub web: Vec<u8>,
    /// The endpoint of `mark`.
    pub mark: u8,
    /// How many others.
    pub more: u16,
    /// Whether there are any Services at all: without, the slices stay alone.
    pub services: bool,
}

impl Default for Objects {
    fn default() -> Self {
        Self { web: vec![1, 2], mark: 1, more: 0, services: true }
    }
}

impl Objects {
    /// All of them, with the Node.
    ///
    /// # Errors
    /// None: the Node is written here.
    pub fn manifests(&self) -> Result<String> {
        let mut text = Node::parse(NODE)?.object().to_string();
        for object in self.each() {
            write!(text, "\n---\n{object}")?;
        }
        Ok(text)
    }

    /// Each Service and each slice, and the ServiceCIDR.
    pub fn each(&self) -> Vec<String> {
        let mut all = vec![SERVICE_CIDR.to_owned()];
        if self.services {
            all.push(service("web", "type: NodePort", ["10.96.0.10", "fd00:10:96::10"], Some(30080)));
            all.push(service("mark", "type: ClusterIP", ["10.96.0.20", "fd00:10:96::20"], None));
        }
        all.extend(slices("web", &self.web));
        all.extend(slices("mark", &[self.mark]));
        for number in 0..self.more {
            let name = format!("more-{number}");
            let ips = [format!("10.96.{}.{}", 1 + number / 250, 1 + number % 250), format!("fd00:10:96::1:{number:x}")];
            if self.services {
                all.push(service(&name, "type: ClusterIP", ips.each_ref().map(String::as_str), None));
            }
            all.extend(slices(&name, &self.web));
        }
        all
    }

    /// The slices of `web`.
    pub fn web_slices(&self) -> Vec<String> {
        slices("web", &self.web)
    }

    /// The slices of `mark`.
    pub fn mark_slices(&self) -> Vec<String> {
        slices("mark", &[self.mark])
    }
}

fn service(name: &str, kind: &str, [v4, v6]: [&str; 2], node_port: Option<u16>) -> String {
    let node_port = node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: default}}, spec: {{{kind}, clusterIP: {v4}, \
         clusterIPs: [{v4}, '{v6}'], ipFamilies: [IPv4, IPv6], ipFamilyPolicy: RequireDualStack, sessionAffinity: None, \
         internalTrafficPolicy: Cluster, externalTrafficPolicy: Cluster, ports: [\
         {{name: tcp, protocol: TCP, port: 80, targetPort: 8080{node_port}}}, \
         {{name: udp, protocol: UDP, port: 80, targetPort: 8080{node_port}}}]}}, status: {{loadBalancer: {{}}}}}}"
    )
}

fn slices(service: &str, endpoints: &[u8]) -> Vec<String> {
    let slice = |(family, prefix): (&str, &str)| {
        let endpoint = |number: &u8| {
            let conditions = "{ready: true, serving: true, terminating: false}";
            format!("{{addresses: ['{prefix}{number}'], conditions: {conditions}, nodeName: worker-1}}")
        };
        let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {service}-{}, namespace: default, \
             labels: {{kubernetes.io/service-name: {service}}}}}, addressType: {family}, ports: [\
             {{name: tcp, protocol: TCP, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}], endpoints: [{}]}}",
            family.to_lowercase(),
            endpoints.join(", "),
        )
    };
    [("IPv4", "10.244.1."), ("IPv6", "fd00:10:244:1::")].map(slice).into()
}
