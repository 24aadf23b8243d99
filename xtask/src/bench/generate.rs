//! Clusters of any size as a folder of manifests, in JSON as an API server would send them.
//!
//! Services stand in lists of 500, EndpointSlices in a file each: to change an endpoint is to replace one small file, so the
//! time of a change holds the reading of that file and not of the cluster.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

/// The port of every Service.
pub const PORT: u16 = 80;
/// The port of every endpoint.
pub const TARGET_PORT: u16 = 8080;
/// The node port of [`Cluster::add_node_port`].
pub const NODE_PORT: u16 = 30_080;
/// The node that the proxy under test is.
pub const NODE: &str = "node-1";
/// All endpoints lie in here until they are changed.
pub const ENDPOINT_CIDR: &str = "10.128.0.0/10";

const FIRST_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const FIRST_ENDPOINT: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);
const FIRST_CHANGED: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 1);
const SERVICES_A_FILE: usize = 500;

/// So many services of so many endpoints each, of one port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    pub services: usize,
    pub endpoints: usize,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}×{}", self.services, self.endpoints)
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    /// `10000x10`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (services, endpoints) = text.split_once('x').ok_or("write SERVICESxENDPOINTS, e.g. 1000x10")?;
        let number = |text: &str, most: usize| match text.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!("`{text}` is not a number from 1 to {most}")),
        };
        Ok(Self { services: number(services, 100_000)?, endpoints: number(endpoints, 1000)? })
    }
}

/// A generated cluster: its folder, and how often its endpoints were changed.
#[derive(Clone, Debug)]
pub struct Cluster {
    size: Size,
    folder: PathBuf,
    drafts: PathBuf,
    changes: usize,
}

impl Cluster {
    /// Writes the manifests below `home`.
    pub fn create(home: &Path, size: Size) -> anyhow::Result<Self> {
        let cluster = Self {
            size,
            folder: home.join(format!("{}x{}", size.services, size.endpoints)),
            drafts: home.join("drafts"),
            changes: 0,
        };
        std::fs::create_dir_all(&cluster.folder)?;
        std::fs::create_dir_all(&cluster.drafts)?;
        cluster.write("node.json", &node())?;
        let numbers: Vec<usize> = (0..size.services).collect();
        for (file, numbers) in numbers.chunks(SERVICES_A_FILE).enumerate() {
            let items: Vec<Value> = numbers.iter().map(|number| service(*number)).collect();
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
            cluster.write(&format!("services-{file:03}.json"), &list)?;
        }
        for number in numbers {
            cluster.write(&slice_file(number), &cluster.slice(number, None))?;
        }
        Ok(cluster)
    }

    /// Adds a Service of UDP with a node port, and ten endpoints.
    pub fn add_node_port(&self) -> anyhow::Result<()> {
        let mut service = service(self.size.services);
        service["spec"]["type"] = json!("NodePort");
        let port = json!({ "name": "udp", "protocol": "UDP", "port": PORT, "nodePort": NODE_PORT });
        service["spec"]["ports"] = json!([port]);
        let mut slice = Self { size: Size { services: 1, endpoints: 10 }, ..self.clone() }.slice(0, None);
        slice["metadata"]["name"] = json!("node-port-abcde");
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = service["metadata"]["name"].clone();
        slice["ports"] = json!([{ "name": "udp", "protocol": "UDP", "port": TARGET_PORT }]);
        self.write("node-port.json", &json!({ "apiVersion": "v1", "kind": "List", "items": [service, slice] }))
    }

    /// How large it is.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The folder for `--manifests`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The addresses of the first services.
    pub fn cluster_ips(&self, count: usize) -> Vec<Ipv4Addr> {
        (0..count.min(self.size.services)).map(|number| offset(FIRST_CLUSTER_IP, number)).collect()
    }

    /// The address of a service.
    pub fn cluster_ip(&self, service: usize) -> Ipv4Addr {
        offset(FIRST_CLUSTER_IP, service)
    }

    /// The address of the last service.
    pub fn last_cluster_ip(&self) -> Ipv4Addr {
        offset(FIRST_CLUSTER_IP, self.size.services - 1)
    }

    /// Gives a service's last endpoint an address that was never used before, and tells it.
    pub fn change_endpoint(&mut self, service: usize) -> anyhow::Result<Ipv4Addr> {
        let address = offset(FIRST_CHANGED, self.changes);
        self.changes += 1;
        self.write(&slice_file(service), &self.slice(service, Some(address)))?;
        Ok(address)
    }

    /// A service's EndpointSlice, with `changed` in place of its last endpoint.
    fn slice(&self, number: usize, changed: Option<Ipv4Addr>) -> Value {
        let count = self.size.endpoints;
        let mut addresses: Vec<Ipv4Addr> = (0..count).map(|k| offset(FIRST_ENDPOINT, number * count + k)).collect();
        if let (Some(last), Some(changed)) = (addresses.last_mut(), changed) {
            *last = changed;
        }
        let endpoint = |address: Ipv4Addr| {
            json!({
                "addresses": [address],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": NODE,
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("svc-{number:05}-abcde"),
                "namespace": "bench",
                "labels": { "kubernetes.io/service-name": format!("svc-{number:05}") },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET_PORT }],
            "endpoints": addresses.into_iter().map(endpoint).collect::<Vec<_>>(),
        })
    }

    /// Writes a file whole before it appears under its name.
    fn write(&self, name: &str, content: &Value) -> anyhow::Result<()> {
        let draft = self.drafts.join(name);
        std::fs::write(&draft, content.to_string()).with_context(|| draft.display().to_string())?;
        std::fs::rename(&draft, self.folder.join(name)).with_context(|| name.to_owned())
    }
}

fn slice_file(number: usize) -> String {
    format!("slice-{number:05}.json")
}

fn node() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": NODE },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "172.18.0.2" }] },
    })
}

fn service(number: usize) -> Value {
    let address = offset(FIRST_CLUSTER_IP, number);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("svc-{number:05}"), "namespace": "bench" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
        },
    })
}

fn offset(first: Ipv4Addr, by: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + by as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_checked() {
        assert_eq!("10000x10".parse(), Ok(Size { services: 10_000, endpoints: 10 }));
        assert!(
            "10000".parse::<Size>().is_err() && "0x1".parse::<Size>().is_err() && "1x1001".parse::<Size>().is_err()
        );
    }

    #[test]
    fn a_change_replaces_one_small_file() {
        let home = tempfile::tempdir().unwrap();
        let mut cluster = Cluster::create(home.path(), Size { services: 3, endpoints: 2 }).unwrap();
        let read = |number| std::fs::read_to_string(cluster.folder.join(slice_file(number))).unwrap();
        let (first, second) = (read(0), read(1));
        assert!(second.contains("10.128.0.3") && second.contains("10.128.0.4"));
        assert_eq!(cluster.change_endpoint(1).unwrap(), FIRST_CHANGED);
        let read = |number| std::fs::read_to_string(cluster.folder.join(slice_file(number))).unwrap();
        assert_eq!(read(0), first);
        assert!(read(1).contains("10.128.0.3") && read(1).contains("10.192.0.1") && !read(1).contains("10.128.0.4"));
    }
}
