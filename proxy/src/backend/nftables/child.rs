//! A program that is started and leaves nothing behind, whatever becomes of it or of us.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::process::{self, ChildStderr, ChildStdout, Command};

/// A running program, in a process group of its own.
#[derive(Debug)]
pub(super) struct Child {
    child: process::Child,
    group: Option<Pid>,
}

impl Child {
    /// Starts it, in English, with a file to read, and pipes for what it writes.
    ///
    /// It is killed when the calling thread ends, so also when we are: the thread has to wait for it.
    ///
    /// # Errors
    /// The system's.
    #[allow(unsafe_code)]
    pub(super) fn start(program: &Path, arguments: &[&str], input: File) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").process_group(0).kill_on_drop(true);
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: between fork and exec there is one system call, and no memory is touched.
        unsafe {
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
        }
        let child = command.spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, group })
    }

    /// What it writes.
    pub(super) fn streams(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The system's.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills it and all that it has started, and waits until it is gone.
    ///
    /// # Errors
    /// The system's.
    pub(super) async fn end(&mut self) -> io::Result<()> {
        if let Some(group) = self.group {
            // Nobody is left in it where that fails.
            let _ = kill_process_group(group, Signal::KILL);
        }
        self.child.kill().await
    }
}
