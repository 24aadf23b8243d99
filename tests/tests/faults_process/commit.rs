//! Killed inside of a commit: as it enters one of the system calls that write to the kernel, and while `nft` reads what it was
//! given.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubeferry_tests::client::until_for;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic, seed};
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::random::Rng;

use crate::{PATIENCE, RIGHT, STEP};

/// How many kills there are to be, and how many there have to be: a start may be over before the call that it is to be killed at.
const KILLS: u16 = 8;
const KILLS_AT_LEAST: u16 = 4;
/// How many starts there are for that, at most.
const ROUNDS: u16 = 24;

/// By strace, which sends SIGKILL as the call is entered: for nftables before the transaction's message or an answer to it, for
/// eBPF between any two rows. It goes on until one leaves something undone, which the next start has to do.
fn killed_as_it_enters_a_call(datapath: Datapath) {
    let calls = match datapath {
        Datapath::Nftables => "sendto,sendmsg,recvfrom,recvmsg",
        Datapath::Ebpf(_) => "bpf",
    };
    let mut random = Rng::new(seed());
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    let count = calls_of_a_start(&place, calls).unwrap();
    println!("a start makes {count} of the calls");
    let (mut killed, mut undone) = (0, 0);
    let harm = |traffic: &Traffic| {
        traffic.go_on()?;
        for round in 1..=ROUNDS {
            place.kill_strays()?;
            // Each time another number: what an earlier round has left in the kernel is never what is wanted.
            place.change(|objects| objects.more = round * 23 % 91)?;
            // Every other time in the second half: what is there has been read by then.
            let when = 1 + random.below(count / 2) + if round % 2 == 0 { count / 2 } else { 0 };
            let inject = format!("inject={calls}:signal=SIGKILL:when={when}");
            let trace = format!("trace={calls}");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
            place.launch_with(&mut place.command_under(&strace)?)?;
            until_for(STEP, "an end, or a sync", || {
                (!place.is_running() || place.is_exact().is_ok_and(|exact| exact)).then_some(())
            })?;
            if place.is_running() {
                continue;
            }
            // strace ends as the one that it runs.
            let status = place.ended()?;
            ensure!(status.signal() == Some(libc::SIGKILL), "{status}; the log:\n{}", place.log());
            killed += 1;
            let is_undone = !place.is_exact()?;
            undone += u16::from(is_undone);
            if killed >= KILLS && is_undone {
                break;
            }
        }
        place.kill_strays()?;
        ensure!(killed >= KILLS_AT_LEAST, "killed {killed} times; the log:\n{}", place.log());
        ensure!(!place.is_exact()?, "nothing was left undone after {killed} kills");
        place.launch()?;
        let right = place.until_exact_within(RIGHT)?;
        traffic.go_on()?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, harm).unwrap();
    let fault =
        format!("kill -9 inside of a commit, by the system call: {killed} kills, {undone} leave something undone");
    report.add(&fault, &seen, right);
    place.nothing_seen(&seen).unwrap();
}

/// How many of these calls the thread that makes most of them makes in a start that changes forty Services: strace counts by thread.
fn calls_of_a_start(place: &Place, calls: &str) -> Result<usize> {
    place.kill_strays()?;
    place.change(|objects| objects.more = 40)?;
    let file = place.folder().join("calls");
    let file = file.to_str().context("the folder's name is no text")?;
    place.launch_with(&mut place.command_under(&[
        "strace",
        "-f",
        "-qq",
        "-o",
        file,
        "-e",
        &format!("trace={calls}"),
    ])?)?;
    place.until_exact()?;
    place.kill_strays()?;
    let mut threads = BTreeMap::<String, usize>::new();
    for line in fs::read_to_string(file)?.lines().filter(|line| line.contains('(')) {
        *threads.entry(line.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    threads.into_values().max().context("it makes none of these calls")
}

/// An `nft` that kills who calls it to load something, waits, and then loads.
fn deadly_nft(folder: &Path, wait: &str) -> Result<()> {
    let nft = folder.join("nft");
    fs::write(
        &nft,
        format!(
            "#!/bin/sh\nPATH=${{PATH#*:}}\ncase \"$*\" in *-f*) touch {0}/called; kill -KILL $PPID; sleep {wait};; esac\nexec nft \"$@\"\n",
            folder.display()
        ),
    )?;
    Ok(fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?)
}

/// `nft` outlives the kill, and loads what it was given: all of it, also when the next run is there already.
#[test]
fn killed_while_nft_loads_the_table() {
    let place = Place::of_manifests(Datapath::Nftables).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    let bin = place.folder().join("bin");
    fs::create_dir(&bin).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    for wait in ["0", "1"] {
        let harm = |traffic: &Traffic| {
            traffic.go_on()?;
            for bit in ["5", "6"] {
                deadly_nft(&bin, wait)?;
                place.change(|objects| objects.more = 100)?;
                // Other settings are a new table, by `nft -f`.
                let mut command = place.command()?;
                place.launch_with(command.args(["--iptables-masquerade-bit", bit]).env("PATH", &path))?;
                place.ended()?;
                assert!(bin.join("called").exists(), "nft was not called; the log:\n{}", place.log());
                fs::remove_file(bin.join("called"))?;
                place.launch()?;
                place.mark()?;
                place.until_marked(RIGHT)?;
            }
            let since = Instant::now();
            // What the old nft has loaded comes after the new run has looked.
            sleep(Duration::from_millis(1500));
            place.until_exact_within(RIGHT)?;
            traffic.go_on()?;
            place.mark()?;
            place.until_marked(RIGHT)?;
            Ok(since.elapsed())
        };
        let (right, seen) = Traffic::during(&place.ways(), PATIENCE, harm).unwrap();
        report.add(&format!("kill -9 while nft loads a table, which it does {wait} s later, twice"), &seen, right);
        place.nothing_seen(&seen).unwrap();
    }
}

on_both_datapaths! { killed_as_it_enters_a_call, }
