//! The proxy with few rights: what it gives up by itself, and that what is left does. Real traffic, in a namespace of its own.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{Connection, Running, ask_once, datagrams, until};
use kubeferry_tests::netns::tool;
use kubeferry_tests::web::{MANIFESTS, Web};

/// A user who is nobody here.
const USER: &str = "65532";
/// Numbers of capabilities, of include/uapi/linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const PERFMON: u64 = 1 << 38;
const BPF: u64 = 1 << 39;

/// The Service answers; a change of its endpoints takes effect; a flow of UDP leaves an endpoint that is gone.
fn serves(web: &Web) {
    let vip = web.vip();
    until("the Service to answer", || Connection::attempt(web.client(), vip)?.ask().ok()).unwrap();
    let socket = datagrams(web.client(), vip).unwrap();
    let (first, _) = until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap();
    let gone = if first == "web1" { "10.244.1.1" } else { "10.244.1.2" };
    let gone = format!("{{addresses: [{gone}], nodeName: worker-1}}");
    web.write(&MANIFESTS.replace(&format!("{gone}, "), "").replace(&format!(", {gone}"), "")).unwrap();
    let moved = || ask_once(&socket).unwrap().filter(|(server, _)| *server != first);
    until("datagrams to leave the endpoint that is gone", moved).unwrap();
    for _ in 0..4 {
        assert_ne!(Connection::open(web.client(), vip).unwrap().ask().unwrap().0, first);
    }
}

/// The sets of every thread of a process: permitted, effective, bounding; ambient ones only as far as they matter.
fn rights(pid: u32) -> Vec<[u64; 3]> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        assert_eq!(line("NoNewPrivs"), 1);
        [line("CapPrm"), line("CapEff"), line("CapBnd")]
    };
    tasks.map(of).collect()
}

#[test]
fn with_nftables_nothing_is_kept_but_the_right_to_change_the_network() {
    let web = Web::build().unwrap();
    let running = Running::start(&web.source, &web.hosts.node).unwrap();
    serves(&web);
    let rights = rights(running.id());
    assert!(rights.len() > 1, "there are threads");
    assert!(rights.iter().all(|sets| *sets == [NET_ADMIN; 3]), "{rights:x?}");
}

#[test]
fn with_ebpf_what_programs_need_is_kept_and_with_pods_sockets_more() {
    let web = Web::build().unwrap();
    let places = Places::new().unwrap();
    let run = |flags: &[&str]| {
        let mut command = web.source.command("run").unwrap();
        Running::start_command(places.apply(&mut command).args(flags), &web.hosts.node).unwrap()
    };
    let running = run(&[]);
    serves(&web);
    let kept = NET_ADMIN | BPF | PERFMON;
    let found = rights(running.id());
    assert!(found.iter().all(|sets| *sets == [kept; 3]), "{found:x?}");
    running.stop().unwrap();
    web.write(MANIFESTS).unwrap();
    let running = run(&["--end-pod-sockets"]);
    serves(&web);
    let found = rights(running.id());
    assert!(found.iter().all(|sets| *sets == [kept | SYS_ADMIN | SYS_PTRACE; 3]), "{found:x?}");
}

/// `setpriv` with these capabilities and no others, as that user, with a root file system that nobody can write to: what a
/// container is given by `readOnlyRootFilesystem`, `capabilities` and `runAsUser`; and under the filter of system calls that it is
/// given by `seccompProfile` of type `RuntimeDefault`.
fn confined(user: &str, capabilities: u64, program: &Path, arguments: &Command) -> Command {
    let names = [(NET_ADMIN, "net_admin"), (NET_RAW, "net_raw"), (PERFMON, "perfmon"), (BPF, "bpf")];
    let list: String =
        names.iter().filter(|(bit, _)| capabilities & bit != 0).map(|(_, name)| format!(",+{name}")).collect();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", "mount -o remount,ro,bind / && exec \"$@\"", "sh", "setpriv"]);
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs"]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        command.arg(format!("{set}=-all{list}"));
    }
    command.arg("--").arg(program.with_file_name("under-seccomp")).arg(program).args(arguments.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Whether a process has a filter of system calls.
fn is_filtered(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("Seccomp:\t2\n")
}

/// The binary and the manifests where anybody may read them.
fn readable(web: &Web) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Not by ourselves: a process that another test starts meanwhile holds what is open for writing, and it cannot be executed.
    let mut copy = Command::new("cp");
    copy.arg(binary::path().unwrap()).arg(env!("CARGO_BIN_EXE_under-seccomp")).arg(folder.path());
    assert!(copy.status().unwrap().success());
    let run = web.source.command("run").unwrap();
    let arguments: Vec<_> = run.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    for argument in arguments.iter().map(Path::new).filter(|path| path.is_absolute()) {
        for path in argument.ancestors().take_while(|path| path.starts_with("/tmp") && *path != Path::new("/tmp")) {
            let mode = if path.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    folder
}

#[test]
fn nftables_runs_under_another_user_with_one_capability_and_nothing_to_write_to() {
    let web = Web::build().unwrap();
    let folder = readable(&web);
    let arguments = web.source.command("run").unwrap();
    let mut command = confined(USER, NET_ADMIN, &folder.path().join("kubeferry"), &arguments);
    let running = Running::start_command(&mut command, &web.hosts.node).unwrap();
    serves(&web);
    let found = rights(running.id());
    assert!(found.iter().all(|sets| *sets == [NET_ADMIN; 3]), "{found:x?}");
    assert!(is_filtered(running.id()));
    let status = fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap();
    assert!(status.contains(&format!("Uid:\t{USER}")), "{status}");
    assert!(web.hosts.node.nft(&["list", "tables"], "").unwrap().contains("table inet kubeferry"));
}

/// The filter that the other tests run under does refuse: to root, what its capabilities do not open.
#[test]
fn the_filter_of_system_calls_refuses_what_it_should() {
    let refused = |rights: &str| {
        let list = format!("-all{rights}");
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps", &list, "--ambient-caps", &list, "--bounding-set", &list, "--"]);
        command.arg(env!("CARGO_BIN_EXE_under-seccomp")).args(["unshare", "--net", "true"]);
        let output = command.output().unwrap();
        assert_eq!(output.status.success(), output.stderr.is_empty(), "{output:?}");
        !output.status.success()
    };
    assert!(refused(",+net_admin") && !refused(",+net_admin,+sys_admin"));
}

/// Chains that stay in force because nobody may look are no secret.
#[test]
fn legacy_chains_that_cannot_be_looked_at_are_told_of() {
    const TOLD: &str = "the rights to look into them are missing";
    let web = Web::build().unwrap();
    let folder = readable(&web);
    let mut once = web.source.command("run").unwrap();
    once.arg("--once");
    let log = |user: &str, rights: u64| {
        let mut command = confined(user, rights, &folder.path().join("kubeferry"), &once);
        let output = web.hosts.node.output(&mut command, "").unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        log
    };
    assert!(!log("0", NET_ADMIN).contains(TOLD), "there are none");
    let rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A OUTPUT -j KUBE-SERVICES\nCOMMIT\n";
    let restore = || tool("iptables-legacy-restore", &["--noflush"], rules);
    web.hosts.node.run(restore).unwrap().unwrap();
    for user in ["0", USER] {
        assert!(log(user, NET_ADMIN).contains(TOLD), "{user}");
    }
    let seen = log("0", NET_ADMIN | NET_RAW);
    assert!(!seen.contains(TOLD) && seen.contains("1 chains of iptables in iptables-legacy, nat"), "{seen}");
}

#[test]
fn ebpf_runs_with_three_capabilities_under_root_and_under_another_user() {
    for user in ["0", USER] {
        let web = Web::build().unwrap();
        let folder = readable(&web);
        let places = Places::new().unwrap();
        // As whoever mounts it for another user would.
        fs::set_permissions(places.bpffs(), fs::Permissions::from_mode(0o777)).unwrap();
        let parent = places.bpffs().parent().unwrap();
        assert_eq!(parent, Path::new("/tmp"));
        let mut arguments = web.source.command("run").unwrap();
        places.apply(&mut arguments);
        let rights_given = NET_ADMIN | BPF | PERFMON;
        let mut command = confined(user, rights_given, &folder.path().join("kubeferry"), &arguments);
        let running = Running::start_command(&mut command, &web.hosts.node).unwrap();
        serves(&web);
        let found = rights(running.id());
        assert!(found.iter().all(|sets| *sets == [rights_given; 3]), "{user}: {found:x?}");
        assert!(is_filtered(running.id()));
        running.stop().unwrap();
    }
}

#[test]
fn a_right_that_is_missing_is_named_and_the_node_can_be_set_up_before() {
    let web = Web::build().unwrap();
    let folder = readable(&web);
    let node = &web.hosts.node;
    let established = "net/netfilter/nf_conntrack_tcp_timeout_established";
    node.sysctl(established, "432000").unwrap();
    let mut once = web.source.command("run").unwrap();
    once.arg("--once");
    let bare = |arguments: &Command| {
        let mut command = confined(USER, 0, &folder.path().join("kubeferry"), arguments);
        let output = node.output(&mut command, "").unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let mut init = web.source.command("run").unwrap();
    init.arg("--init-only");
    let complaint = bare(&init);
    assert!(complaint.contains("nf_conntrack_tcp_timeout_established is 432000 and should be 86400"), "{complaint}");
    assert!(complaint.contains("CAP_NET_ADMIN is missing") && complaint.contains("--init-only"), "{complaint}");
    // Sysctls keep nobody from serving, the right to change rules does.
    let complaint = bare(&once);
    assert!(complaint.contains("CAP_NET_ADMIN") && !complaint.contains("and should be"), "{complaint}");

    let output = node.output(&mut init, "").unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(node.read_sysctl(established).unwrap(), "86400");
    assert_eq!(node.read_sysctl("net/netfilter/nf_conntrack_tcp_timeout_close_wait").unwrap(), "3600");
    assert_eq!(node.nft(&["list", "tables"], "").unwrap(), "", "nothing else was done");
    // What is right is not written: nobody asks for the right to, and the next thing that is missing is another.
    let complaint = bare(&once);
    assert!(!complaint.contains("and should be"), "{complaint}");
    let mut command = confined(USER, NET_ADMIN, &folder.path().join("kubeferry"), &once);
    let output = node.output(&mut command, "").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
