//! The node with everything around it, an API server and the proxy.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use super::objects::{self, Endpoint, NODE, POD_CIDRS, SERVICES, ZONES};
use crate::apiserver::ApiServer;
use crate::binary;
use crate::bpf::Places;
use crate::bpf::pinned::Pinned;
use crate::client::{Running, until};
use crate::hosts::Host;
use crate::network::Network;
use crate::server::Server;

/// Where everybody serves.
const PORT: u16 = 8080;
/// How pods that come and go are called: by this and a number.
const POD: &str = "pod";
/// Numbers of pods: the last part of their addresses.
pub const NUMBERS: std::ops::Range<u8> = 20..60;
/// Room for all connections of a time, so that none is thrown out.
const ROOM: [&str; 2] = ["--map-sizes", "flows=400000,affinity=4000,sockets=20000,slots=16384"];
/// Connection tracking forgets what is over early, so that one can see that it does.
const CONNTRACK: [(&str, &str); 4] = [
    ("tcp_timeout_time_wait", "5"),
    ("tcp_timeout_close", "5"),
    ("tcp_timeout_last_ack", "5"),
    ("tcp_timeout_fin_wait", "5"),
];

/// Which datapath carries the packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Rows of nftables maps
    Nftables,
    /// BPF programs on devices and sockets
    Ebpf,
}

/// Whether an endpoint of this name may go while a client has it.
pub fn may_leave(name: &str) -> bool {
    name.starts_with(POD)
}

/// A pod that comes and goes. Its server ends first.
#[derive(Debug)]
pub struct Pod {
    /// Its server.
    pub server: Server,
    /// What its EndpointSlices say.
    pub endpoint: Endpoint,
    /// It is in EndpointSlices.
    pub listed: bool,
    host: Host,
}

/// The whole. The process ends first, then pods, the network and the API server.
#[derive(Debug)]
pub struct World {
    running: Option<Running>,
    /// The pods that come and go, by number.
    pub pods: BTreeMap<u8, Pod>,
    pinned: Option<Pinned>,
    /// What is around the node.
    pub network: Network,
    /// The API server.
    pub server: ApiServer,
    /// Where the eBPF datapath is.
    pub places: Option<Places>,
    folder: TempDir,
}

impl World {
    /// Builds it and has the proxy serve three endpoints that are always there: `web1` and `web2` on the node, `remote` elsewhere.
    ///
    /// # Errors
    /// A right, a tool or the binary is missing.
    pub fn build(backend: Backend) -> Result<Self> {
        let places = (backend == Backend::Ebpf).then(Places::new).transpose()?;
        let network = Network::build()?;
        for host in [network.hosts.host("web1"), network.hosts.host("web2"), &network.remote] {
            host.serve(PORT)?;
        }
        if backend == Backend::Nftables {
            for (key, seconds) in CONNTRACK {
                network.hosts.node.sysctl(&format!("net/netfilter/nf_conntrack_{key}"), seconds)?;
            }
        }
        let server = network.hosts.node.run(ApiServer::start)??;
        let folder = tempfile::Builder::new().prefix("kubeferry-soak-").tempdir()?;
        let mut world = Self { running: None, pods: BTreeMap::new(), pinned: None, network, server, places, folder };
        world.configure(0)?;
        for object in objects::lasting() {
            world.apply(&object)?;
        }
        world.label(0)?;
        for service in SERVICES {
            for slice in objects::slices(service.name, "steady", &objects::steady()) {
                world.apply(&slice)?;
            }
        }
        world.endpoints()?;
        world.start()?;
        if let Some(places) = &world.places {
            world.pinned = Some(Pinned::open(places.bpffs())?);
        }
        Ok(world)
    }

    /// Starts the proxy and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn start(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        let mut command = self.command("run")?;
        command.env("NO_COLOR", "1").stderr(log);
        self.running = Some(Running::start_command(&mut command, &self.network.hosts.node)?);
        until("the proxy to serve", || self.status().ok()).map(drop).with_context(|| self.last_words())
    }

    /// Ends the proxy as a node does.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |running| running.stop().map(drop))
    }

    /// Ends the proxy by SIGKILL.
    pub fn kill(&mut self) {
        self.running = None;
    }

    /// The process id of the proxy.
    ///
    /// # Errors
    /// None runs.
    pub fn process(&self) -> Result<u32> {
        self.running.as_ref().map(Running::id).context("no proxy runs")
    }

    /// `kubeferry SUBCOMMAND` with source and settings.
    fn command(&self, subcommand: &str) -> Result<Command> {
        let mut command = Command::new(binary::path()?);
        command.args([subcommand, "--node-name", NODE, "--server", &self.server.url(), "--config"]).arg(self.config());
        if let Some(places) = &self.places {
            places.apply(&mut command).args(ROOM);
        }
        Ok(command)
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The proxy's log.
    pub fn text_of_log(&self) -> String {
        fs::read(self.log()).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of the proxy's log.
    pub fn last_words(&self) -> String {
        let text = self.text_of_log();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// Writes the configuration file, each turn another one that means the same for traffic.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, turn: u64) -> Result<()> {
        let (addresses, pause) = match turn % 2 {
            0 => ("192.0.2.0/24, '2001:db8:2::/64'", "0s"),
            _ => ("192.0.2.1/32, '2001:db8:2::1/128'", "20ms"),
        };
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
             clusterCIDR: {}\nnodePortAddresses: [{addresses}]\nnftables: {{minSyncPeriod: {pause}}}\n\
             conntrack: {{udpTimeout: 5s, udpStreamTimeout: 10s}}\n",
            POD_CIDRS.join(",")
        );
        // At once, as an editor or kubelet does.
        let new = self.folder.path().join("config.new");
        fs::write(&new, text)?;
        Ok(fs::rename(new, self.config())?)
    }

    /// Waits until the proxy has the configuration of a turn.
    ///
    /// # Errors
    /// It does not take it.
    pub fn has_configuration(&self, turn: u64) -> Result<()> {
        let wanted = if turn.is_multiple_of(2) { "192.0.2.0/24" } else { "192.0.2.1/32" };
        let has = || self.status().ok()?["settings"].to_string().contains(wanted).then_some(());
        until("the changed configuration to be in force", has)
    }

    /// Creates or replaces an object.
    ///
    /// # Errors
    /// The API server does not know its kind.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.server.apply(&object.to_string())
    }

    /// Gives the Node other labels.
    ///
    /// # Errors
    /// As [`World::apply`].
    pub fn label(&self, turn: u64) -> Result<()> {
        let zone = if turn.is_multiple_of(2) { 0 } else { 1 };
        self.apply(&objects::node(ZONES[zone], turn))
    }

    /// A new pod with a server, ready. The number tells its name and its addresses.
    ///
    /// # Errors
    /// Its namespace cannot be made.
    pub fn add_pod(&mut self, number: u8) -> Result<()> {
        let endpoint = Endpoint::ready(&format!("1.{number}"), &format!("1::{number}"), NODE, usize::from(number % 2));
        let addresses: Vec<IpAddr> = endpoint.addresses.iter().map(|ip| ip.parse()).collect::<Result<_, _>>()?;
        let host = Host::join(&self.network.hosts.node, &format!("{POD}{number}"), number, &addresses)?;
        let server = Server::start(&host, PORT)?;
        self.pods.insert(number, Pod { server, endpoint, listed: true, host });
        Ok(())
    }

    /// Removes a pod, its namespace and its interface.
    ///
    /// # Errors
    /// The interface stays.
    pub fn remove_pod(&mut self, number: u8) -> Result<()> {
        let Some(Pod { server, host, .. }) = self.pods.remove(&number) else { bail!("there is no pod {number}") };
        drop(server);
        let name = host.name.clone();
        drop(host);
        let gone = || (!self.interfaces().ok()?.contains(&name)).then_some(());
        until(&format!("the interface {name} to be gone"), gone)
    }

    /// Writes the EndpointSlices of the pods that come and go.
    ///
    /// # Errors
    /// As [`World::apply`].
    pub fn endpoints(&self) -> Result<()> {
        let endpoints: Vec<_> = self.pods.values().filter(|pod| pod.listed).map(|pod| pod.endpoint.clone()).collect();
        for service in SERVICES {
            for slice in objects::slices(service.name, "churned", &endpoints) {
                self.apply(&slice)?;
            }
        }
        Ok(())
    }

    /// The names of the node's interfaces.
    ///
    /// # Errors
    /// The kernel's.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let text = self.network.hosts.node.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        Ok(text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
    }

    /// What is pinned of the eBPF datapath.
    pub fn pinned(&self) -> Option<&Pinned> {
        self.pinned.as_ref()
    }

    /// Whether new connections may get this endpoint, as far as the kernel knows.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn kernel_has(&self, endpoint: &Endpoint) -> Result<bool> {
        let Some(pinned) = &self.pinned else {
            let table = self.network.hosts.node.nft(&["list", "table", "inet", "kubeferry"], "")?;
            let word = |c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == ':');
            return Ok(table.split(word).any(|word| endpoint.addresses.iter().any(|address| address == word)));
        };
        for (vip, address) in SERVICES.iter().flat_map(|service| service.vips().into_iter().zip(&endpoint.addresses)) {
            let (vip, address): (IpAddr, IpAddr) = (vip.parse()?, address.parse()?);
            for protocol in [6, 17] {
                let list = pinned.list(SocketAddr::new(vip, 80), protocol)?;
                if list.iter().any(|listed| IpAddr::from(listed.address) == address) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// What `kubeferry status` says.
    ///
    /// # Errors
    /// No proxy serves yet.
    pub fn status(&self) -> Result<Value> {
        let mut command = Command::new(binary::path()?);
        let output = self.output(command.args(["status", "--output", "json"]))?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(!status["lastSync"].is_null() && status["lastSync"]["error"].is_null(), "not synced: {status}");
        Ok(status)
    }

    /// What a proxy would change in the kernel now; empty where everything is as it should be.
    ///
    /// # Errors
    /// The kernel or the API server cannot be asked.
    pub fn difference(&self) -> Result<String> {
        let output = self.output(self.command("plan")?.arg("--diff"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, command: &mut Command) -> Result<Output> {
        let output = self.network.hosts.node.output(command.stdin(Stdio::null()), "")?;
        ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }
}
