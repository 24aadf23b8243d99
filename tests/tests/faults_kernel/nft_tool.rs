//! `nft`, which whole tables are loaded with, is too old, fails, hangs, is killed, or says nonsense. (Where there is none:
//! `lifecycle.rs`.)

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use kubeferry_tests::binary;
use kubeferry_tests::client::{until, until_for};
use kubeferry_tests::datapath::Datapath;

use super::trial::{PATIENCE, RIGHT, Sees, Trial};

/// How long clients may see one that hangs: it is ended after a minute.
const HUNG: Duration = Duration::from_secs(90);

/// A folder with an `nft` that is as one says.
struct Tool(tempfile::TempDir);

impl Tool {
    fn new() -> Self {
        let tool = Self(tempfile::tempdir().unwrap());
        tool.is("well");
        let path = std::env::var_os("PATH").unwrap();
        let mut folders = std::env::split_paths(&path).map(|folder| folder.join("nft"));
        let real = folders.find(|path| path.is_file()).unwrap();
        let (folder, real) = (tool.0.path().display(), real.display());
        let script = format!(
            "#!/bin/sh\ncase \"$(cat {folder}/how)\" in\n\
             failing) echo 'Error: Could not process rule: No buffer space available' >&2; exit 1;;\n\
             killed) kill -KILL $$;;\n\
             old) echo 'nftables v0.9.8 (E)'; exit 0;;\n\
             garbage) echo '9 lives'; head -c 100000 /dev/urandom; exit 0;;\n\
             hanging) echo $$ > {folder}/pid; exec sleep 1000;;\n\
             *) exec {real} \"$@\";;\nesac\n"
        );
        fs::write(tool.path(), script).unwrap();
        fs::set_permissions(tool.path(), fs::Permissions::from_mode(0o755)).unwrap();
        tool
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("nft")
    }

    fn is(&self, how: &str) {
        fs::write(self.0.path().join("how"), how).unwrap();
    }

    /// The process that hangs; `None`: there is none.
    fn hanging(&self) -> Option<String> {
        let pid = fs::read_to_string(self.0.path().join("pid")).ok()?.trim().to_owned();
        // One that nobody has waited for yet has an empty command line.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"sleep").then_some(pid)
    }
}

/// A node whose proxy has this tool.
fn start(tool: &Tool) -> Trial {
    start_with(tool, &[])
}

/// With these flags of `run` alone.
fn start_with(tool: &Tool, flags: &[&str]) -> Trial {
    let trial = Trial::build(Datapath::Nftables, &[], Some(tool.0.path()));
    trial.site.run_command(trial.site.command(binary::path().unwrap()).unwrap().args(flags)).unwrap();
    trial.site.until_served().unwrap();
    trial
}

fn delete_table(trial: &Trial) {
    trial.site.node().nft(&["delete", "table", "inet", "kubeferry"], "").unwrap();
}

#[test]
fn one_that_cannot_serve_is_named_at_the_start() {
    let tool = Tool::new();
    let trial = start(&tool);
    let table = || trial.site.node().nft(&["--stateless", "list", "table", "inet", "kubeferry"], "").unwrap();
    for (how, says) in [
        ("old", "nft is version 0.9.8, and 1.0.1 or later is needed: install a newer package nftables"),
        ("garbage", "cannot tell the version of nft from "),
        ("failing", "No buffer space available"),
        ("killed", "nft was ended by somebody else"),
    ] {
        let starts = || {
            trial.site.kill();
            let before = table();
            tool.is(how);
            let mut command = trial.site.command(binary::path().unwrap()).unwrap();
            let output = trial.site.node().output(command.stdin(Stdio::null()), "").unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success() && text.lines().last().unwrap().contains(says), "{how}: {text}");
            assert_eq!(table(), before, "{how}");
            tool.is("well");
            trial.site.run().unwrap();
        };
        // The rules of the run before go on.
        trial.suffers(&format!("a start with `nft` that is {how}"), Sees::Nothing, starts, || Some(()));
    }
}

#[test]
fn one_that_fails_keeps_the_table_away_until_it_works_and_that_is_told() {
    let tool = Tool::new();
    let trial = start(&tool);
    for how in ["failing", "killed", "garbage", "old"] {
        let harm = || {
            tool.is(how);
            delete_table(&trial);
            let told = || (trial.metric("kubeferry_drift_unrepaired") == Some(1.0)).then_some(());
            until_for(RIGHT, "the metric to tell of it", told).unwrap();
            assert!(trial.status()["drift"]["unrepaired"].as_u64() > Some(0));
            // Rows go without it, but not where there is no table.
            tool.is("well");
        };
        trial.drifts(&format!("our table deleted while `nft` is {how}"), Sees::NewFail, harm);
        assert_eq!(trial.metric("kubeferry_drift_unrepaired"), Some(0.0));
    }
}

#[test]
fn changes_need_none() {
    let tool = Tool::new();
    let trial = start(&tool);
    tool.is("failing");
    let change = || trial.site.change(&["1", "remote"]).unwrap();
    let synced = || (trial.status()["rows"]["endpoints4"].as_u64() > Some(0)).then_some(());
    trial.suffers("a change while `nft` fails", Sees::Nothing, change, synced);
    assert_eq!(trial.status()["failures"], 0);
}

#[test]
fn one_that_hangs_holds_no_end_up_and_outlives_nobody() {
    let tool = Tool::new();
    let trial = start(&tool);
    for signal in ["SIGTERM", "SIGKILL"] {
        let harm = || {
            tool.is("hanging");
            delete_table(&trial);
            let pid = until_for(RIGHT, "the proxy to call it", || tool.hanging()).unwrap();
            // Within the time that a node gives, and long before the tool's own deadline.
            match signal {
                "SIGTERM" => trial.site.stop().unwrap(),
                _ => trial.site.kill(),
            }
            until(&format!("{pid} to be gone"), || tool.hanging().is_none().then_some(())).unwrap();
            tool.is("well");
            trial.site.run().unwrap();
        };
        trial.suffers(&format!("`nft` hangs, and the proxy gets {signal}"), Sees::NewFail, harm, || Some(()));
    }
}

#[test]
fn one_that_hangs_is_ended_after_a_minute_and_called_again() {
    let tool = Tool::new();
    let mut trial = start_with(&tool, &["--iptables-sync-period", "5s"]);
    trial.right = HUNG;
    let livez = |code: u16| {
        let get = || kubeferry::status::get("http://127.0.0.1:10256/livez", PATIENCE).unwrap().code;
        until_for(PATIENCE, &format!("/livez to be {code}"), || {
            (trial.site.node().run(get).unwrap() == code).then_some(())
        })
    };
    livez(200).unwrap();
    let harm = || {
        tool.is("hanging");
        delete_table(&trial);
        let pid = until_for(RIGHT, "the proxy to call it", || tool.hanging()).unwrap();
        // The loop waits for it, so nobody knows what changes meanwhile.
        livez(503).unwrap();
        assert_eq!(tool.hanging().as_ref(), Some(&pid), "unhealthy before the tool's own deadline");
        tool.is("well");
        until_for(PATIENCE, &format!("{pid} to be ended"), || tool.hanging().is_none().then_some(())).unwrap();
    };
    trial.drifts("`nft` hangs once", Sees::NewFail, harm);
    livez(200).unwrap();
}
