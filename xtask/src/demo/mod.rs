//! `cargo xtask demo`: a small cluster of network namespaces whose Service is carried by Kubeferry, under load, through a
//! scale-up and a pod's end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

use crate::datapath::{Backend, Datapath, synced};
use crate::pins::Pins;
use crate::process::{Process, wait_until};
use crate::{cargo, interrupt, netns, packages, places, step};
use manifests::{CLUSTER_IP, Manifests, NODE_PORT, PORT};
use topology::{CLIENT, Cluster, NODES, POD_CIDR, PREFIX};
use traffic::{Origin, Tally, lock};

mod manifests;
pub mod page;
pub mod send;
mod topology;
mod traffic;
pub mod web;

/// How long the proxies may take to act on a change before the demo fails.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many requests in a row without an answer of a pod mean that it gets none: of five pods, by chance once in 10^19.
const SILENCE: usize = 200;

/// A small cluster of network namespaces: load balancing, scaling and a pod's end under traffic
#[derive(clap::Args)]
pub struct Args {
    /// The datapath of both nodes
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// Leave the cluster up and say how to look around in it
    #[arg(long)]
    keep: bool,
    /// How many requests to send from each of: a pod, a node, outside
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    requests: u32,
    /// Remove clusters that --keep, or a run that was killed, left behind; do nothing else
    #[arg(long, conflicts_with_all = ["keep", "requests", "backend"])]
    clean: bool,
}

/// Tells the story; any failed request or uneven share fails it.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.clean {
        packages::need_root("demo --clean")?;
        return clean();
    }
    packages::ensure(&[packages::BUILD, packages::NETWORK])?;
    if args.keep {
        packages::ensure(&[packages::LOOKING_AROUND])?;
    }
    packages::need_root("demo")?;
    let binary = cargo::kubeferry(false)?;

    let home = tempfile::Builder::new().prefix(&format!("{PREFIX}-{}-", std::process::id())).tempdir()?;
    let cluster = set_up(home.path(), args.backend)?;
    let mut stage = Stage { proxies: Vec::new(), cluster, home, flags: &[] };
    let done = stage.play(&binary, args.requests as usize);
    if args.keep {
        stage.keep(&binary);
        return done;
    }
    if done.is_err() && !interrupt::asked() {
        stage.show_logs();
    }
    step::start("cleaning up");
    drop(stage);
    done
}

/// Everything that runs, in the order in which it ends.
struct Stage {
    proxies: Vec<Process>,
    cluster: Cluster,
    home: TempDir,
    /// More flags for the proxies.
    flags: &'static [&'static str],
}

fn set_up(home: &Path, backend: Backend) -> anyhow::Result<Cluster> {
    step::start("making two nodes, a router and an outside client out of network namespaces");
    for node in NODES {
        step::note(format!("{} {}, its pods {}", node.name, node.address, node.pods));
    }
    step::note(format!("client {CLIENT}, beyond the router; nothing here can reach the world"));
    if backend == Backend::Ebpf {
        step::note("each node has a BPF file system, and a cgroup that its pods and its own processes run in");
    }
    let mut cluster = Cluster::create(home, backend)?;
    step::start("starting three web pods, each a web server that answers with its name");
    (1..=3).try_for_each(|number| cluster.add_pod(number))?;
    Ok(cluster)
}

impl Stage {
    fn play(&mut self, binary: &Path, requests: usize) -> anyhow::Result<()> {
        let manifests = Manifests::create(self.home.path(), &self.cluster.endpoints(None))?;
        self.start_proxies(binary, &manifests)?;

        step::start(format!(
            "webapp-service is {CLUSTER_IP}:{PORT}, and {NODE_PORT} on each node; {requests} requests each from three places"
        ));
        self.count(requests)?;

        step::start("scaling webapp-service to five pods: two more pods, then two more endpoints in the slice");
        (4..=5).try_for_each(|number| self.cluster.add_pod(number))?;
        manifests.set_endpoints(&self.cluster.endpoints(None))?;
        for pod in ["web-4", "web-5"] {
            let address = self.address(pod)?.to_owned();
            self.wait_for_row(&address, true)?;
        }
        self.count(requests)?;

        self.remove_under_load(&manifests, "web-2", requests)?;
        self.tell_hooks()?;
        step::start("every request was answered, and by the pods that should");
        Ok(())
    }

    fn start_proxies(&mut self, binary: &Path, manifests: &Manifests) -> anyhow::Result<()> {
        step::start("running kubeferry on both nodes, each from the same folder of manifests");
        for (plan, node) in NODES.iter().zip(&self.cluster.nodes) {
            let mut command = node.namespace.command(binary);
            command
                .args(["run", "--node-name", plan.name, "--cluster-cidr", POD_CIDR, "--manifests"])
                .arg(manifests.folder())
                .args(self.flags);
            node.datapath.apply(&mut command);
            let log = self.home.path().join(format!("{}.log", plan.name));
            self.proxies.push(Process::start(&format!("kubeferry on {}", plan.name), &mut command, &log)?);
        }
        self.wait_for_row(CLUSTER_IP, true)?;
        for (node, proxy) in self.cluster.nodes.iter().zip(&mut self.proxies) {
            wait_until("the end of a first sync", PATIENCE, || {
                proxy.check()?;
                synced(binary, &node.namespace)
            })?;
        }
        Ok(())
    }

    /// Sends requests from everywhere, shows who answered, and fails on a failed request or an uneven share.
    fn count(&self, requests: usize) -> anyhow::Result<()> {
        let origins = self.origins()?;
        let tallies: Vec<_> = origins.iter().map(|_| Mutex::default()).collect();
        traffic::send(&origins, &tallies, |tally| tally.requests() >= requests)?;
        let rows = rows(&origins, &tallies);
        show(&rows);
        traffic::check_failures(&rows)?;
        let pods: Vec<String> = self.cluster.pods.iter().map(|pod| pod.name.clone()).collect();
        traffic::check_shares(&rows, &pods)
    }

    /// Takes a pod away as a cluster does, terminating first and then gone, while requests never stop.
    fn remove_under_load(&mut self, manifests: &Manifests, pod: &str, requests: usize) -> anyhow::Result<()> {
        step::start(format!("removing {pod} while requests keep coming from all three places"));
        let origins = self.origins()?;
        let tallies: Vec<Mutex<Tally>> = origins.iter().map(|_| Mutex::default()).collect();
        let stop = AtomicBool::new(false);
        let (removed, sent) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| traffic::send(&origins, &tallies, |_| stop.load(Ordering::Relaxed)));
            let removed = self.remove(manifests, pod, &tallies, requests);
            stop.store(true, Ordering::Relaxed);
            (removed, sender.join())
        });
        let rows = rows(&origins, &tallies);
        show(&rows);
        removed?;
        sent.map_err(|_| anyhow::anyhow!("the thread that sends requests panicked"))??;
        traffic::check_failures(&rows)?;
        for (name, tally) in &rows {
            if tally.silence_of(pod) < requests {
                bail!("{pod} was gone, and requests from {name} were still answered by it");
            }
        }
        Ok(())
    }

    fn remove(
        &mut self,
        manifests: &Manifests,
        pod: &str,
        tallies: &[Mutex<Tally>],
        more: usize,
    ) -> anyhow::Result<()> {
        let all = |enough: &dyn Fn(&Tally) -> bool| tallies.iter().all(|tally| enough(&lock(tally)));
        wait_until("the requests to flow", PATIENCE, || Ok(all(&|tally| tally.requests() >= SILENCE)))?;

        manifests.set_endpoints(&self.cluster.endpoints(Some(pod)))?;
        step::note(format!("{pod} is terminating in the slice: it still serves, and should get nothing new"));
        wait_until(&format!("{pod} to get no more requests"), PATIENCE, || {
            Ok(all(&|tally| tally.silence_of(pod) >= SILENCE))
        })?;
        step::note(format!("{pod} got none of the last {SILENCE} requests from each place; now it ends"));
        let address = self.address(pod)?.to_owned();
        self.cluster.remove_pod(pod)?;
        manifests.set_endpoints(&self.cluster.endpoints(None))?;
        self.wait_for_row(&address, false)?;

        let before: Vec<usize> = tallies.iter().map(|tally| lock(tally).requests()).collect();
        wait_until("more requests", PATIENCE.max(Duration::from_millis(20) * more as u32), || {
            Ok(tallies.iter().zip(&before).all(|(tally, before)| lock(tally).requests() >= before + more))
        })?;
        Ok(())
    }

    /// The three places that requests come from.
    fn origins(&self) -> anyhow::Result<Vec<Origin>> {
        let service: SocketAddr = format!("{CLUSTER_IP}:{PORT}").parse()?;
        let node_ports = NODES.map(|node| format!("{}:{NODE_PORT}", node.address).parse());
        let [node, ..] = self.cluster.nodes.as_slice() else { bail!("no nodes") };
        let origin = |name, namespace: &netns::Namespace, cgroup: Option<&Path>, targets| Origin {
            name,
            namespace: namespace.name().to_owned(),
            cgroup: cgroup.map(Path::to_path_buf),
            targets,
        };
        let cgroup = node.datapath.cgroup();
        Ok(vec![
            origin("a pod", &self.cluster.shell, cgroup, vec![service]),
            origin("node-1", &node.namespace, cgroup, vec![service]),
            origin("outside", &self.cluster.client, None, node_ports.into_iter().collect::<Result<_, _>>()?),
        ])
    }

    /// Says where connections got their endpoints, with eBPF.
    fn tell_hooks(&self) -> anyhow::Result<()> {
        for (plan, node) in NODES.iter().zip(&self.cluster.nodes) {
            let Datapath::Ebpf(places) = &node.datapath else { continue };
            let counted = Pins::find(places.bpffs())?.context("the maps are gone")?.connected()?;
            step::note(format!(
                "{}: {} connections got their endpoint as the socket connected, {} as their first packet came by",
                plan.name, counted.sockets, counted.packets
            ));
            if plan.name == NODES[0].name && counted.sockets == 0 {
                bail!("no socket was translated on {}", plan.name);
            }
        }
        Ok(())
    }

    fn address(&self, pod: &str) -> anyhow::Result<&str> {
        let found = self.cluster.pods.iter().find(|candidate| candidate.name == pod);
        Ok(found.with_context(|| format!("no pod {pod}"))?.address.as_str())
    }

    /// Waits until the kernel of both nodes has, or has no longer, rows that name an address.
    fn wait_for_row(&mut self, address: &str, there: bool) -> anyhow::Result<()> {
        let began = Instant::now();
        let verb = if there { "has" } else { "has no longer" };
        for ((plan, node), proxy) in NODES.iter().zip(&self.cluster.nodes).zip(&mut self.proxies) {
            let what = format!("{}: the kernel {verb} {address}", plan.name);
            wait_until(&what, PATIENCE, || {
                proxy.check()?;
                Ok(node.datapath.has(&node.namespace, address)? == there)
            })?;
            step::note(format!("{what} (after {})", step::duration(began.elapsed())));
        }
        Ok(())
    }

    /// Shows the logs of the proxies that run; one that ended is what the error tells of, log and all.
    fn show_logs(&mut self) {
        for (plan, proxy) in NODES.iter().zip(&mut self.proxies) {
            if proxy.check().is_ok() {
                step::start(format!("the end of kubeferry's log on {}", plan.name));
                println!("{}", proxy.log_end());
            }
        }
    }

    /// Leaves everything up and says how to look at it.
    fn keep(self, binary: &Path) {
        let [node, ..] = self.cluster.nodes.as_slice() else { return };
        let (in_node, in_client) = (enter(&node.namespace), enter(&self.cluster.client));
        let (binary, folder) = (binary.display(), self.home.path().join("manifests"));
        let mut lines = vec![
            format!("{in_client} curl -s http://{}:{NODE_PORT}", NODES[0].address),
            format!("{} curl -s http://{CLUSTER_IP}", enter(&self.cluster.shell)),
            format!("{in_node} {binary} status"),
        ];
        match &node.datapath {
            Datapath::Nftables => lines.push(format!("{in_node} nft list table inet kubeferry")),
            Datapath::Ebpf(places) => {
                let cgroup = places.cgroup().join("cgroup.procs");
                lines.extend([
                    format!("echo $$ > {}    # now this shell's sockets are the node's", cgroup.display()),
                    format!("find {}", places.bpffs().display()),
                ]);
            }
        }
        lines.extend([
            format!("{in_node} curl -s http://127.0.0.1:10249/metrics"),
            format!("tail -f {}", self.home.path().join("node-1.log").display()),
            format!("edit {} and see it take effect at once", folder.join("webapp-endpoints.yaml").display()),
            "cargo xtask demo --clean    # removes it".to_owned(),
        ]);
        step::start("the cluster stays up; look around:");
        for line in lines {
            step::note(line);
        }
        self.cluster.leave();
        self.proxies.into_iter().for_each(Process::leave);
        let _ = self.home.keep();
    }
}

fn rows(origins: &[Origin], tallies: &[Mutex<Tally>]) -> Vec<(&'static str, Tally)> {
    origins.iter().zip(tallies).map(|(origin, tally)| (origin.name, lock(tally).clone())).collect()
}

fn show(rows: &[(&str, Tally)]) {
    for line in traffic::table(rows).lines() {
        step::note(line);
    }
}

fn enter(namespace: &netns::Namespace) -> String {
    format!("ip netns exec {}", namespace.name())
}

/// Removes the namespaces, the programs in them and the folders of demos whose xtask is gone.
fn clean() -> anyhow::Result<()> {
    let left_over = netns::left_over(PREFIX)?;
    step::start(format!("removing {} namespaces of earlier demos", left_over.len()));
    left_over.iter().try_for_each(|name| netns::remove(name))?;
    for entry in std::fs::read_dir(std::env::temp_dir())? {
        let entry = entry?;
        if netns::is_left_over(&entry.file_name().to_string_lossy(), PREFIX) {
            places::clean(&entry.path())?;
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}
