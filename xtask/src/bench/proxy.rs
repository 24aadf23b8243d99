//! The proxy under test, run as an operator runs it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::generate::{Cluster, NODE, PORT};
use super::metrics;
use crate::datapath::{Datapath, synced};
use crate::netns::Namespace;
use crate::pins::Pins;
use crate::process::{Process, wait_until};
use crate::step;

/// Until when a proxy must have done its first sync.
const PATIENCE: Duration = Duration::from_secs(300);
const PODS: &str = "10.0.0.0/8";

/// The binary, and the node that it works on.
#[derive(Debug)]
pub struct Proxy<'a> {
    pub binary: &'a Path,
    pub node: &'a Namespace,
    pub home: &'a Path,
    pub datapath: &'a Datapath,
    /// Further flags: with eBPF which hooks it uses, what is counted.
    pub hooks: &'a [&'static str],
}

impl Proxy<'_> {
    /// Starts it and waits until the kernel has everything.
    pub fn start(&self, cluster: &Cluster) -> anyhow::Result<Process> {
        let log = self.home.join("kubeferry.log");
        let mut process = Process::start("kubeferry", &mut self.command("run", cluster), &log)?;
        wait_until("kubeferry's first sync", PATIENCE, || {
            process.check()?;
            Ok(self.has_last_service(cluster)? && synced(self.binary, self.node)?)
        })?;
        wait_until("kubeferry's metrics", PATIENCE, || Ok(metrics::scrape(self.node).is_ok()))?;
        Ok(process)
    }

    fn has_last_service(&self, cluster: &Cluster) -> anyhow::Result<bool> {
        match self.datapath {
            Datapath::Nftables => {
                let last = format!("{{ {} . tcp . {PORT} }}", cluster.last_cluster_ip());
                let mut nft = self.node.command("nft");
                Ok(step::output(nft.args(["get", "element", "inet", "kubeferry", "frontends4", &last])).is_ok())
            }
            Datapath::Ebpf(places) => Ok(match Pins::find(places.bpffs())? {
                Some(pins) => pins.endpoints_of(SocketAddr::from((cluster.last_cluster_ip(), PORT)))?.is_some(),
                None => false,
            }),
        }
    }

    /// From the start of the process to its end, which it reaches once the kernel holds all rows.
    pub fn once(&self, cluster: &Cluster) -> anyhow::Result<Duration> {
        let began = Instant::now();
        step::output(self.command("run", cluster).arg("--once"))?;
        Ok(began.elapsed())
    }

    /// Writes what it would program to a file for `nft -f`.
    pub fn plan(&self, cluster: &Cluster) -> anyhow::Result<PathBuf> {
        let file = self.home.join("plan.nft");
        let plan = step::output(self.command("plan", cluster).args(["--output", "nft"]))?;
        std::fs::write(&file, plan).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// From the start of a bare `nft -f` to its end.
    pub fn load(&self, file: &Path) -> anyhow::Result<Duration> {
        let began = Instant::now();
        step::output(self.node.command("nft").arg("-f").arg(file))?;
        Ok(began.elapsed())
    }

    /// Leaves the node's kernel without any rule, or any program, of this datapath.
    pub fn clear(&self) -> anyhow::Result<()> {
        match self.datapath {
            Datapath::Nftables => step::output(self.node.command("nft").args(["flush", "ruleset"])).map(drop),
            Datapath::Ebpf(places) => {
                let mut cleanup = self.node.command(self.binary);
                step::output(cleanup.args(["cleanup", "--bpffs-root"]).arg(places.bpffs())).map(drop)
            }
        }
    }

    fn command(&self, what: &str, cluster: &Cluster) -> Command {
        let mut command = self.node.command(self.binary);
        command.args([what, "--node-name", NODE, "--cluster-cidr", PODS, "--manifests"]).arg(cluster.folder());
        self.datapath.apply(&mut command);
        if let Datapath::Ebpf(_) = self.datapath {
            // A list's old and new version are there for a while, both.
            let size = cluster.size();
            let (frontends, slots) = (2 * size.services, 3 * size.services * size.endpoints);
            let sizes = [
                ("frontends", frontends.max(65_536)),
                ("addresses", frontends.max(32_768)),
                ("slots", slots.max(262_144)),
            ];
            let sizes = sizes.map(|(map, rows)| format!("{map}={rows}")).join(",");
            command.args(["--map-sizes", &sizes]);
        }
        command.args(self.hooks);
        command
    }
}
