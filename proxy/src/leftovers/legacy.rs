//! Chains of iptables in the older xtables, which the kernel keeps as one block for each table. They are written by iptables'
//! own programs where these are there: `iptables-legacy-save` tells what is in a table, `iptables-legacy-restore` changes it
//! in one step.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use super::plan::{Jump, Plan, plan};
use super::xtables::{TABLES, told};
use super::{Outcome, names};

/// The kernel's list of tables in use, and the programs, of each family.
const FAMILIES: [(&str, &str); 2] =
    [("/proc/thread-self/net/ip_tables_names", "iptables"), ("/proc/thread-self/net/ip6_tables_names", "ip6tables")];

/// How long the programs may take, all together: everything else waits meanwhile. Those that change something wait 5 s for who holds the
/// tables.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(2);

/// What is in the tables, as far as can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// Chains of kube-proxy. Who removes them needs CAP_NET_RAW, too.
    Chains,
    /// Nothing of it.
    Nothing,
    /// The kernel has tables, and the rights to look into them are missing.
    Hidden,
}

/// Looks for kube-proxy's chains.
pub fn look() -> Seen {
    let (tables, mut hidden) = used();
    let end = Instant::now() + PATIENCE;
    for (program, table) in tables {
        match run(end, &format!("{program}-legacy-save"), &["-t", table], "") {
            Ok(saved) if read(&saved).0.keys().any(|chain| names::is_chain(chain)) => return Seen::Chains,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => hidden = true,
            // Another failure comes again when they are to be removed, and is told there.
            Ok(_) | Err(_) => {}
        }
    }
    if hidden { Seen::Hidden } else { Seen::Nothing }
}

/// The tables that the kernel has in use, with the family's program; and whether there may be more that we may not know of.
fn used() -> (Vec<(&'static str, &'static str)>, bool) {
    let (mut found, mut hidden) = (Vec::new(), false);
    for (list, program) in FAMILIES {
        match fs::read_to_string(list) {
            Ok(used) => {
                let tables = TABLES.into_iter().filter(|table| used.lines().any(|line| line == *table));
                found.extend(tables.map(|table| (program, table)));
            }
            // The kernel has no xtables, or nobody used them yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(%error, "cannot tell whether there are tables of {program}-legacy");
                hidden |= error.kind() == io::ErrorKind::PermissionDenied;
            }
        }
    }
    (found, hidden)
}

/// Removes kube-proxy's chains from the tables that the kernel has in use.
pub(super) fn remove() -> Outcome {
    let mut outcome = Outcome::default();
    let mut unseen = Vec::new();
    let end = Instant::now() + PATIENCE;
    for (program, table) in used().0 {
        match remove_from(end, program, table) {
                Ok((plan, closed)) => told(&plan, closed, &format!("{program}-legacy, {table}"), &mut outcome),
                // Who could look at the start, and saw nothing, has given the right up; who could not has said so.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => unseen.push(format!("{program} {table}")),
                Err(error) if error.kind() == io::ErrorKind::NotFound => outcome.failed.push(format!(
                    "the kernel has a table {table} of {program}-legacy, and {program}-legacy-save is not here to tell whether \
                     kube-proxy's chains are in it: if it ran with them, remove them with `kube-proxy --cleanup`"
                )),
                Err(error) => outcome.failed.push(format!("{program}-legacy, table {table}: {error}")),
            }
    }
    if !unseen.is_empty() {
        tracing::debug!(
            "tables of the older iptables were not looked at, which needs CAP_NET_RAW: {}",
            unseen.join(", ")
        );
    }
    outcome
}

fn remove_from(end: Instant, program: &str, table: &str) -> io::Result<(Plan<String>, bool)> {
    let saved = run(end, &format!("{program}-legacy-save"), &["-t", table], "")?;
    let (chains, jumps, closed) = read(&saved);
    let plan = plan(&chains, &jumps);
    if !plan.chains.is_empty() {
        run(end, &format!("{program}-legacy-restore"), &["--wait", "5", "--noflush"], &script(&plan, table))?;
    }
    Ok((plan, closed))
}

/// The chains, the rules that lead to others (each as the text that deletes it), and whether FORWARD drops by default.
pub(super) fn read(saved: &str) -> (BTreeMap<String, bool>, Vec<Jump<String>>, bool) {
    let (mut chains, mut jumps, mut closed) = (BTreeMap::new(), Vec::new(), false);
    for line in saved.lines() {
        if let Some((name, rest)) = line.strip_prefix(':').and_then(|chain| chain.split_once(' ')) {
            let policy = rest.split(' ').next().unwrap_or_default();
            closed |= name == "FORWARD" && policy == "DROP";
            chains.insert(name.to_owned(), policy != "-");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let words: Vec<&str> = rule.split(' ').collect();
            // A comment may hold anything, but it is in quotes and not the last but one word.
            let target = words.windows(2).rev().find(|pair| matches!(pair[0], "-j" | "-g")).map(|pair| pair[1]);
            if let (Some(from), Some(to)) = (words.first(), target) {
                jumps.push(Jump { from: (*from).to_owned(), to: to.to_owned(), rule: rule.to_owned() });
            }
        }
    }
    jumps.retain(|jump| chains.contains_key(&jump.to) || names::is_chain(&jump.to));
    (chains, jumps, closed)
}

/// What `iptables-restore --noflush` is told: a chain that is named is emptied.
pub(super) fn script(plan: &Plan<String>, table: &str) -> String {
    let mut script = format!("*{table}\n");
    plan.chains.iter().for_each(|chain| script += &format!(":{chain} - [0:0]\n"));
    plan.rules.iter().for_each(|jump| script += &format!("-D {}\n", jump.rule));
    plan.chains.iter().for_each(|chain| script += &format!("-X {chain}\n"));
    script + "COMMIT\n"
}

/// Runs one of the programs, which has to have ended by `end`; one that has not is killed with all that it has started.
fn run(end: Instant, program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let late = || io::Error::other(format!("{program} did not finish in time and was ended"));
    if Instant::now() >= end {
        return Err(late());
    }
    let mut child = Command::new(program)
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (stdin, input) = (child.stdin.take(), input.to_owned());
    thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
    let (stdout, stderr) = (read_all(child.stdout.take()), read_all(child.stderr.take()));
    let Some(status) = wait(&mut child, end)? else {
        if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
            // Nobody is left in it where that fails.
            let _ = kill_process_group(group, Signal::KILL);
        }
        // Stuck in the kernel, it may outlive even that.
        thread::spawn(move || child.wait());
        return Err(late());
    };
    let left = || end.max(Instant::now() + LOOK).saturating_duration_since(Instant::now());
    let said = |from: Receiver<Vec<u8>>| from.recv_timeout(left()).map_err(|_| late());
    if !status.success() {
        let complaint = String::from_utf8_lossy(&said(stderr)?).trim().replace('\n', "; ");
        let kind = match complaint.contains("Permission denied") || complaint.contains("not permitted") {
            true => io::ErrorKind::PermissionDenied,
            false => io::ErrorKind::Other,
        };
        return Err(io::Error::new(kind, format!("{program}: {complaint}")));
    }
    Ok(String::from_utf8_lossy(&said(stdout)?).into_owned())
}

/// All that comes, as soon as it ends.
fn read_all(from: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (tx, rx) = channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What cannot be read has ended, too.
        let _ = from.map(|mut from| from.read_to_end(&mut bytes));
        tx.send(bytes)
    });
    rx
}

/// Waits for the end of a program, until `end`.
fn wait(child: &mut Child, end: Instant) -> io::Result<Option<ExitStatus>> {
    loop {
        match child.try_wait()? {
            None if Instant::now() < end => thread::sleep(LOOK),
            status => return Ok(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9 on Sat Nov 21 12:00:00 2026
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-A - [0:0]
:DOCKER - [0:0]
-A PREROUTING -m comment --comment "kubernetes -j portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-A
-A KUBE-SVC-A -j DNAT --to-destination 172.18.0.2:6443
COMMIT
"#;

    #[test]
    fn what_is_told_to_iptables_removes_kube_proxys_chains_only() {
        let (chains, jumps, closed) = read(SAVED);
        assert!(!closed && chains["PREROUTING"] && !chains["DOCKER"]);
        let plan = plan(&chains, &jumps);
        assert_eq!(
            script(&plan, "nat"),
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-SVC-A - [0:0]\n\
             -D PREROUTING -m comment --comment \"kubernetes -j portals\" -j KUBE-SERVICES\n\
             -X KUBE-SERVICES\n-X KUBE-SVC-A\nCOMMIT\n"
        );
    }

    #[test]
    fn a_program_that_hangs_is_ended_with_what_it_has_started() {
        let begun = Instant::now();
        let error =
            run(begun + Duration::from_millis(200), "sh", &["-c", "sleep 600; true"], "").unwrap_err().to_string();
        assert_eq!(error, "sh did not finish in time and was ended");
        assert!(begun.elapsed() < Duration::from_secs(300), "nobody waits for its child");
        let error = run(begun, "cat", &[], "").unwrap_err().to_string();
        assert_eq!(error, "cat did not finish in time and was ended", "the others of one look have no time left");
        let end = || Instant::now() + PATIENCE;
        assert_eq!(run(end(), "cat", &[], "a line\n").unwrap(), "a line\n");
        let error = run(end(), "sh", &["-c", "echo why >&2; false"], "").unwrap_err().to_string();
        assert_eq!(error, "sh: why");
    }

    #[test]
    fn a_policy_of_drop_is_seen() {
        assert!(read("*filter\n:FORWARD DROP [0:0]\n:INPUT ACCEPT [0:0]\n").2);
        assert!(!read("*filter\n:INPUT DROP [0:0]\n").2);
    }
}
