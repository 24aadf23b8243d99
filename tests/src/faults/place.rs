//! A node with two web pods, a pod that asks, and a client outside; and a `kubeferry run` on it, with its log, that is to be
//! harmed. Its objects come from a scripted API server on the node's loopback, or from a folder.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeferry_ebpf_common::stats::Counter;
use tempfile::TempDir;

use super::exact::until_exact;
use super::objects::Objects;
use super::traffic::Recorded;
use crate::apiserver::ApiServer;
use crate::binary;
use crate::bpf::pinned::Pinned;
use crate::bpf::sockets::{self, Maker};
use crate::client::{DEADLINE, Running, ask_once, datagrams, until, until_for};
use crate::datapath::Datapath;
use crate::flows::Node;
use crate::hosts::Hosts;
use crate::load::{Client, Way};
use crate::netns::{Netns, tool};
use crate::small;

/// How long a datagram to `mark` may take: what has no rule yet is not answered at all.
const MARK: Duration = Duration::from_millis(100);
/// How long what is wanted may take to come: after many wrong answers the API server is asked again after half a minute, twice if it
/// then says 410.
const EXACT: Duration = Duration::from_secs(120);

/// The whole; see the module.
#[derive(Debug)]
pub struct Place {
    // End before the namespaces do.
    running: Mutex<Option<Running>>,
    /// Makes sockets of the node in the cgroup that the eBPF datapath is told: they are translated when they connect.
    sockets: Option<Maker>,
    /// What carries the packets.
    pub datapath: Datapath,
    /// The scripted server, where the objects come from one.
    pub server: Option<ApiServer>,
    /// The node, and the pods `web1`, `web2`, `client` and the host `outside`.
    pub hosts: Hosts,
    /// Holds the manifests and the log.
    folder: TempDir,
    objects: Mutex<Objects>,
}

impl Place {
    /// With an API server that holds the [`Objects`]. Nothing runs yet.
    ///
    /// # Errors
    /// Namespaces cannot be made.
    pub fn of_server(datapath: Datapath) -> Result<Self> {
        let mut place = Self::build(datapath)?;
        let server = place.node().run(ApiServer::start)??;
        server.apply(&Objects::default().manifests()?)?;
        place.server = Some(server);
        Ok(place)
    }

    /// With a folder of manifests that has the [`Objects`]. Nothing runs yet.
    ///
    /// # Errors
    /// As [`Place::of_server`].
    pub fn of_manifests(datapath: Datapath) -> Result<Self> {
        let place = Self::build(datapath)?;
        std::fs::create_dir(place.manifests())?;
        place.change(|_| ())?;
        Ok(place)
    }

    fn build(datapath: Datapath) -> Result<Self> {
        let hosts = small::hosts()?;
        let folder = tempfile::Builder::new().prefix("kubeferry-test-faults-").tempdir()?;
        let sockets = match &datapath {
            Datapath::Nftables => None,
            Datapath::Ebpf(places) => Some(Maker::start(&sockets::program()?, &hosts.node, places.cgroup())?),
        };
        let (running, objects) = (Mutex::default(), Mutex::default());
        Ok(Self { running, sockets, datapath, server: None, hosts, folder, objects })
    }

    /// The node.
    pub fn node(&self) -> &Netns {
        &self.hosts.node
    }

    /// The client pod.
    pub fn client(&self) -> &Netns {
        &self.hosts.host("client").namespace
    }

    /// The client outside.
    pub fn outside(&self) -> &Netns {
        &self.hosts.host("outside").namespace
    }

    /// A pod to the ClusterIP in both families, the outside to the node port in both, the node itself to the ClusterIP; with eBPF sockets
    /// of the node that are translated when they connect, too, in both families.
    pub fn ways(&self) -> Vec<Way<'_, dyn Client>> {
        let to = |ip: &str, port| SocketAddr::new(ip.parse().unwrap_or(IpAddr::from([0, 0, 0, 0])), port);
        let vips = [to("10.96.0.10", 80), to("fd00:10:96::10", 80)];
        let node_ports = [to("192.0.2.1", 30080), to("2001:db8:2::1", 30080)];
        let pods = vips.map(|vip| (self.client() as &dyn Client, vip));
        let outsides = node_ports.map(|node_port| (self.outside() as &dyn Client, node_port));
        let sockets = self.sockets.iter().flat_map(|maker| vips.map(|vip| (maker as &dyn Client, vip)));
        pods.into_iter().chain(outsides).chain([(self.node() as &dyn Client, vips[0])]).chain(sockets).collect()
    }

    /// The folder of manifests, of [`Place::of_manifests`].
    pub fn manifests(&self) -> PathBuf {
        self.folder.path().join("manifests")
    }

    /// A folder for whatever a test needs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The scripted server.
    ///
    /// # Panics
    /// The objects come from a folder.
    pub fn server(&self) -> &ApiServer {
        self.server.as_ref().unwrap_or_else(|| panic!("the objects come from a folder"))
    }

    /// Changes the objects, and writes all of them to the server or the folder.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn change(&self, change: impl FnOnce(&mut Objects)) -> Result<()> {
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut objects);
        match &self.server {
            Some(server) => server.apply(&objects.manifests()?),
            None => {
                // As a whole: what reads the folder just now has the old or the new.
                let (new, file) = (self.manifests().join(".new"), self.manifests().join("cluster.yaml"));
                std::fs::write(&new, objects.manifests()?)?;
                Ok(std::fs::rename(new, file)?)
            }
        }
    }

    /// Gives `mark` the other endpoint, and nothing else.
    ///
    /// # Errors
    /// As [`Place::change`].
    pub fn mark(&self) -> Result<()> {
        let Some(server) = &self.server else { return self.change(|objects| objects.mark = 3 - objects.mark) };
        let mut objects = self.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.mark = 3 - objects.mark;
        objects.mark_slices().iter().try_for_each(|slice| server.apply(slice))
    }

    /// Whether the last [`Place::mark`] is in force for a new flow.
    pub fn is_marked(&self) -> bool {
        let wanted = format!("web{}", self.objects.lock().unwrap_or_else(PoisonError::into_inner).mark);
        let answer = || {
            let socket = datagrams(self.client(), SocketAddr::from(([10, 96, 0, 20], 80)))?;
            socket.set_read_timeout(Some(MARK))?;
            ask_once(&socket)
        };
        answer().ok().flatten().is_some_and(|(server, _)| server == wanted)
    }

    /// Waits until the last [`Place::mark`] is in force; how long that took.
    ///
    /// # Errors
    /// It is not within `patience`: the log is part of the message.
    pub fn until_marked(&self, patience: Duration) -> Result<Duration> {
        let since = Instant::now();
        let attempt = || self.is_marked().then_some(());
        until_for(patience, "the last change to be in force", attempt)
            .with_context(|| format!("the log:\n{}", self.log()))?;
        Ok(since.elapsed())
    }

    /// `kubeferry run` with its source and datapath; its log is appended to the file of [`Place::log`].
    ///
    /// # Errors
    /// There is no binary.
    pub fn command(&self) -> Result<Command> {
        self.command_under(&[])
    }

    /// The same, started by another program, with its arguments.
    ///
    /// # Errors
    /// As [`Place::command`].
    pub fn command_under(&self, starter: &[&str]) -> Result<Command> {
        let mut command = match starter {
            [] => Command::new(binary::path()?),
            [program, arguments @ ..] => {
                let mut command = Command::new(program);
                command.args(arguments).arg(binary::path()?);
                command
            }
        };
        self.complete(command.arg("run"))?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        command.stderr(log).env("NO_COLOR", "1");
        Ok(command)
    }

    /// Adds the settings, the source and the datapath.
    fn complete(&self, command: &mut Command) -> Result<()> {
        command.args(Node::parse(small::NODE)?.flags());
        match &self.server {
            Some(server) => command.args(["--server", &server.url()]),
            None => command.arg("--manifests").arg(self.manifests()),
        };
        if let Datapath::Ebpf(places) = &self.datapath {
            places.apply(command);
        }
        Ok(())
    }

    fn differences(&self) -> Result<std::process::Output> {
        let mut plan = Command::new(binary::path()?);
        self.complete(plan.arg("plan"))?;
        self.node().output(plan.arg("--diff"), "")
    }

    /// Waits until the kernel has every row that is wanted and no other (`kubeferry plan --diff`).
    ///
    /// # Errors
    /// It has not: what differs and the log are part of the message.
    pub fn until_exact(&self) -> Result<()> {
        self.until_exact_within(EXACT).map(drop)
    }

    /// The same within a time; how long it took.
    ///
    /// # Errors
    /// As [`Place::until_exact`].
    pub fn until_exact_within(&self, within: Duration) -> Result<Duration> {
        until_exact(within, || self.differences()).with_context(|| format!("the log:\n{}", self.log()))
    }

    /// Whether the kernel has every row that is wanted and no other.
    ///
    /// # Errors
    /// `kubeferry plan` fails.
    pub fn is_exact(&self) -> Result<bool> {
        let output = self.differences()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout.is_empty())
    }

    /// Starts it, and does not wait.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&self) -> Result<()> {
        self.launch_with(&mut self.command()?)
    }

    /// The same with another command; it replaces one that runs.
    ///
    /// # Errors
    /// As [`Place::launch`].
    pub fn launch_with(&self, command: &mut Command) -> Result<()> {
        self.kill();
        *self.running() = Some(Running::start_command(command, self.node())?);
        Ok(())
    }

    /// Starts it, and waits until it serves.
    ///
    /// # Errors
    /// It does not.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.until_served()
    }

    /// Waits until every way leads to an answer, and `mark` to the endpoint that it should.
    ///
    /// # Errors
    /// It does not: the log is part of the message.
    pub fn until_served(&self) -> Result<()> {
        let all = || {
            let answered = |(from, to): &Way<'_, dyn Client>| from.connect_within(*to, DEADLINE / 10)?.ask();
            self.ways().iter().all(|way| answered(way).is_ok()).then_some(())
        };
        until("every way to be served", all).with_context(|| format!("the log:\n{}", self.log()))?;
        if let Datapath::Ebpf(places) = &self.datapath {
            let translated = || {
                self.ways().iter().filter_map(|(from, to)| from.connect_within(*to, DEADLINE / 10).ok()).for_each(drop);
                let connected = Pinned::open(places.bpffs()).ok()?.counter(Counter::SocketConnected).ok()?;
                (connected > 0).then_some(())
            };
            until("sockets to be translated when they connect", translated)?;
        }
        self.until_marked(DEADLINE).map(drop)
    }

    /// Ends it by SIGKILL, if it runs.
    pub fn kill(&self) {
        *self.running() = None;
    }

    /// Ends whatever of it another program has started and left in the node's namespace ([`Place::command_under`]).
    ///
    /// # Errors
    /// The namespace cannot be looked into.
    pub fn kill_strays(&self) -> Result<()> {
        self.kill();
        let strays = || {
            let pids = tool("ip", &["netns", "pids", self.node().name()], "").unwrap_or_default();
            let is_ours = |pid: &&str| {
                let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
                binary::path().is_ok_and(|binary| exe.is_ok_and(|exe| exe == binary))
            };
            let strays: Vec<i32> = pids.split_whitespace().filter(is_ours).filter_map(|pid| pid.parse().ok()).collect();
            for pid in strays.iter().filter_map(|pid| rustix::process::Pid::from_raw(*pid)) {
                // It may have just ended.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            strays.is_empty().then_some(())
        };
        until("what was left in the namespace to end", strays)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// None runs.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()?)?).context("no process id")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Its process id.
    ///
    /// # Errors
    /// None runs.
    pub fn pid(&self) -> Result<u32> {
        self.running().as_ref().map(Running::id).context("no kubeferry runs")
    }

    /// Waits for its end, which it comes to by itself or after a signal.
    ///
    /// # Errors
    /// It does not within [`DEADLINE`]: the log is part of the message.
    pub fn ended(&self) -> Result<std::process::ExitStatus> {
        let mut running = self.running().take().context("no kubeferry runs")?;
        running.ended().with_context(|| format!("the log:\n{}", self.log()))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.running().as_mut().is_some_and(Running::is_running)
    }

    /// What all runs have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Fails if clients saw anything of a fault ([`Recorded::nothing_seen`]), and shows the log.
    ///
    /// # Errors
    /// See above.
    pub fn nothing_seen(&self, seen: &Recorded) -> Result<()> {
        seen.nothing_seen().with_context(|| format!("the log:\n{}", self.log()))
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What `kubeferry status` says.
    ///
    /// # Errors
    /// No proxy answers.
    pub fn status(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(binary::path()?);
        let output = self.node().output(command.args(["status", "--output", "json"]), "")?;
        ensure!(!output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The value of a line of `/metrics`: a name with its labels, as it is written there; `None` while nobody answers.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let get = || kubeferry::status::get("http://127.0.0.1:10249/metrics", DEADLINE);
        let text = self.node().run(get).ok()?.ok()?.body;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
