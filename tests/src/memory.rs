//! A limit of memory, as a container has one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::client::until;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A control group for memory, of whichever version is mounted. It goes with the value, once its processes have ended.
#[derive(Debug)]
pub struct MemoryLimit {
    folder: PathBuf,
    /// The file that has the limit, in bytes.
    limit: &'static str,
    /// The file that says how many bytes are taken.
    usage: &'static str,
    /// The file that counts what the kernel ended, in lines of `oom_kill N`.
    events: &'static str,
}

impl MemoryLimit {
    /// Makes one of as many bytes as our manifests allow the container that serves.
    ///
    /// # Errors
    /// As [`MemoryLimit::new`]; the manifests name no limit.
    pub fn shipped(with_ebpf: bool) -> Result<Self> {
        Self::new(shipped(with_ebpf)?)
    }

    /// Makes one of so many bytes.
    ///
    /// # Errors
    /// No hierarchy has the controller, or the right is missing.
    pub fn new(bytes: u64) -> Result<Self> {
        let Hierarchy { folder: hierarchy, limit, usage, events } = hierarchy()?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = hierarchy.join(format!("kubeferry-memory-{}-{number}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let made = Self { folder, limit, usage, events };
        made.set(bytes)?;
        Ok(made)
    }

    /// Sets another limit.
    ///
    /// # Errors
    /// Where more is taken, cgroup v1 refuses it.
    pub fn set(&self, bytes: u64) -> Result<()> {
        self.write(self.limit, &bytes.to_string())
    }

    /// Leaves room for so many bytes more than what cannot be given back: pages of files can.
    ///
    /// # Errors
    /// As [`MemoryLimit::set`].
    pub fn leave(&self, bytes: u64) -> Result<()> {
        // Gives back what can be; with cgroup v1 it is refused all the same where the rest is more.
        drop(self.set(bytes));
        let taken: u64 = fs::read_to_string(self.folder.join(self.usage))?.trim().parse()?;
        self.set(taken + bytes)
    }

    /// What the process takes from now on is not limited. What it has taken, and what the maps take that it has made, still is.
    ///
    /// # Errors
    /// It has ended.
    pub fn frees(&self, pid: u32) -> Result<()> {
        let above = self.folder.parent().context("no folder above")?;
        Ok(fs::write(above.join("cgroup.procs"), pid.to_string())?)
    }

    /// From now on, what the process takes counts.
    ///
    /// # Errors
    /// It has ended.
    pub fn takes(&self, pid: u32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// A program that is in it from its first instruction on.
    pub fn command(&self, of: &Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]).arg(&self.folder);
        command.arg(of.get_program()).args(of.get_args());
        command
    }

    /// The bytes that it allows.
    ///
    /// # Errors
    /// It does not say.
    pub fn bytes(&self) -> Result<u64> {
        Ok(fs::read_to_string(self.folder.join(self.limit))?.trim().parse()?)
    }

    /// How many processes the kernel has ended for want of memory.
    ///
    /// # Errors
    /// It does not say.
    pub fn killed(&self) -> Result<u64> {
        let text = fs::read_to_string(self.folder.join(self.events))?;
        let number = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        number.with_context(|| format!("no oom_kill in {text:?}"))
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, text).with_context(|| format!("writing {text} to {}", path.display()))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Not before what was in it is gone, which takes a moment.
        drop(until("the memory cgroup to be empty", || fs::remove_dir(&self.folder).ok()));
    }
}

/// What the manifests allow: the base, or what the component for eBPF puts in its place.
fn shipped(with_ebpf: bool) -> Result<u64> {
    let read = |file: &str| -> Result<Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())
    };
    let resources = if with_ebpf {
        let patch = read("components/ebpf/daemonset.patch.yaml")?;
        let mut operations = patch.as_array().into_iter().flatten();
        let is_ours = |operation: &&Value| operation["path"] == "/spec/template/spec/containers/0/resources";
        operations.find(is_ours).context("the patch has no resources")?["value"].clone()
    } else {
        read("base/daemonset.yaml")?["spec"]["template"]["spec"]["containers"][0]["resources"].clone()
    };
    let limit = resources["limits"]["memory"].as_str().context("no limit of memory")?;
    let (number, unit) = limit.split_at(limit.trim_end_matches(char::is_alphabetic).len());
    let shift = match unit {
        "Mi" => 20,
        "Gi" => 30,
        _ => bail!("{limit}: write Mi or Gi"),
    };
    Ok(number.parse::<u64>()? << shift)
}

/// Where the controller is, and how its files are called.
struct Hierarchy {
    folder: PathBuf,
    limit: &'static str,
    usage: &'static str,
    events: &'static str,
}

/// That of cgroup v2, or of v1.
fn hierarchy() -> Result<Hierarchy> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut mounted = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind, options) = (Path::new(fields.next()?).to_owned(), fields.next()?, fields.next()?);
        match kind {
            "cgroup" if options.split(',').any(|option| option == "memory") => Some(Hierarchy {
                folder,
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                events: "memory.oom_control",
            }),
            "cgroup2" => {
                let given = fs::read_to_string(folder.join("cgroup.subtree_control")).ok()?;
                let has = given.split_whitespace().any(|controller| controller == "memory");
                has.then_some(Hierarchy {
                    folder,
                    limit: "memory.max",
                    usage: "memory.current",
                    events: "memory.events",
                })
            }
            _ => None,
        }
    });
    mounted.next().context("no cgroup hierarchy has the memory controller")
}
