//! A node in a namespace with an API server on its loopback, the scripted one or the way to any, and a running `kubeferry` that
//! is watched from outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use kubeferry::status::Response;
use kubeferry_tests::apiserver::{ApiServer, Resource as Kind};
use kubeferry_tests::binary;
use kubeferry_tests::client::{DEADLINE, until};
use kubeferry_tests::cluster::{Cluster, Relay};
use kubeferry_tests::netns::Netns;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;
use tempfile::TempDir;

/// The node, `n1` for the scripted server. The process ends first, the namespace last.
pub struct Node<S = ApiServer> {
    process: Option<Child>,
    name: String,
    pub server: S,
    pub namespace: Netns,
    folder: TempDir,
}

/// A cluster of which nothing but the kubeconfig is known, and the way there.
pub struct Reached {
    relay: Relay,
    pub cluster: Cluster,
}

impl Node {
    /// A node with a server that speaks plain HTTP and serves the Node object; nothing runs yet.
    pub fn new() -> Self {
        Self::with(ApiServer::start)
    }

    /// The same with TLS and a token.
    pub fn with_tls() -> Self {
        Self::with(ApiServer::start_tls)
    }

    fn with(start: fn() -> anyhow::Result<ApiServer>) -> Self {
        let namespace = namespace();
        let server = namespace.run(start).unwrap().unwrap();
        println!("the API server is the scripted one at {}", server.url());
        server.apply(NODE).unwrap();
        Self { process: None, name: "n1".into(), server, namespace, folder: tempfile::tempdir().unwrap() }
    }

    /// Starts `kubeferry run --server URL`.
    pub fn run(&mut self) {
        let url = self.server.url();
        self.start(&["--server", &url]);
    }

    /// Waits until exactly these frontends are in the kernel.
    pub fn expect(&self, what: &str, frontends: &[&str]) {
        self.expect_among(what, frontends.iter().map(|text| socket(text)).collect(), |_| true);
    }
}

impl Node<Reached> {
    /// A node of a cluster, which serves its Node object; nothing runs yet.
    pub fn of(cluster: Cluster) -> Self {
        Self::of_at(cluster, namespace())
    }

    /// The same with a namespace that holds 192.0.2.1 and 2001:db8:2::1.
    pub fn of_at(cluster: Cluster, namespace: Netns) -> Self {
        println!("the API server is {}", cluster.server);
        let name = cluster.name.clone();
        // Nobody is to place anything on it.
        let spec = "{unschedulable: true, taints: [{key: kubeferry-test, effect: NoExecute}]}";
        let labels = format!("{{kubernetes.io/hostname: {name}}}");
        cluster.create(&format!("{{kind: Node, metadata: {{name: {name}, labels: {labels}}}, spec: {spec}}}")).unwrap();
        let addresses = "[{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8:2::1'}]";
        cluster.change_status(Kind::Node, &name, &format!("{{addresses: {addresses}}}")).unwrap();
        let relay = cluster.relay(&namespace).unwrap();
        let server = Reached { relay, cluster };
        Self { process: None, name, server, namespace, folder: tempfile::tempdir().unwrap() }
    }

    /// The flags that lead to the server.
    pub fn source(&self) -> [String; 2] {
        ["--kubeconfig".into(), self.server.relay.kubeconfig().display().to_string()]
    }

    /// Starts `kubeferry run --kubeconfig FILE`.
    pub fn run(&mut self) {
        let source = self.source();
        self.start(&source.each_ref().map(String::as_str));
    }

    /// Waits until exactly these of the ClusterIPs that the test's Services have been given are in the kernel.
    pub fn expect(&self, what: &str, frontends: &[SocketAddr]) {
        let ours = self.server.cluster.cluster_ips();
        self.expect_among(what, frontends.iter().copied().collect(), |frontend| ours.contains(&frontend.ip()));
    }
}

impl<S> Node<S> {
    /// `kubeferry SUBCOMMAND --node-name NAME` with settings, without a source.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(binary::path().unwrap());
        command.arg(subcommand).args(["--node-name", &self.name, "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"]);
        command
    }

    /// Starts `kubeferry run` with flags; its log goes to a file.
    pub fn start(&mut self, flags: &[&str]) {
        self.start_with(|command| {
            command.args(flags);
        });
    }

    /// The same with whatever is changed of the command.
    pub fn start_with(&mut self, change: impl FnOnce(&mut Command)) {
        let mut command = self.command("run");
        change(&mut command);
        self.start_command(command);
    }

    /// Starts `kubeferry run --node-name NAME` with these settings and no others.
    pub fn start_bare(&mut self, flags: &[&str]) {
        let mut command = Command::new(binary::path().unwrap());
        command.args(["run", "--node-name", &self.name]).args(flags);
        self.start_command(command);
    }

    fn start_command(&mut self, mut command: Command) {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).env("NO_COLOR", "1");
        self.process = Some(self.namespace.spawn(&mut command).unwrap());
    }

    /// Gives the running process no more open files than this.
    pub fn limit_open_files(&self, most: u64) {
        let pid = Pid::from_child(self.process.as_ref().unwrap());
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).unwrap();
    }

    fn log_path(&self) -> std::path::PathBuf {
        self.folder.path().join("log")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Runs a command of `kubeferry` to its end.
    pub fn output(&self, command: &mut Command) -> Output {
        self.namespace.output(command, "").unwrap()
    }

    /// Waits for its end, which it comes to by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        until("kubeferry run to end by itself", || process.try_wait().unwrap()).unwrap_or_else(|error| {
            drop(process.kill());
            panic!("{error:#}; its log:\n{}", self.log());
        })
    }

    /// Asks it to end, as a service manager does, and waits for it.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut process = self.process.take().unwrap();
        let killed = Command::new("kill").args(["-TERM", &process.id().to_string()]).status().unwrap();
        assert!(killed.success());
        until("kubeferry run to end after SIGTERM", || process.try_wait().unwrap()).unwrap_or_else(|error| {
            drop(process.kill());
            panic!("{error:#}; its log:\n{}", self.log());
        })
    }

    /// Kills it, as a crash would.
    pub fn crash(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Waits for something, and shows the log if it does not come.
    pub fn until<T>(&self, what: &str, attempt: impl FnMut() -> Option<T>) -> T {
        until(what, attempt).unwrap_or_else(|error| panic!("{error:#}; the log:\n{}", self.log()))
    }

    /// The document of `kubeferry status`; `None` while nobody answers.
    pub fn status(&self) -> Option<Value> {
        let mut command = Command::new(binary::path().unwrap());
        let output = self.output(command.args(["status", "--output", "json"]));
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Asks a URL from inside the node's namespace; `None` while nobody answers.
    pub fn get(&self, url: &str) -> Option<Response> {
        self.namespace.run(|| kubeferry::status::get(url, DEADLINE)).unwrap().ok()
    }

    /// Waits for the answer of a URL.
    pub fn ask(&self, url: &str) -> Response {
        self.until(&format!("an answer from {url}"), || self.get(url))
    }

    /// The value of a line of `/metrics`: a name with its labels, as it is written there.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("http://127.0.0.1:10249/metrics")?.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        Some(line.parse().unwrap_or_else(|_| panic!("{name} is {line}")))
    }

    /// Whether our table is in the kernel.
    pub fn has_table(&self) -> bool {
        self.namespace.nft(&["list", "tables"], "").unwrap().contains("inet kubeferry")
    }

    /// The addresses in the keys of the frontends of both families, with their ports. Empty without a table.
    pub fn frontends(&self) -> BTreeSet<SocketAddr> {
        let rows = ["frontends4", "frontends6"].into_iter().flat_map(|map| self.rows(map));
        rows.map(|row| pair(&row[0], &row[2])).collect()
    }

    /// The endpoints of all Services.
    pub fn endpoints(&self) -> BTreeSet<SocketAddr> {
        let elements = ["endpoints4", "endpoints6"].into_iter().flat_map(|map| self.listed(map));
        let values = elements.filter_map(|element| Some(concat(element.get(1)?)));
        values.map(|parts| pair(&parts[0], &parts[1])).collect()
    }

    fn rows(&self, map: &str) -> Vec<Vec<Value>> {
        self.listed(map).iter().map(|element| concat(&element[0])).collect()
    }

    fn listed(&self, map: &str) -> Vec<Value> {
        let Ok(text) = self.namespace.nft(&["-j", "list", "map", "inet", "kubeferry", map], "") else {
            return Vec::new();
        };
        let document: Value = serde_json::from_str(&text).unwrap();
        let objects = document["nftables"].as_array().unwrap();
        let map = objects.iter().find_map(|object| object.get("map")).unwrap();
        map["elem"].as_array().cloned().unwrap_or_default()
    }

    fn expect_among(&self, what: &str, wanted: BTreeSet<SocketAddr>, is_ours: impl Fn(&SocketAddr) -> bool) {
        let mut last = BTreeSet::new();
        let attempt = || {
            last = self.frontends().into_iter().filter(&is_ours).collect();
            (last == wanted).then_some(())
        };
        if let Err(error) = until(&format!("the frontends {wanted:?}: {what}"), attempt) {
            panic!("{error:#}; there are {last:?}; the log:\n{}", self.log());
        }
    }
}

impl<S> Drop for Node<S> {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself; either way nothing of it is left.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// A namespace that holds the node's addresses.
fn namespace() -> Netns {
    let namespace = Netns::new("node").unwrap();
    let addresses = ["addr add 192.0.2.1/32 dev eth0", "addr add 2001:db8:2::1/128 dev eth0 nodad"];
    let link = ["link add eth0 type veth peer name unplugged", "link set eth0 up"];
    namespace.ip(&[link, addresses].concat()).unwrap();
    namespace
}

fn concat(value: &Value) -> Vec<Value> {
    match value.pointer("/elem/val").unwrap_or(value).get("concat") {
        Some(parts) => parts.as_array().unwrap().clone(),
        None => vec![value.clone()],
    }
}

fn pair(ip: &Value, port: &Value) -> SocketAddr {
    let ip: IpAddr = ip.as_str().unwrap().parse().unwrap();
    SocketAddr::new(ip, u16::try_from(port.as_u64().unwrap()).unwrap())
}

/// Reads `IP:PORT`.
pub fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {kubernetes.io/hostname: n1}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n1}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2, labels: {kubernetes.io/hostname: n2}}
spec: {podCIDR: 10.244.2.0/24, podCIDRs: [10.244.2.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.2}, {type: Hostname, address: n2}]}
";

/// A Service as the API server holds it, with one port 80 named `http`. `metadata` are more of its fields.
pub fn service_with(name: &str, cluster_ip: &str, metadata: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: default{metadata}}}, spec: {{type: ClusterIP, \
         clusterIP: {cluster_ip}, clusterIPs: [{cluster_ip}], ipFamilies: [IPv4], ipFamilyPolicy: SingleStack, \
         sessionAffinity: None, internalTrafficPolicy: Cluster, selector: {{app: {name}}}, \
         ports: [{{name: http, protocol: TCP, port: 80, targetPort: 8080}}]}}, status: {{loadBalancer: {{}}}}}}\n"
    )
}

/// A Service and its EndpointSlice with these endpoints.
pub fn service(name: &str, cluster_ip: &str, endpoints: &[&str]) -> String {
    service_with(name, cluster_ip, "") + "---\n" + &slice(name, endpoints)
}

/// The EndpointSlice of a Service, port 8080.
pub fn slice(service: &str, endpoints: &[&str]) -> String {
    let endpoint = |ip: &&str| {
        format!("{{addresses: ['{ip}'], conditions: {{ready: true, serving: true, terminating: false}}, nodeName: n1}}")
    };
    let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {service}-x, namespace: default, \
         labels: {{kubernetes.io/service-name: {service}}}}}, addressType: IPv4, endpoints: [{}], \
         ports: [{{name: http, protocol: TCP, port: 8080}}]}}\n",
        endpoints.join(", ")
    )
}
