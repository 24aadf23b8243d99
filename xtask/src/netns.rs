//! Network namespaces, the only place where demo and benchmark send a packet. They have no way out of this machine.

use std::fs::File;
use std::process::Command;

use anyhow::{Context as _, anyhow};
use rustix::fd::AsFd as _;
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::step;

/// A namespace of `ip netns`. Dropping it ends the processes in it and removes it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up, forwarding on and no reverse path filter.
    pub fn create(name: String) -> anyhow::Result<Self> {
        step::output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        namespace.ip("link set lo up")?;
        namespace.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ])?;
        Ok(namespace)
    }

    /// The name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip -batch` in the namespace; the first that fails ends it.
    pub fn ip(&self, lines: &str) -> anyhow::Result<()> {
        step::feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), lines)
            .with_context(|| format!("in namespace {}: {lines}", self.name))
    }

    /// Writes settings below /proc/sys/net of the namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        self.enter(|| {
            for (name, value) in settings {
                std::fs::write(format!("/proc/sys/net/{name}"), value).with_context(|| format!("{name} = {value}"))?;
            }
            anyhow::Ok(())
        })?
    }

    /// A command that will run in the namespace. It becomes the program itself: no process stands between.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        command(&self.name, program)
    }

    /// Runs a closure in the namespace, on a thread of its own: sockets that it opens belong there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_this_thread(&self.name)?;
                anyhow::Ok(work())
            });
            thread.join().map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Leaves it and its processes when we go.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            step::note(format!("namespace {} is still there: {error:#}", self.name));
        }
    }
}

/// A command that will run in a namespace, as [`Namespace::command`].
pub fn command(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

/// Moves the calling thread into a namespace, for good.
pub fn move_this_thread(name: &str) -> anyhow::Result<()> {
    let file = File::open(format!("/run/netns/{name}")).with_context(|| format!("namespace {name}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter namespace {name}"))
}

/// Ends what runs in a namespace and removes it.
pub fn remove(name: &str) -> anyhow::Result<()> {
    for pid in step::output(Command::new("ip").args(["netns", "pids", name]))?.split_whitespace() {
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            // It may have ended by itself in between.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    step::output(Command::new("ip").args(["netns", "del", name])).map(drop)
}

/// Namespaces named `PREFIX-PID-…` whose process is gone: kept on purpose, or left over by one that was killed.
pub fn left_over(prefix: &str) -> anyhow::Result<Vec<String>> {
    let list = step::output(Command::new("ip").args(["netns", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| is_left_over(name, prefix)).map(str::to_owned).collect())
}

/// Whether something is named `PREFIX-PID-…` and its process is gone.
pub fn is_left_over(name: &str, prefix: &str) -> bool {
    owner(name, prefix).is_some_and(|pid| !is_xtask(pid))
}

/// The process that a namespace's name says it belongs to.
fn owner(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// Whether the process lives and is one of ours, not another that took over the number.
fn is_xtask(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "xtask")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_owner() {
        assert_eq!(owner("kfdemo-12-node-1", "kfdemo"), Some(12));
        assert_eq!(owner("kfdemo-x", "kfdemo"), None);
        assert_eq!(owner("other-12-node-1", "kfdemo"), None);
    }
}
