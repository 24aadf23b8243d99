//! The folder of manifests that both proxies watch: what `kubectl get -o yaml` would show of the demo's cluster.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::topology::{NODES, POD_CIDR};
use super::web;

/// The Service's address, on which pods and nodes reach it.
pub const CLUSTER_IP: &str = "10.96.0.50";
/// The Service's port.
pub const PORT: u16 = 80;
/// The port on every node at which the world outside reaches it.
pub const NODE_PORT: u16 = 30080;

/// What the EndpointSlice says about a pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub pod: String,
    pub address: String,
    pub node: &'static str,
    /// Being deleted: still answers, takes nothing new.
    pub terminating: bool,
}

/// The folder, and the folder beside it where a new version of a file is prepared.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
    drafts: PathBuf,
}

impl Manifests {
    /// Makes the folder below `home`, with the nodes, the Service and its first endpoints.
    pub fn create(home: &Path, endpoints: &[Endpoint]) -> anyhow::Result<Self> {
        let manifests = Self { folder: home.join("manifests"), drafts: home.join("drafts") };
        std::fs::create_dir_all(&manifests.folder)?;
        std::fs::create_dir_all(&manifests.drafts)?;
        manifests.write("cluster.yaml", &cluster())?;
        manifests.write("webapp-service.yaml", &service())?;
        manifests.set_endpoints(endpoints)?;
        Ok(manifests)
    }

    /// The folder for `--manifests`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Replaces the Service's EndpointSlice.
    pub fn set_endpoints(&self, endpoints: &[Endpoint]) -> anyhow::Result<()> {
        self.write("webapp-endpoints.yaml", &slice(endpoints))
    }

    /// Writes a file whole before it appears under its name: nobody reads half of it.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let draft = self.drafts.join(name);
        std::fs::write(&draft, text).with_context(|| draft.display().to_string())?;
        std::fs::rename(&draft, self.folder.join(name)).with_context(|| name.to_owned())
    }
}

fn cluster() -> String {
    let mut text = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n\
         spec: {cidrs: [10.96.0.0/12]}\n"
        .to_owned();
    for node in NODES {
        let (name, address, pods) = (node.name, node.address, node.pods);
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{kubernetes.io/hostname: {name}}}\n\
             spec: {{podCIDR: {pods}, podCIDRs: [{pods}]}}\nstatus:\n  addresses:\n  - {{type: InternalIP, address: {address}}}\n\
             \x20 - {{type: Hostname, address: {name}}}\n"
        );
    }
    format!("# Two nodes; pods have addresses in {POD_CIDR}.\n{text}")
}

fn service() -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: webapp-service, namespace: default}}\nspec:\n  type: NodePort\n  \
         clusterIP: {CLUSTER_IP}\n  clusterIPs: [{CLUSTER_IP}]\n  ipFamilies: [IPv4]\n  selector: {{app: webapp}}\n  ports:\n  \
         - {{name: http, protocol: TCP, port: {PORT}, targetPort: {}, nodePort: {NODE_PORT}}}\n",
        web::PORT
    )
}

fn slice(endpoints: &[Endpoint]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: webapp-service-x7k2p\n  namespace: default\n  \
         labels: {{kubernetes.io/service-name: webapp-service}}\naddressType: IPv4\nports:\n\
         - {{name: http, protocol: TCP, port: {}}}\nendpoints:\n",
        web::PORT
    );
    for Endpoint { pod, address, node, terminating } in endpoints {
        let ready = !terminating;
        let _ = write!(
            text,
            "- addresses: [{address}]\n  nodeName: {node}\n  targetRef: {{kind: Pod, name: {pod}, namespace: default}}\n  \
             conditions: {{ready: {ready}, serving: true, terminating: {terminating}}}\n"
        );
    }
    text
}
