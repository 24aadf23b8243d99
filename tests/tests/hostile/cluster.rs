//! A node with pods, an API server on its loopback that checks nothing, and a running proxy that is watched from outside.

use std::fs::File;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubeferry::status::get;
use kubeferry_tests::apiserver::{ApiServer, Resource};
use kubeferry_tests::binary;
use kubeferry_tests::client::{Connection, DEADLINE, Running, patience, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::flows::with_node;
use kubeferry_tests::load::Ends;
use kubeferry_tests::memory::MemoryLimit;
use kubeferry_tests::web::{MANIFESTS, Web};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long the proxy may take for the largest of what is here, unoptimized and on a busy machine.
const PATIENCE: Duration = Duration::from_secs(450);

/// How soon a change of somebody else has to be in force meanwhile. No measure of speed: who waits longer starves.
const LATEST: Duration = Duration::from_secs(120);
/// Between two tries whether it is.
const ATTEMPT: Duration = Duration::from_millis(200);

/// The whole. The process ends first.
pub struct Cluster {
    running: Running,
    // Its namespaces, pins and cgroup go after the process.
    pub datapath: Datapath,
    pub web: Web,
    pub server: ApiServer,
    folder: TempDir,
    /// What our manifests allow the process and its maps. It goes last: when it is empty.
    limit: MemoryLimit,
}

/// Names a larger number of endpoints, in thousands, for a run by hand.
pub const ENDPOINTS_VARIABLE: &str = "KUBEFERRY_HOSTILE_ENDPOINTS";

impl Cluster {
    /// Serves the Service `web` of [`MANIFESTS`] from the API server.
    pub fn start(datapath: Datapath) -> Self {
        Self::start_with(datapath, |web| {
            let server = web.hosts.node.run(ApiServer::start).unwrap().unwrap();
            server.apply(&with_node(&web.node, MANIFESTS).unwrap()).unwrap();
            let mut command = Command::new(binary::path().unwrap());
            command.arg("run").args(web.node.flags()).args(["--server", &server.url()]);
            (server, command)
        })
    }

    /// The same from the folder of manifests of [`Web::source`].
    pub fn start_from_folder(datapath: Datapath) -> Self {
        Self::start_with(datapath, |web| (ApiServer::start().unwrap(), web.source.command("run").unwrap()))
    }

    fn start_with(datapath: Datapath, source: impl FnOnce(&Web) -> (ApiServer, Command)) -> Self {
        let web = Web::build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (server, command) = source(&web);
        let with_ebpf = matches!(datapath, Datapath::Ebpf(_));
        let limit = MemoryLimit::shipped(with_ebpf).unwrap();
        let mut command = limit.command(&command);
        if let Datapath::Ebpf(places) = &datapath {
            places.apply_with_all_room(&mut command);
        }
        command.stderr(File::create(folder.path().join("log")).unwrap());
        let running = Running::start_command(&mut command, &web.hosts.node).unwrap();
        let cluster = Self { running, datapath, web, server, folder, limit };
        cluster.until("the first answer", || Connection::attempt(cluster.web.client(), cluster.web.vip()));
        cluster
    }

    /// Waits for something, and shows the end of the log if it does not come.
    pub fn until<T>(&self, what: &str, attempt: impl FnMut() -> Option<T>) -> T {
        until_for(PATIENCE, what, attempt).unwrap_or_else(|error| {
            let log = self.log();
            let end: Vec<_> = log.lines().rev().take(30).collect();
            panic!("{error:#}; the end of the log, backwards:\n{}", end.join("\n"))
        })
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The process has had no more memory than our manifests allow; prints the most that it had beside its maps.
    pub fn assert_small(&self, what: &str) {
        let (killed, limit) = (self.limit.killed().unwrap(), self.limit.bytes().unwrap() >> 20);
        assert_eq!(killed, 0, "{what}: ended for want of memory, {limit} MiB");
        println!("{what}: {} MiB at most, where it may have {limit} with its maps", self.peak_mib());
    }

    /// The most memory that the process has had, in MiB.
    pub fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.running.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }

    /// Runs a command of `kubeferry` on the node.
    pub fn kubeferry(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary::path().unwrap());
        self.web.hosts.node.output(command.args(arguments).env_remove("RUST_LOG"), "").unwrap()
    }

    /// The document of `kubeferry status`.
    pub fn status(&self) -> Value {
        self.until("a status", || {
            let output = self.kubeferry(&["status", "--output", "json", "--timeout", "20s"]);
            serde_json::from_slice(&output.stdout).ok()
        })
    }

    /// What is left out at present: a line for each.
    pub fn ignored(&self) -> Vec<String> {
        let status = self.status();
        let ignored = status["ignored"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        ignored.iter().map(|entry| format!("{}: {}", text(&entry["what"]), text(&entry["why"]))).collect()
    }

    /// Waits until this is said of something that is left out.
    pub fn until_ignored(&self, part: &str) -> String {
        let named = || self.ignored().into_iter().find(|line| line.contains(part));
        self.until(&format!("{part:?} to be said of what is left out"), named)
    }

    /// Waits for an Event with this reason on this object, and returns its note.
    pub fn event(&self, reason: &str, regarding: &str) -> String {
        self.until(&format!("an Event {reason} on {regarding}"), || {
            let events = self.server.objects(Resource::Event);
            let found =
                events.iter().find(|event| event["reason"] == reason && event["regarding"]["name"] == regarding)?;
            found["note"].as_str().map(str::to_owned)
        })
    }

    /// `/metrics`.
    pub fn metrics(&self) -> String {
        let url = "http://127.0.0.1:10249/metrics";
        self.web.hosts.node.run(|| get(url, DEADLINE)).unwrap().unwrap().body
    }

    /// Runs `harm` while the Service `web` is asked without a pause, and a neighbour makes new Services until what came is
    /// digested: it holds nobody up.
    pub fn beside(&self, number: u8, harm: impl FnOnce()) {
        let over = AtomicBool::new(false);
        let harm = || {
            thread::scope(|scope| {
                let ends = Ends(&over);
                let neighbour = scope.spawn(|| self.neighbour(number, &over));
                harm();
                drop(ends);
                let (longest, count) = neighbour.join().unwrap();
                println!("a neighbour's new Services, {count}, answered after {longest:.1?} at most");
                assert!(longest < patience(LATEST), "a neighbour's new Service answered after {longest:.1?}");
            });
        };
        if std::env::var_os(ENDPOINTS_VARIABLE).is_some() {
            self.web.under_load_beside_an_endpoint(harm).unwrap();
        } else {
            self.web.under_load(harm).unwrap();
        }
    }

    /// Makes a Service a second, in the place of the one before, until `over` and once more; the longest that one took to answer,
    /// from when the server had it, and how many there were.
    fn neighbour(&self, number: u8, over: &AtomicBool) -> (Duration, usize) {
        let (mut longest, mut last) = (Duration::ZERO, false);
        for count in 1.. {
            let (name, ip) = (format!("later-{number}-{count}"), format!("10.96.1.{}", count % 250 + 1));
            for object in proper(&name, &ip, "10.244.1.2") {
                self.server.put(object).unwrap();
            }
            let (made, to) = (Instant::now(), format!("{ip}:80").parse().unwrap());
            self.until("a Service that came later to answer", || {
                Connection::open_within(self.web.client(), to, ATTEMPT).ok()?.ask().ok()
            });
            longest = longest.max(made.elapsed());
            if last {
                return (longest, count);
            }
            for kind in [Resource::Service, Resource::EndpointSlice] {
                self.server.delete(kind, "default", &name).unwrap();
            }
            // The one after the end is made when all that the harm led to was there.
            last = over.load(Ordering::Relaxed);
            thread::sleep(if last { Duration::ZERO } else { Duration::from_secs(1).saturating_sub(made.elapsed()) });
        }
        unreachable!("there are more numbers")
    }
}

/// A Service that is well, port 80, with one endpoint at port 8080.
pub fn proper(name: &str, ip: &str, endpoint: &str) -> [Value; 2] {
    let service = json!({"kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "ports": [{"name": "http", "port": 80}]}});
    let slice = json!({"kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": [endpoint], "nodeName": "worker-1"}]});
    [service, slice]
}
