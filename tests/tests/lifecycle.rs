//! What operators do to the proxy, and what happens to it, under running traffic: stop, start, other settings, a deleted
//! table, and bad input.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::ops::Deref;
use std::process::{Command, Output, Stdio};

use kubeferry::backend::nftables::netlink;
use kubeferry_tests::binary;
use kubeferry_tests::client::{Running, ask_once, datagrams, until};
use kubeferry_tests::web::{MANIFESTS, Web};

struct Cluster(Web);

impl Deref for Cluster {
    type Target = Web;

    fn deref(&self) -> &Web {
        &self.0
    }
}

impl Cluster {
    fn build() -> Self {
        Self(Web::build().unwrap())
    }

    fn start(&self) -> Running {
        Running::start(&self.source, &self.hosts.node).unwrap()
    }

    fn list(&self) -> String {
        self.hosts.node.nft(&["-a", "list", "table", "inet", "kubeferry"], "").unwrap()
    }

    /// What the table says, in no order: a table made anew may list its rows and chains in another.
    fn words(&self) -> Vec<String> {
        let list = self.hosts.node.nft(&["list", "table", "inet", "kubeferry"], "").unwrap();
        let mut words: Vec<_> = list.split(['\n', ',', '{', '}', '=']).map(|word| word.trim().to_owned()).collect();
        words.retain(|word| !word.is_empty());
        words.sort();
        words
    }

    /// Counts the transactions of the node's namespace.
    fn generation(&self) -> u32 {
        self.hosts.node.run(|| netlink::Connection::open().unwrap().generation().unwrap()).unwrap()
    }
}

fn run(cluster: &Cluster, change: impl FnOnce(&mut Command)) -> Output {
    let mut command = cluster.source.command("run").unwrap();
    command.arg("--once").stdin(Stdio::null());
    change(&mut command);
    cluster.hosts.node.output(&mut command, "").unwrap()
}

fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "it should have failed");
    let text = String::from_utf8_lossy(&output.stderr).to_string();
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("kubeferry: "), "the last line is the error: {text}");
    last
}

#[test]
fn stopping_leaves_traffic_alone_and_a_restart_changes_nothing() {
    let cluster = Cluster::build();
    let running = cluster.start();
    cluster.until_served().unwrap();
    // A restart takes longer than the half minute of the kernel's default where everything is emulated.
    cluster.hosts.node.sysctl("net/netfilter/nf_conntrack_udp_timeout", "600").unwrap();
    let socket = datagrams(cluster.client(), cluster.vip()).unwrap();
    let (endpoint, _) = until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap();
    let before = cluster.list();
    cluster
        .under_load(|| {
            assert!(running.stop().unwrap().success(), "SIGTERM is a clean end");
            assert_eq!(cluster.list(), before);
            let again = cluster.start();
            until("the second run to serve its status", || status(&cluster)).unwrap();
            assert_eq!(cluster.list(), before, "a restart changes nothing");
            drop(again);
        })
        .unwrap();
    assert_eq!(ask_once(&socket).unwrap().unwrap().0, endpoint, "the UDP flow goes on with its endpoint");
}

fn status(cluster: &Cluster) -> Option<()> {
    let mut command = Command::new(binary::path().unwrap());
    let output = cluster.hosts.node.output(command.arg("status"), "").unwrap();
    output.status.success().then_some(())
}

#[test]
fn other_settings_replace_the_table_without_a_failed_request() {
    let cluster = Cluster::build();
    assert!(run(&cluster, |_| ()).status.success());
    cluster.until_served().unwrap();
    let before = cluster.list();
    cluster
        .under_load(|| {
            for round in 0..5 {
                let change = |command: &mut Command| {
                    command.args(["--iptables-masquerade-bit", if round % 2 == 0 { "5" } else { "6" }]);
                };
                assert!(run(&cluster, change).status.success());
            }
        })
        .unwrap();
    let after = cluster.list();
    assert!(before.contains("0x00004000") && !after.contains("0x00004000") && after.contains("0x00000020"), "{after}");
}

#[test]
fn a_deleted_table_and_a_deleted_row_are_healed() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    cluster.until_served().unwrap();
    for harm in ["delete table inet kubeferry", "delete element inet kubeferry frontends4 { 10.96.0.10 . tcp . 80 }"] {
        cluster.hosts.node.nft(&["-f", "-"], harm).unwrap();
        let row = || {
            cluster
                .hosts
                .node
                .nft(&["get", "element", "inet", "kubeferry", "frontends4", "{ 10.96.0.10 . tcp . 80 }"], "")
                .ok()
        };
        until(&format!("healing after {harm}"), row).unwrap();
        cluster.until_served().unwrap();
    }
}

/// Harm that leaves the number of rules of every chain as it was, but for the last.
const TAMPERING: [(&str, &str); 8] = [
    ("a rule of the skeleton", "flush chain inet kubeferry discard; add rule inet kubeferry discard accept"),
    (
        "a rule that picks",
        "flush chain inet kubeferry v4-cluster-random-2; add rule inet kubeferry v4-cluster-random-2 drop",
    ),
    (
        "a rule that goes on",
        "flush chain inet kubeferry v4-internal-cluster-random-2; add rule inet kubeferry v4-internal-cluster-random-2 \
         ip saddr != 10.244.0.0/16 meta mark set meta mark | 0x8000; \
         add rule inet kubeferry v4-internal-cluster-random-2 goto v4-cluster-random-2",
    ),
    ("a policy", "add chain inet kubeferry prerouting { policy drop; }"),
    (
        "a priority",
        "delete chain inet kubeferry input; add chain inet kubeferry input { type nat hook input priority 90; }; \
         add rule inet kubeferry input ct status dnat jump remember",
    ),
    (
        "a set within a rule",
        "flush chain inet kubeferry prerouting; \
         add rule inet kubeferry prerouting meta nfproto vmap { ipv4 : goto services4, ipv6 : goto discard }",
    ),
    (
        "a set made again",
        "flush chain inet kubeferry ranged4; delete set inet kubeferry source_ranges4; \
         add set inet kubeferry source_ranges4 { type ipv4_addr . inet_proto . inet_service . ipv4_addr; flags interval; size 1; }; \
         add rule inet kubeferry ranged4 ip daddr . ct protocol . th dport . ip saddr != @source_ranges4 drop; \
         add rule inet kubeferry ranged4 ip daddr . meta l4proto . th dport vmap @ranged4",
    ),
    ("a chain of its own", "add chain inet kubeferry other { type filter hook input priority 0; policy drop; }"),
];

#[test]
fn what_was_tampered_with_while_no_proxy_ran_is_healed_by_the_next() {
    let cluster = Cluster::build();
    assert!(run(&cluster, |_| ()).status.success());
    let before = cluster.words();
    for (what, harm) in TAMPERING {
        cluster.hosts.node.nft(&["-f", "-"], harm).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_ne!(cluster.words(), before, "{what} was tampered with");
        let output = run(&cluster, |_| ());
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{what}: {log}");
        assert_eq!(cluster.words(), before, "{what} is as before");
        assert!(log.contains("somebody changed the kernel's table; repaired"), "{what} is reported: {log}");
        let (generation, again) = (cluster.generation(), run(&cluster, |_| ()));
        let log = String::from_utf8_lossy(&again.stderr);
        assert!(!log.contains("somebody changed"), "{what} is healed for good: {log}");
        assert_eq!(cluster.generation(), generation, "{what}: a restart on a healed table changes nothing");
    }
    cluster.until_served().unwrap();
}

#[test]
fn a_restart_is_no_transaction_whoever_wrote_the_table() {
    let cluster = Cluster::build();
    for how in ["from nothing", "by replacing another version's"] {
        assert!(run(&cluster, |_| ()).status.success());
        let (before, list) = (cluster.generation(), cluster.list());
        let output = run(&cluster, |_| ());
        assert!(output.status.success());
        assert_eq!(cluster.generation(), before, "{how}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(cluster.list(), list, "{how}");
        let other = "delete table inet kubeferry; table inet kubeferry { comment \"kubeferry 0.0.1\"; chain old { }; }";
        cluster.hosts.node.nft(&["-f", "-"], other).unwrap();
    }
}

#[test]
fn cleanup_removes_the_table_and_says_so_twice() {
    let cluster = Cluster::build();
    assert!(run(&cluster, |_| ()).status.success());
    let nothing = "nothing to remove: there is no table inet kubeferry, and nothing of ours in /sys/fs/bpf\n";
    for expected in ["removed table inet kubeferry\n", nothing] {
        let mut command = Command::new(binary::path().unwrap());
        command.arg("cleanup").env("PATH", "/nonexistent");
        let output = cluster.hosts.node.output(&mut command, "").unwrap();
        assert!(output.status.success(), "no other program is needed: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}

#[test]
fn a_missing_tool_or_right_is_named() {
    let cluster = Cluster::build();
    let no_nft = complaint(&run(&cluster, |command| {
        command.env("PATH", "/nonexistent");
    }));
    assert!(no_nft.contains("install the package nftables"), "{no_nft}");
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]).arg(binary::path().unwrap());
    let run = cluster.source.command("run").unwrap();
    command.args(run.get_args()).arg("--once");
    let output = cluster.hosts.node.output(&mut command, "").unwrap();
    assert!(complaint(&output).contains("CAP_NET_ADMIN"), "{output:?}");
}

#[test]
fn a_malformed_object_costs_its_neighbours_nothing() {
    let cluster = Cluster::build();
    let bad = format!(
        "{MANIFESTS}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: bad}}\nspec: {{clusterIP: 10.96.0.11, ports: [{{port: eighty}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: worse}}\nspec: {{clusterIP: 10.96.0.300, ports: [{{port: 80}}]}}\n"
    );
    cluster.write(&bad).unwrap();
    let output = run(&cluster, |_| ());
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("eighty") && log.contains("10.96.0.300"), "{log}");
    cluster.until_served().unwrap();
}

#[test]
fn wrong_flags_and_settings_say_what_is_allowed() {
    let cluster = Cluster::build();
    let says = |arguments: &[&str]| {
        let output = run(&cluster, |command| {
            command.args(arguments);
        });
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).to_string()
    };
    assert!(says(&["--no-such-flag"]).contains("--no-such-flag"));
    assert!(says(&["--proxy-port-range", "1-2"]).contains("is not accepted"));
    assert!(says(&["--proxy-mode", "kernelspace"]).contains("must be nftables or ebpf"));
    assert!(says(&["--cluster-cidr", "10.0.0.0/33"]).contains("10.0.0.0/33"));
    assert!(says(&["--config", "/no/such/file"]).contains("/no/such/file"));
    assert!(says(&["--backend", "userspace"]).contains("must be nftables or ebpf"));
    let config = tempfile::NamedTempFile::new().unwrap();
    let text =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nnoSuchField: 1\n";
    std::fs::write(config.path(), text).unwrap();
    let output = run(&cluster, |command| {
        command.arg("--config").arg(config.path());
    });
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && log.contains("noSuchField"), "an unknown field is a warning: {log}");
}
