//! `cargo xtask test kernels`: the programs and the datapath tests of this workspace under other kernels than the machine's
//! own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::cargo::{cargo, workspace};
use crate::vm::{Guest, Kernel, Series};
use crate::{ebpf, packages, step};

/// How long one kernel may take: all parts need an hour on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);
/// How many times as long as elsewhere the tests there may wait: emulation makes every instruction some ten times as dear, and
/// what runs beside it is not less for that. Two proxies that load their programs at a time take three minutes under Linux 6.1.
const PATIENCE_OF_TESTS: u32 = 16;
/// What the datapaths and their tests need of a kernel.
const MODULES: [&str; 31] = [
    "veth",
    "dummy",
    "bridge",
    "br_netfilter",
    "8021q",
    "bonding",
    "tun",
    "ipip",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_nat",
    "nft_numgen",
    "nft_redir",
    "nft_reject_inet",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "sctp",
    "sctp_diag",
];
/// The same of Linux 6.1 alone: it is part of nf_tables since 6.2.
const MODULES_OF_6_1: [&str; 1] = ["nft_objref"];
/// Programs that tests call.
const TOOLS: [&str; 9] = ["ip", "nft", "conntrack", "ethtool", "tc", "ping", "setpriv", "mount", "umount"];
/// What the machine's command says before and after each part.
const MARK: &str = "kubeferry-part: ";

/// The kernels, as they are asked for.
const KERNELS: [(&str, Series); 2] = [("6.1", Series::V6_1), ("6.12", Series::V6_12)];
/// The proxy's unit tests, a part like the test binaries.
const UNIT: &str = "kubeferry";
/// The parts that run in the machine: a test binary, and what is passed on to it.
const PARTS: [(&str, &str); 15] = [
    ("netns", ""),
    // What a packet meets between the rows of a change is for each kernel's own set to say.
    (UNIT, "nftables::tests::between nftables::netlink::tests"),
    (
        "lifecycle",
        "--exact stopping_leaves_traffic_alone_and_a_restart_changes_nothing a_deleted_table_and_a_deleted_row_are_healed \
         what_was_tampered_with_while_no_proxy_ran_is_healed_by_the_next",
    ),
    (
        "flow_table",
        "--exact cluster_ip node_port external_traffic_policy_local terminating_endpoints hairpin masquerade_all \
         load_balancer_source_ranges session_affinity scheduler_hashed",
    ),
    // What is swept is gone when a time has passed, which is too long here; and a program of a test comes behind ours by TCX alone.
    (
        "ebpf",
        "--skip connections_that_are_over_are_swept --skip what_does_not_fit --skip the_plan_names --skip whole_sums",
    ),
    ("ebpf_vlan", "--include-ignored"),
    ("ebpf_sockets", "cluster_ips the_nodes_sockets a_connected_udp_socket a_socket_that_the_kernel off_leaves held"),
    ("connections", ""),
    (
        "ebpf_connections",
        "--include-ignored --exact every_way_in_reaches_every_endpoint datagrams_in_fragments_come_back_whole \
         tunnels::a_tunnel_with_several_other_ends_is_told_which",
    ),
    // Where all is slow, the node's server answers while its client's flow is being deleted: see decision 90.
    ("others_ports", "--skip nftables::who_had_the_port"),
    ("forged_ends", ""),
    // Where there are no links, the qdisc is deleted.
    ("faults_kernel", "--exact ebpf_attachments::programs_that_are_detached_are_attached_again"),
    ("bridge", "ebpf_needs_no_bridge_netfilter with_bridge_netfilter"),
    ("facts", "counters"),
    ("machine", "--ignored"),
];

/// Verify the BPF object under this kernel (inside of a virtual machine)
#[derive(clap::Args)]
pub struct VerifyArgs {
    object: PathBuf,
}

/// Loads every program of an object.
pub fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    ebpf::report(&args.object, Path::new("/report.json"))
}

/// Boots each kernel and runs the tests there. Of `arguments`, `6.1` and the like choose among the kernels, names of parts among
/// those, and the rest goes to every test binary.
///
/// # Errors
/// A test failed under one of them.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    let asked = Asked::of(arguments);
    let lists = [
        packages::BUILD,
        packages::NETWORK,
        packages::DEVICES,
        packages::VIRTUAL_MACHINES,
        packages::TESTS,
        packages::VIRTUAL_MACHINE_TESTS,
    ];
    packages::ensure(&lists)?;
    let programs = Programs::build()?;
    let mut outcomes = Vec::new();
    for (_, series) in KERNELS.iter().filter(|(name, _)| Asked::is_wanted(&asked.kernels, name)) {
        let modules = match *series {
            Series::V6_1 => [&MODULES[..], &MODULES_OF_6_1].concat(),
            _ => MODULES.to_vec(),
        };
        outcomes.push(under(&Kernel::find_or_fetch(*series)?, &modules, &programs, &asked)?);
    }
    for outcome in &outcomes {
        outcome.tell();
    }
    if outcomes.iter().any(|outcome| !outcome.failed.is_empty()) {
        bail!("tests failed");
    }
    Ok(())
}

/// The programs alone before the verifier of the oldest kernel: what a newer one takes it may refuse, and takes longer to say why.
///
/// # Errors
/// It refuses one.
pub fn verifier() -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::VIRTUAL_MACHINES])?;
    ebpf::build()?;
    let [(name, oldest), _] = KERNELS;
    let kernel = Kernel::find_or_fetch(oldest)?;
    let mut guest = Guest::new(&kernel, &[])?;
    guest.program("/xtask", &std::env::current_exe().context("where is xtask?")?)?;
    guest.files().copy("/kubeferry.bpf.o", ebpf::object(), false);
    let code = guest.boot(
        &format!("verifier-{}", kernel.release),
        "/xtask verify /kubeferry.bpf.o",
        PATIENCE,
        &mut |line| {
            println!("{line}");
        },
    )?;
    if code != 0 {
        bail!("Linux {name} does not take the programs");
    }
    Ok(())
}

/// Which of it is to be run.
struct Asked<'a> {
    /// Empty: all of them.
    kernels: Vec<&'a str>,
    parts: Vec<&'a str>,
    pass_on: Vec<&'a str>,
}

impl<'a> Asked<'a> {
    fn of(arguments: &'a [String]) -> Self {
        let mut asked = Self { kernels: Vec::new(), parts: Vec::new(), pass_on: Vec::new() };
        for word in arguments {
            let words = match word.as_str() {
                word if KERNELS.iter().any(|(name, _)| *name == word) => &mut asked.kernels,
                word if PARTS.iter().any(|(name, _)| *name == word) => &mut asked.parts,
                _ => &mut asked.pass_on,
            };
            words.push(word);
        }
        asked
    }

    fn is_wanted(chosen: &[&str], name: &str) -> bool {
        chosen.is_empty() || chosen.contains(&name)
    }
}

/// What was built for the machines.
struct Programs {
    kubeferry: PathBuf,
    /// The test binaries by name.
    tests: Vec<(String, PathBuf)>,
    /// A program that a test calls by the place where cargo put it.
    beside: PathBuf,
}

/// A line of cargo's, with `--message-format=json`, as far as we look.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

impl Programs {
    fn build() -> anyhow::Result<Self> {
        ebpf::build()?;
        step::start("building kubeferry and the tests");
        // Of the whole workspace: each choice of packages has its own features of what they share, and is built by itself.
        let mut build = cargo();
        build.args(["build", "--quiet", "--message-format=json", "--workspace", "--features", "kubeferry/ebpf"]);
        // Not all programs: a new xtask would take the place of the one that runs, which the machines are to get.
        build.args(["--bin", "kubeferry", "--bin", "socket-maker"]);
        build.args(PARTS.iter().filter(|(name, _)| *name != UNIT).flat_map(|(name, _)| ["--test", name]));
        let mut built = executables(build)?;
        let mut build = cargo();
        build.args(["test", "--no-run", "--quiet", "--message-format=json", "--workspace", "--features"]);
        build.args(["kubeferry/ebpf", "--lib"]);
        built.extend(executables(build)?);
        let bin = |name: &str| {
            let found =
                built.iter().find(|(kind, known, _)| kind == "bin" && known == name).map(|(_, _, at)| at.clone());
            found.with_context(|| format!("cargo built no {name}"))
        };
        Ok(Self {
            kubeferry: bin("kubeferry")?,
            beside: bin("socket-maker")?,
            tests: built.into_iter().filter(|(kind, ..)| kind != "bin").map(|(_, name, at)| (name, at)).collect(),
        })
    }

    fn test(&self, name: &str) -> anyhow::Result<&Path> {
        let found = self.tests.iter().find(|(known, _)| known == name).map(|(_, file)| file.as_path());
        found.with_context(|| format!("there is no test binary {name}"))
    }
}

/// What a command of cargo's builds that can be run: kind, name and file of each.
fn executables(mut build: Command) -> anyhow::Result<Vec<(String, String, PathBuf)>> {
    let out = build.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !out.status.success() {
        bail!("kubeferry and the tests cannot be built");
    }
    let mut built = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let message: Message = serde_json::from_str(line).with_context(|| line.to_owned())?;
        if let (Some(target), Some(executable)) = (message.target, message.executable) {
            built.push((target.kind.join(" "), target.name, executable));
        }
    }
    Ok(built)
}

/// What came of one kernel.
struct Outcome {
    release: String,
    took: Duration,
    /// How many tests passed, by part.
    passed: Vec<(String, usize)>,
    failed: Vec<String>,
    /// How the proxies there said that programs are attached to devices: `TCX`, `clsact`.
    attached: BTreeSet<String>,
}

impl Outcome {
    fn of(release: &str) -> Self {
        let (passed, failed, attached) = (Vec::new(), Vec::new(), BTreeSet::new());
        Self { release: release.to_owned(), took: Duration::ZERO, passed, failed, attached }
    }

    fn tell(&self) {
        let passed: usize = self.passed.iter().map(|(_, count)| count).sum();
        let (failed, took) = (self.failed.len(), step::duration(self.took));
        step::start(format!("Linux {}: {passed} passed, {failed} failed, in {took}", self.release));
        step::note(self.passed.iter().map(|(part, count)| format!("{part} {count}")).collect::<Vec<_>>().join(", "));
        step::note(format!(
            "attached to devices by: {}",
            Vec::from_iter(self.attached.iter().map(String::as_str)).join(", ")
        ));
        self.failed.iter().for_each(|name| step::note(format!("failed: {name}")));
    }

    /// Looks at a line of the machine's output.
    fn add(&mut self, line: &str) {
        // A proxy's log: `hooks are attached … tc="TCX" …`.
        if let Some((how, _)) = line.split_once(" tc=\"").and_then(|(_, rest)| rest.split_once('"')) {
            self.attached.insert(how.to_owned());
        } else if let Some(part) = line.strip_prefix(MARK) {
            match part.split_once(" ended with ") {
                // Exit code 101 is that of failed tests, which have been named.
                Some((_, "0" | "101")) => {}
                Some((name, code)) => self.failed.push(format!("{name} ended with {code}")),
                None => self.passed.push((part.to_owned(), 0)),
            }
        } else if let Some(test) = line.strip_prefix("test ").filter(|test| !test.starts_with("result: ")) {
            let part = self.passed.last_mut();
            match (test.rsplit_once(" ... "), part) {
                (Some((_, "ok")), Some((_, count))) => *count += 1,
                (Some((name, "FAILED")), Some((part, _))) => self.failed.push(format!("{part} {name}")),
                _ => {}
            }
        }
    }
}

fn under(kernel: &Kernel, modules: &[&str], programs: &Programs, asked: &Asked<'_>) -> anyhow::Result<Outcome> {
    let began = Instant::now();
    let mut guest = Guest::new(kernel, modules)?;
    guest.tools(&TOOLS)?;
    let stripped = tempfile::tempdir()?;
    let mut add = |at: &Path, from: &Path| -> anyhow::Result<()> {
        // Without debug information, which is most of them.
        let to = stripped.path().join(from.file_name().unwrap_or_default());
        step::output(Command::new("strip").arg("-o").arg(&to).arg(from))?;
        guest.program(at, &to)
    };
    add(Path::new("/kubeferry"), &programs.kubeferry)?;
    add(Path::new("/xtask"), &std::env::current_exe().context("where is xtask?")?)?;
    // Where cargo told one test that it is, and beside the binary, where others look.
    add(&programs.beside, &programs.beside)?;
    add(Path::new("/socket-maker"), &programs.beside)?;
    let folder = workspace().join("tests");
    let mut command = format!(
        "export NO_COLOR=1 KUBEFERRY_BIN=/kubeferry KUBEFERRY_TEST_PATIENCE={PATIENCE_OF_TESTS} RUST_BACKTRACE=0\ncd {}\n\
         /xtask verify /kubeferry.bpf.o\n",
        folder.display()
    );
    command += "result=$?\n";
    for (name, arguments) in PARTS.iter().filter(|(name, _)| Asked::is_wanted(&asked.parts, name)) {
        add(&Path::new("/tests").join(name), programs.test(name)?)?;
        let arguments = [&[*arguments], asked.pass_on.as_slice()].concat().join(" ");
        command += &format!(
            "echo '{MARK}{name}'\n/tests/{name} {arguments}; code=$?\necho \"{MARK}{name} ended with $code\"\n[ $code = 0 ] || result=$code\n"
        );
    }
    command += "exit $result\n";
    guest.files().copy("/kubeferry.bpf.o", ebpf::object(), false);
    for data in ["flows", "conformance"] {
        guest.files().copy_tree(&folder.join(data), &folder.join(data))?;
    }
    let mut outcome = Outcome::of(&kernel.release);
    let mut line = |text: &str| {
        println!("{text}");
        outcome.add(text);
    };
    let code = guest.boot(&format!("kernel-{}", kernel.release), &command, PATIENCE, &mut line)?;
    outcome.took = began.elapsed();
    if code != 0 && outcome.failed.is_empty() {
        outcome.failed.push(format!("the command, with {code}"));
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_and_parts_are_chosen_by_name() {
        let words = ["6.12", "machine", "clock", "--nocapture"].map(str::to_owned);
        let asked = Asked::of(&words);
        assert_eq!((asked.kernels.as_slice(), asked.parts.as_slice()), (["6.12"].as_slice(), ["machine"].as_slice()));
        assert_eq!(asked.pass_on, ["clock", "--nocapture"]);
        assert!(Asked::is_wanted(&asked.kernels, "6.12") && !Asked::is_wanted(&asked.kernels, "6.1"));
        assert!(Asked::is_wanted(&[], "6.1"));
    }

    #[test]
    fn tests_are_counted_by_part() {
        let mut outcome = Outcome::of("");
        for line in [
            "2026 INFO kubeferry::backend::ebpf::reconciler: hooks are attached sockets=off tc=\"TCX\" devices=7",
            "kubeferry-part: ebpf",
            "test one ... ok",
            "test two ... FAILED",
            "test result: FAILED. 1 passed; 1 failed",
            "kubeferry-part: ebpf ended with 101",
            "kubeferry-part: netns",
            "kubeferry-part: netns ended with 139",
        ] {
            outcome.add(line);
        }
        assert_eq!(outcome.passed, [("ebpf".to_owned(), 1), ("netns".to_owned(), 0)]);
        assert_eq!(outcome.failed, ["ebpf two", "netns ended with 139"]);
        assert_eq!(outcome.attached, BTreeSet::from(["TCX".to_owned()]));
    }
}
