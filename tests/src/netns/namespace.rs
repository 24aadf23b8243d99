//! A network namespace that goes away with its value.

use std::cell::RefCell;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use super::command::{output, tool};
use super::kernel;

/// Every namespace of this harness is called `kubeferry-test-PID-NUMBER-PURPOSE`.
const PREFIX: &str = "kubeferry-test-";
/// Where `ip netns` keeps the handles of named namespaces.
const HANDLES: &str = "/run/netns";

thread_local! {
    /// The namespace that [`Netns::run`] has put this thread into.
    static INSIDE: RefCell<String> = const { RefCell::new(String::new()) };
}

static NUMBER: AtomicU32 = AtomicU32::new(0);
static REMOVE_STALE: Once = Once::new();

/// A named network namespace (`ip netns`), removed when the value is dropped, also by a panic. It has no way out: what is
/// in it reaches only what [`link`](super::link) joins to it.
#[derive(Debug)]
pub struct Netns {
    name: String,
    handle: File,
}

impl Netns {
    /// Makes a namespace with `lo` up. `purpose` is a word that tells a person what it is for.
    ///
    /// Namespaces that a killed run has left behind are removed first.
    ///
    /// # Errors
    /// `ip` is missing, or the right to make namespaces is.
    pub fn new(purpose: &str) -> Result<Self> {
        REMOVE_STALE.call_once(remove_stale);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{purpose}", std::process::id());
        tool("ip", &["netns", "add", &name], "")?;
        let path = Path::new(HANDLES).join(&name);
        let handle = match File::open(&path) {
            Ok(handle) => handle,
            Err(error) => {
                remove(&name);
                return Err(error).with_context(|| format!("cannot open {}", path.display()));
            }
        };
        let namespace = Self { name, handle };
        namespace.ip(&["link set lo up"])?;
        Ok(namespace)
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread of its own inside the namespace; where this is one, on this. Sockets that it makes and processes
    /// that it starts belong to the namespace for good. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// The thread may not enter the namespace (CAP_SYS_ADMIN).
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        if INSIDE.with_borrow(|inside| *inside == self.name) {
            return Ok(work());
        }
        let enter = || {
            kernel::enter(&self.handle)?;
            INSIDE.with_borrow_mut(|inside| inside.clone_from(&self.name));
            Ok(work())
        };
        let entered: Result<std::io::Result<T>, _> = std::thread::scope(|scope| scope.spawn(enter).join());
        match entered {
            Ok(result) => {
                result.with_context(|| format!("cannot enter namespace {}: it needs CAP_SYS_ADMIN", self.name))
            }
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Starts a thread that stays inside the namespace, and so do the threads that it starts.
    ///
    /// # Errors
    /// The handle of the namespace cannot be given to it. That the thread may not enter is its own first error.
    pub fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let handle = self.handle.try_clone().with_context(|| format!("the handle of namespace {}", self.name))?;
        Ok(std::thread::spawn(move || {
            kernel::enter(&handle).context("cannot enter a namespace: it needs CAP_SYS_ADMIN")?;
            work()
        }))
    }

    /// Moves the calling thread into a namespace of this name, which may be another process', for good.
    ///
    /// # Errors
    /// There is none, or the right is missing (CAP_SYS_ADMIN).
    pub fn enter(name: &str) -> Result<()> {
        let path = Path::new(HANDLES).join(name);
        let handle = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        kernel::enter(&handle).with_context(|| format!("cannot enter namespace {name}: it needs CAP_SYS_ADMIN"))
    }

    /// Runs a command to its end inside the namespace, with `input` on its standard input.
    ///
    /// # Errors
    /// The program is missing, or cannot be started there. A failure of the program is in the [`Output`].
    pub fn output(&self, command: &mut Command, input: &str) -> Result<Output> {
        self.run(|| output(command, input))?
    }

    /// Starts a command inside the namespace. The caller ends it; what is left when the namespace goes is killed.
    ///
    /// # Errors
    /// The program is missing, or cannot be started there.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run(|| command.spawn())?.with_context(|| format!("cannot start `{program}` in {}", self.name))
    }

    /// Runs lines of `ip` commands (`addr add …`, `route add …`) in the namespace, all in one process.
    ///
    /// # Errors
    /// `ip` is missing or refuses a line; the message has the line's number.
    pub fn ip(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        let batch: String = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect();
        tool("ip", &["-n", &self.name, "-batch", "-"], &batch)
            .map(drop)
            .with_context(|| format!("in namespace {}, lines:\n{batch}", self.name))
    }

    /// Loads or lists with `nft` in the namespace: `arguments` and the text on standard input; returns what it printed.
    ///
    /// # Errors
    /// `nft` is missing or refuses.
    pub fn nft(&self, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| tool("nft", arguments, input))?
    }

    /// Writes a sysctl of the namespace; `key` is in the form `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// The key does not exist on this kernel, or the right is missing.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    /// Reads a sysctl of the namespace, without the end of its line.
    ///
    /// # Errors
    /// The key does not exist on this kernel.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        let text = self.run(|| std::fs::read_to_string(&path))?;
        text.map(|text| text.trim_end().to_owned()).with_context(|| format!("cannot read {}", path.display()))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Removes the namespaces of runs that no longer exist. Another run may do the same at the same time: what is gone is gone.
fn remove_stale() {
    for entry in std::fs::read_dir(HANDLES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}

/// The process id in the name of one of our namespaces; `None` for a namespace of anybody else.
fn owner(name: &str) -> Option<&str> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.bytes().all(|byte| byte.is_ascii_digit()).then_some(pid)
}

/// Kills what still runs in a namespace of ours, which would keep it alive, and removes its name.
fn remove(name: &str) {
    let pids = tool("ip", &["netns", "pids", name], "").unwrap_or_default();
    for pid in pids.split_whitespace().filter(|pid| *pid != std::process::id().to_string()) {
        drop(Command::new("kill").args(["-KILL", pid]).status());
    }
    if let Err(error) = tool("ip", &["netns", "delete", name], "") {
        eprintln!("namespace {name} is left behind: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_names_have_an_owner() {
        assert_eq!(owner("kubeferry-test-12-0-node"), Some("12"));
        assert_eq!(owner("kubeferry-test-x-0-node"), None);
        assert_eq!(owner("somebody-12-0"), None);
    }
}
