//! A full disk: under the log, under the manifests, and where a configuration is written.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use kubeferry_tests::binary;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic};
use kubeferry_tests::netns::tool;
use kubeferry_tests::on_both_datapaths;
use std::process::Command;
use tempfile::TempDir;

use crate::{PATIENCE, RIGHT};

/// A file system of 256 KiB in memory.
struct Disk(TempDir);

impl Disk {
    fn mount() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kubeferry-test-disk-").tempdir()?;
        tool("mount", &["-t", "tmpfs", "-o", "size=256k", "tmpfs", &folder.path().display().to_string()], "")
            .context("cannot mount a tmpfs")?;
        Ok(Self(folder))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes until nothing more can be.
    fn fill(&self) -> Result<PathBuf> {
        let path = self.path().join(format!("filler-{}", fs::read_dir(self.path())?.count()));
        let mut file = File::create(&path)?;
        while file.write_all(&[b'x'; 1024]).is_ok() {}
        while file.write_all(b"x").is_ok() {}
        Ok(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a process of the test that is still ending must not keep it.
        if let Err(error) = tool("umount", &["--lazy", &self.path().display().to_string()], "") {
            eprintln!("{error:#}");
        }
    }
}

fn a_full_disk_under_the_log(datapath: Datapath) {
    let (place, disk) = (Place::of_manifests(datapath).unwrap(), Disk::mount().unwrap());
    let mut report = Report::new(&place.datapath);
    let log = File::create(disk.path().join("log")).unwrap();
    place.launch_with(place.command().unwrap().stderr(log)).unwrap();
    place.until_served().unwrap();
    let full = |traffic: &Traffic| {
        traffic.go_on()?;
        let filler = disk.fill()?;
        place.mark()?;
        let right = place.until_marked(RIGHT)?;
        traffic.go_on()?;
        // There is room again, and lines come again.
        fs::remove_file(filler)?;
        let before = fs::metadata(disk.path().join("log"))?.len();
        place.mark()?;
        place.until_marked(RIGHT)?;
        let goes_on = || (fs::metadata(disk.path().join("log")).ok()?.len() > before).then_some(());
        kubeferry_tests::client::until("the log to go on", goes_on)?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, full).unwrap();
    report.add("disk full under the log", &seen, right);
    place.nothing_seen(&seen).unwrap();
    place.until_exact().unwrap();
}

/// Who writes a manifest to a full disk leaves half of it, or nothing.
fn a_full_disk_under_the_manifests(datapath: Datapath) {
    let (place, disk) = (Place::of_manifests(datapath).unwrap(), Disk::mount().unwrap());
    let mut report = Report::new(&place.datapath);
    // The folder itself: a mount on it would be seen by the proxy as a folder that was replaced.
    fs::remove_dir_all(place.manifests()).unwrap();
    std::os::unix::fs::symlink(disk.path(), place.manifests()).unwrap();
    place.change(|_| ()).unwrap();
    place.start().unwrap();
    let file = place.manifests().join("cluster.yaml");
    let whole = fs::read_to_string(&file).unwrap();
    let full = |traffic: &Traffic| {
        traffic.go_on()?;
        for written in [0, whole.len() / 2] {
            let mut half = File::create(&file)?;
            half.write_all(&whole.as_bytes()[..written])?;
            let filler = disk.fill()?;
            assert!(half.write_all(&[b' '; 300_000]).is_err(), "the disk is not full");
            half.set_len(written as u64)?;
            drop(half);
            let told = || {
                let status = place.status().ok()?;
                status["ignored"]
                    .as_array()?
                    .iter()
                    .any(|fault| fault.to_string().contains("cluster.yaml"))
                    .then_some(())
            };
            kubeferry_tests::client::until("the status to name the file", told)?;
            traffic.go_on()?;
            fs::remove_file(filler)?;
        }
        place.mark()?;
        let right = place.until_marked(RIGHT)?;
        traffic.go_on()?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, full).unwrap();
    report.add("disk full under the manifests: a file that is empty, then one that is half", &seen, right);
    place.nothing_seen(&seen).unwrap();
    place.until_exact().unwrap();
}

on_both_datapaths! { a_full_disk_under_the_log, a_full_disk_under_the_manifests, }

#[test]
fn a_configuration_is_written_whole_or_not_at_all() {
    let disk = Disk::mount().unwrap();
    let file = disk.path().join("config.yaml");
    let write = || {
        let mut command = Command::new(binary::path().unwrap());
        command.args(["run", "--node-name", "n1", "--write-config-to"]).arg(&file).output().unwrap()
    };
    assert!(write().status.success());
    let whole = fs::read_to_string(&file).unwrap();
    assert!(whole.contains("KubeProxyConfiguration"), "{whole}");
    let filler = disk.fill().unwrap();
    let output = write();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("config.yaml"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), whole, "what was there stays");
    fs::remove_file(filler).unwrap();
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1, "nothing else is left");
}
