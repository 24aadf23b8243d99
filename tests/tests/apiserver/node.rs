//! A node in a namespace with the scripted server on its loopback, and a running `kubeferry` that is watched from outside.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use kubeferry_tests::apiserver::ApiServer;
use kubeferry_tests::binary;
use kubeferry_tests::client::until;
use kubeferry_tests::netns::Netns;
use serde_json::Value;
use tempfile::TempDir;

/// The node, `n1`. The process ends first, the namespace last.
pub struct Node {
    process: Option<Child>,
    pub server: ApiServer,
    pub namespace: Netns,
    folder: TempDir,
}

impl Node {
    /// A node with a server that speaks plain HTTP and serves the Node object; nothing runs yet.
    pub fn new() -> Self {
        Self::with(namespace(), ApiServer::start)
    }

    /// The same with TLS and a token.
    pub fn with_tls() -> Self {
        Self::with(namespace(), ApiServer::start_tls)
    }

    pub fn with(namespace: Netns, start: fn() -> anyhow::Result<ApiServer>) -> Self {
        let server = namespace.run(start).unwrap().unwrap();
        println!("the API server is the scripted one at {}", server.url());
        server.apply(NODE).unwrap();
        Self { process: None, server, namespace, folder: tempfile::tempdir().unwrap() }
    }

    /// `kubeferry SUBCOMMAND --node-name n1` with the source's flags.
    pub fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(binary::path().unwrap());
        command.arg(subcommand).args(["--node-name", "n1", "--cluster-cidr", "10.244.0.0/16"]);
        command
    }

    /// Starts `kubeferry run --server URL`.
    pub fn run(&mut self) {
        let url = self.server.url();
        self.start(&["--server", &url]);
    }

    /// Starts `kubeferry run` with flags; its log goes to a file.
    pub fn start(&mut self, flags: &[&str]) {
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.command("run");
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).env("NO_COLOR", "1");
        self.process = Some(self.namespace.spawn(&mut command).unwrap());
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

    /// Whether our table is in the kernel.
    pub fn has_table(&self) -> bool {
        self.namespace.nft(&["list", "tables"], "").unwrap().contains("inet kubeferry")
    }

    /// The addresses in the keys of `frontends4`, with their ports: `10.96.0.1:80`. Empty without a table.
    pub fn frontends(&self) -> BTreeSet<String> {
        self.rows("frontends4").iter().map(|row| format!("{}:{}", text(&row[0]), text(&row[2]))).collect()
    }

    /// The endpoints of all Services: `10.244.1.1:8080`.
    pub fn endpoints(&self) -> BTreeSet<String> {
        let map = self.listed("endpoints4");
        let pairs = map.iter().filter_map(|element| Some(concat(element.get(1)?)));
        pairs.map(|parts| format!("{}:{}", text(&parts[0]), text(&parts[1]))).collect()
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

    /// Waits until exactly these frontends are in the kernel.
    pub fn expect(&self, what: &str, frontends: &[&str]) {
        let wanted: BTreeSet<String> = frontends.iter().map(|text| (*text).to_owned()).collect();
        let mut last = BTreeSet::new();
        let attempt = || {
            last = self.frontends();
            (last == wanted).then_some(())
        };
        if let Err(error) = until(&format!("the frontends {wanted:?}: {what}"), attempt) {
            panic!("{error:#}; there are {last:?}; the log:\n{}", self.log());
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It may have ended by itself; either way nothing of it is left.
            drop(process.kill());
            drop(process.wait());
        }
    }
}

/// A namespace that holds the node's address.
fn namespace() -> Netns {
    let namespace = Netns::new("node").unwrap();
    let lines = ["link add eth0 type veth peer name unplugged", "addr add 192.0.2.1/32 dev eth0", "link set eth0 up"];
    namespace.ip(&lines).unwrap();
    namespace
}

fn concat(value: &Value) -> Vec<Value> {
    match value.pointer("/elem/val").unwrap_or(value).get("concat") {
        Some(parts) => parts.as_array().unwrap().clone(),
        None => vec![value.clone()],
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
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
