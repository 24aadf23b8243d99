//! What `run` sets on the node, and what it removes there of kube-proxy's, beyond what the migration under load shows.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fs;
use std::net::{IpAddr, TcpStream};
use std::process::{Command, Output, Stdio};

use kubeferry::status::get;
use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{DEADLINE, Running, until};
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::kube_proxy::{Mode, Service};
use kubeferry_tests::netns::{Netns, tool};

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1]}
cluster-cidr: [10.244.0.0/16]
";

fn source() -> Source {
    let node = Node::parse(NODE).unwrap();
    let source = Source::new(&Case { name: "node".into(), node: node.clone(), steps: Vec::new() }).unwrap();
    source.write(&Step { manifests: with_node(&node, "").unwrap(), rows: Vec::new() }).unwrap();
    source
}

fn run(node: &Netns, source: &Source, arguments: &[&str]) -> Output {
    let mut command = source.command("run").unwrap();
    node.output(command.args(arguments).stdin(Stdio::null()), "").unwrap()
}

fn cleanup(node: &Netns, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary::path().unwrap());
    node.output(command.arg("cleanup").args(arguments), "").unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The same command where nobody can write sysctls.
fn read_only(command: &Command) -> Command {
    let script = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$@\"";
    let mut confined = Command::new("unshare");
    confined.args(["--mount", "sh", "-ec", script, "sh"]).arg(binary::path().unwrap()).args(command.get_args());
    confined.env("NO_COLOR", "1").stdin(Stdio::null());
    confined
}

fn service() -> Service {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    Service {
        cluster_ip: ip("10.96.0.10"),
        node_ip: ip("192.0.2.1"),
        endpoints: [ip("10.244.1.1"), ip("10.244.1.2")],
        pods: "10.244.0.0/16",
    }
}

#[test]
fn sysctls_follow_the_configuration_and_zero_leaves_them() {
    let (node, source) = (Netns::new("node").unwrap(), source());
    let read = |name: &str| node.read_sysctl(&format!("net/netfilter/nf_conntrack_{name}")).unwrap();
    let names =
        ["tcp_timeout_established", "tcp_timeout_close_wait", "tcp_be_liberal", "udp_timeout", "udp_timeout_stream"];
    let before = names.map(read);
    let config = tempfile::NamedTempFile::new().unwrap();
    let with = |conntrack: &str| {
        let file = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nconntrack: {conntrack}\n"
        );
        fs::write(config.path(), file).unwrap();
        let output = run(&node, &source, &["--once", "--config", config.path().to_str().unwrap()]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    };
    let log = with("{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}");
    assert_eq!(names.map(read), before);
    assert!(!log.contains("nf_conntrack"), "{log}");
    let route_localnet = || node.read_sysctl("net/ipv4/conf/all/route_localnet").unwrap();
    let all = "{maxPerCore: 1, min: 1, tcpEstablishedTimeout: 2h, tcpCloseWaitTimeout: 90s, tcpBeLiberal: true, \
               udpTimeout: 40s, udpStreamTimeout: 3m}";
    let log = with(all);
    assert_eq!(names.map(read), ["7200", "90", "1", "40", "180"]);
    assert_eq!(route_localnet(), "0", "never opened");
    assert!(log.contains("set net.netfilter.nf_conntrack_udp_timeout from"), "{log}");
    // The machine's own limit is none of this namespace's.
    assert!(log.contains("net.netfilter.nf_conntrack_max stays at"), "{log}");
    let log = with(all);
    assert!(!log.contains("set net.netfilter"), "what is right is not written again: {log}");
}

/// A container that is started again, without the init container that may write sysctls.
#[test]
fn what_only_others_may_set_is_told_and_keeps_nobody_from_serving() {
    const ESTABLISHED: &str = "net/netfilter/nf_conntrack_tcp_timeout_established";
    let (node, source) = (Netns::new("node").unwrap(), source());
    let confined = |flags: &[&str]| read_only(source.command("run").unwrap().args(flags));
    let given = ["--conntrack-tcp-timeout-established", "12h", "--conntrack-max-per-core", "0"];
    let init = node.output(&mut confined(&[&given[..], &["--init-only"]].concat()), "").unwrap();
    assert!(!init.status.success(), "this is there to set it");
    assert!(
        text(&init).contains("nf_conntrack_tcp_timeout_established is 432000 and should be 43200"),
        "{}",
        text(&init)
    );
    let ignored = || node.run(|| get("http://127.0.0.1:10249/api/v1/ignored", DEADLINE)).unwrap().ok();
    let running = Running::start_command(&mut confined(&given), &node).unwrap();
    let told = until("it to be told", || ignored().filter(|told| told.body.contains(".nf_conntrack_"))).unwrap().body;
    assert!(told.contains("net.netfilter.nf_conntrack_tcp_timeout_established"), "{told}");
    assert!(told.contains("mounted read-only") && told.contains("a new pod runs"), "{told}");
    until("the table", || node.nft(&["list", "table", "inet", "kubeferry"], "").ok()).unwrap();
    assert!(running.stop().unwrap().success());
    // Set from outside, all is well.
    node.sysctl(ESTABLISHED, "43200").unwrap();
    node.sysctl("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600").unwrap();
    let _running = Running::start_command(&mut confined(&given), &node).unwrap();
    let told = until("an answer", || ignored().filter(|told| told.code == 200)).unwrap().body;
    assert!(!told.contains("nf_conntrack"), "{told}");
}

#[test]
fn the_oom_score_is_set_or_its_refusal_told() {
    let (node, source) = (Netns::new("node").unwrap(), source());
    // A higher one is nobody's to refuse.
    let running =
        Running::start_command(source.command("run").unwrap().args(["--oom-score-adj", "617"]), &node).unwrap();
    let score = || fs::read_to_string(format!("/proc/{}/oom_score_adj", running.id())).ok();
    until("the score to be set", || score().filter(|score| score == "617\n")).unwrap();
    assert!(running.stop().unwrap().success());
    let lowest = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse::<i32>().unwrap() - 1;
    let mut lower = Command::new("setpriv");
    lower.args(["--bounding-set", "-sys_resource", "--inh-caps", "-sys_resource"]).arg(binary::path().unwrap());
    lower.args(source.command("run").unwrap().get_args()).args(["--once", &format!("--oom-score-adj={lowest}")]);
    let output = node.output(&mut lower, "").unwrap();
    assert!(output.status.success(), "it is no reason not to serve: {}", text(&output));
    assert!(text(&output).contains("was refused") && text(&output).contains("CAP_SYS_RESOURCE"), "{}", text(&output));
}

#[test]
fn more_connections_than_the_limit_of_open_files_do_not_keep_the_proxy_from_its_work() {
    const SOFT: usize = 100;
    let (node, source) = (Netns::new("node").unwrap(), source());
    let arguments = source.command("run").unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -Sn {SOFT} && exec \"$@\""), "sh"]);
    command.arg(binary::path().unwrap()).args(arguments.get_args()).args(["--healthz-bind-address", "127.0.0.1:10256"]);
    let running = Running::start_command(&mut command, &node).unwrap();
    let connect = || TcpStream::connect("127.0.0.1:10256");
    let first = until("/healthz to be served", || node.run(connect).unwrap().ok()).unwrap();
    let held: Vec<_> = (0..2 * SOFT).map(|_| node.run(connect).unwrap().unwrap()).collect();
    let open = || fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap().count();
    until("more open files than the limit that it was started with", || (open() > SOFT).then_some(())).unwrap();
    drop((first, held));
    assert!(running.stop().unwrap().success());
}

#[test]
fn health_check_node_ports_leave_open_files_for_the_proxys_own_work() {
    const SERVICES: u32 = 400;
    let (node, source) = (Netns::new("node").unwrap(), source());
    node.ip(&["addr add 192.0.2.1/32 dev lo"]).unwrap();
    let mut manifests = String::new();
    for number in 0..SERVICES {
        let (port, third, last) = (20_000 + number, number / 200, number % 200 + 1);
        let created = format!("2026-01-01T{:02}:{:02}:00Z", number / 60, number % 60);
        manifests += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, creationTimestamp: '{created}'}}\nspec: {{type: \
             LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: {port}, clusterIP: 10.96.{third}.{last}, ports: \
             [{{port: 80}}]}}\n"
        );
    }
    let step = Step { manifests: with_node(&Node::parse(NODE).unwrap(), &manifests).unwrap(), rows: Vec::new() };
    source.write(&step).unwrap();
    let arguments = source.command("run").unwrap();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=256:256").arg(binary::path().unwrap()).args(arguments.get_args()).stdin(Stdio::null());
    let running = Running::start_command(&mut command, &node).unwrap();
    let answers = |number: u32| {
        let address = format!("192.0.2.1:{}", 20_000 + number);
        node.run(|| TcpStream::connect(address)).unwrap().is_ok()
    };
    until("the oldest Service's port to be open", || answers(0).then_some(())).unwrap();
    until("the table to be there", || node.nft(&["list", "table", "inet", "kubeferry"], "").ok()).unwrap();
    assert!(!answers(SERVICES - 1), "the newest one's is left out");
    node.nft(&["delete", "table", "inet", "kubeferry"], "").unwrap();
    until("the table to be back", || node.nft(&["list", "table", "inet", "kubeferry"], "").ok()).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap().count();
    assert!(open < 128, "{open}");
    assert!(running.stop().unwrap().success());
}

#[test]
fn init_only_mounts_the_file_system_that_ebpf_needs() {
    let (node, source) = (Netns::new("node").unwrap(), source());
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_str().unwrap();
    for _ in 0..2 {
        let output = run(&node, &source, &["--init-only", "--backend", "ebpf", "--bpffs-root", root]);
        assert!(output.status.success(), "{}", text(&output));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mounted = mounts.lines().filter(|line| line.contains(root)).count();
    tool("umount", &["--lazy", root], "").unwrap();
    assert_eq!(mounted, 1, "{mounts}");
}

/// A node where IPVS's chains look into its sets, beside what is somebody else's.
fn with_ipvs_mode(node: &Netns) {
    let sets = "create KUBE-CLUSTER-IP hash:ip,port\ncreate KUBE-6-LOAD-BALANCER-SOURCE-CID hash:net,port family inet6\n\
                create KUBE-LOOP-BACK hash:ip,port,ip\ncreate others hash:ip\ncreate KUBE-SRC-OTHERS hash:ip\n";
    node.run(|| tool("ipset", &["restore"], sets)).unwrap().unwrap();
    let rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-LOAD-BALANCER - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
                 :CNI-HOSTPORT-SETMARK - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
                 -A PREROUTING -j CNI-HOSTPORT-SETMARK\n-A CNI-HOSTPORT-SETMARK -p tcp -m tcp --dport 7 -j KUBE-MARK-MASQ\n\
                 -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ\n\
                 -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
                 -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n-A KUBE-POSTROUTING -j MASQUERADE\nCOMMIT\n\
                 *filter\n:KUBE-FORWARD - [0:0]\n:FORWARD DROP [0:0]\n-A FORWARD -j KUBE-FORWARD\nCOMMIT\n";
    node.run(|| tool("iptables-nft-restore", &["--noflush"], rules)).unwrap().unwrap();
    // Not every kernel has dummies.
    node.ip(&["link add kube-ipvs0 type bridge", "addr add 10.96.0.10/32 dev kube-ipvs0"]).unwrap();
    node.sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
}

#[test]
fn loopback_addresses_that_neighbours_may_reach_are_told() {
    const TOLD: &str = "neighbours may reach what listens at loopback addresses";
    let (node, source) = (Netns::new("node").unwrap(), source());
    let log = || text(&run(&node, &source, &["--once"]));
    let before = log();
    assert!(!before.contains(TOLD), "{before}");
    node.sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap();
    let after = log();
    assert!(after.contains(TOLD), "{after}");
    assert_eq!(node.read_sysctl("net/ipv4/conf/all/route_localnet").unwrap(), "1", "that is somebody else's");
}

#[test]
fn what_ipvs_mode_left_goes_and_what_others_use_stays() {
    let (node, source) = (Netns::new("node").unwrap(), source());
    with_ipvs_mode(&node);
    let output = run(&node, &source, &["--once"]);
    let log = text(&output);
    assert!(output.status.success(), "{log}");
    let sets = node.run(|| tool("ipset", &["list", "-name"], "")).unwrap().unwrap();
    let mut sets: Vec<_> = sets.lines().collect();
    sets.sort_unstable();
    assert_eq!(sets, ["KUBE-SRC-OTHERS", "others"], "{log}");
    let links = node.run(|| tool("ip", &["-o", "link"], "")).unwrap().unwrap();
    assert!(!links.contains("kube-ipvs0"), "{links}");
    let saved = node.run(|| tool("iptables-nft-save", &[], "")).unwrap().unwrap();
    for gone in ["KUBE-SERVICES", "KUBE-LOAD-BALANCER", "KUBE-FORWARD"] {
        assert!(!saved.contains(gone), "{gone} is left:\n{saved}");
    }
    // A port of the network plugin's is still marked, and still masqueraded.
    for kept in [
        "-A CNI-HOSTPORT-SETMARK -p tcp -m tcp --dport 7 -j KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-POSTROUTING -j MASQUERADE",
    ] {
        assert!(saved.contains(kept), "{kept} is gone:\n{saved}");
    }
    for told in [
        "chain KUBE-MARK-MASQ of iptables in table ip nat stays: the chain CNI-HOSTPORT-SETMARK leads there",
        "the policy of the chain FORWARD in table ip filter is DROP",
        "net.ipv4.conf.all.route_localnet is 1",
    ] {
        assert!(log.contains(told), "{told:?} is not in:\n{log}");
    }
    assert!(!log.contains("cannot remove"), "{log}");
}

#[test]
fn cleanup_removes_what_it_is_asked_for() {
    let (node, source) = (Netns::new("node").unwrap(), source());
    Mode::Nftables.load(&node, &[service()]).unwrap();
    let mut command = Command::new(binary::path().unwrap());
    let output = node.output(command.arg("cleanup"), "").unwrap();
    assert!(text(&output).contains("nothing to remove"), "{}", text(&output));
    assert!(!Mode::Nftables.rules(&node).unwrap().is_empty(), "theirs is not ours to remove unasked");
    let output = cleanup(&node, &["--kube-proxy"]);
    assert!(output.status.success() && text(&output).contains("removed table ip kube-proxy"), "{}", text(&output));
    assert_eq!(node.nft(&["list", "tables"], "").unwrap(), "");
    // As kube-proxy has it.
    assert!(run(&node, &source, &["--once"]).status.success());
    Mode::Iptables.load(&node, &[service()]).unwrap();
    let output = run(&node, &source, &["--cleanup"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("removed table inet kubeferry"), "{}", text(&output));
    assert_eq!(Mode::Iptables.rules(&node).unwrap(), Vec::<String>::new());
    assert!(!node.nft(&["list", "tables"], "").unwrap().contains("kubeferry"));
    let output = cleanup(&node, &["--kube-proxy"]);
    assert!(text(&output).contains("and nothing of kube-proxy"), "{}", text(&output));
}

#[test]
fn a_step_that_fails_is_exit_code_1_and_the_others_are_done() {
    let node = Netns::new("node").unwrap();
    Mode::Nftables.load(&node, &[service()]).unwrap();
    let sets = "create KUBE-CLUSTER-IP hash:ip,port\ncreate KUBE-LOOP-BACK hash:ip,port,ip\n";
    node.run(|| tool("ipset", &["restore"], sets)).unwrap().unwrap();
    let rules = "*filter\n-A INPUT -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
    node.run(|| tool("iptables-nft-restore", &["--noflush"], rules)).unwrap().unwrap();
    let output = cleanup(&node, &["--kube-proxy"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("ipset KUBE-CLUSTER-IP is used by a rule that is not kube-proxy's"),
        "{}",
        text(&output)
    );
    let sets = node.run(|| tool("ipset", &["list", "-name"], "")).unwrap().unwrap();
    assert_eq!(sets.trim(), "KUBE-CLUSTER-IP");
    assert!(!node.nft(&["list", "tables"], "").unwrap().contains("kube-proxy"));
}

/// The image has no program for chains of iptables-legacy: whoever runs it must hear of them.
#[test]
fn chains_that_no_program_here_can_remove_are_told_and_counted() {
    let (node, source) = (Netns::new("node").unwrap(), source());
    Mode::IptablesLegacy.load(&node, &[service()]).unwrap();
    let (programs, log) = (tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let nft = tool("which", &["nft"], "").unwrap();
    std::os::unix::fs::symlink(nft.trim(), programs.path().join("nft")).unwrap();
    let mut command = source.command("run").unwrap();
    command.env("PATH", programs.path()).env("NO_COLOR", "1").stderr(log.reopen().unwrap());
    let running = Running::start_command(&mut command, &node).unwrap();
    let metrics = || {
        let get = || kubeferry::status::get("http://127.0.0.1:10249/metrics", DEADLINE).ok();
        Some(node.run(get).unwrap()?.body).filter(|text| !text.contains("\nkubeferry_leftovers 0\n"))
    };
    let text = until("the chains to be counted", metrics).unwrap();
    let count = text.lines().find_map(|line| line.strip_prefix("kubeferry_leftovers ")).unwrap();
    assert!(count.parse::<u32>().unwrap() >= 1, "{count}");
    let theirs = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv4\"} 0\n";
    assert!(text.contains(theirs), "it counts something else");
    let said = || {
        let text = fs::read_to_string(log.path()).unwrap();
        let event = text.lines().any(|line| line.contains("LeftoversRemain") && line.contains("kube-proxy --cleanup"));
        event.then_some(())
    };
    until("an Event that says what to do", said).unwrap();
    assert!(running.stop().unwrap().success());
    assert!(!Mode::IptablesLegacy.rules(&node).unwrap().is_empty());
    let mut without = Command::new(binary::path().unwrap());
    let output = node.output(without.args(["cleanup", "--kube-proxy"]).env("PATH", programs.path()), "").unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", self::text(&output));
    assert!(self::text(&output).contains("iptables-legacy-save is not here"), "{}", self::text(&output));
    assert!(cleanup(&node, &["--kube-proxy"]).status.success());
    assert_eq!(Mode::IptablesLegacy.rules(&node).unwrap(), Vec::<String>::new());
}

/// The eBPF datapath has no use for connection tracking: nothing of it is asked for, and what is there is set as ever.
#[test]
fn with_ebpf_a_sysctl_that_cannot_be_set_is_a_warning() {
    let (node, source, places) = (Netns::new("node").unwrap(), source(), Places::new().unwrap());
    let mut arguments = source.command("run").unwrap();
    places.apply(&mut arguments).arg("--once");
    let output = node.output(&mut read_only(&arguments), "").unwrap();
    let log = text(&output);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("mounted read-only here") && log.contains("do not depend on it with eBPF"), "{log}");
}
