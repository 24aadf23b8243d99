//! Requests over real sockets, a new connection each, from a process of its own: sockets are translated by the cgroup that
//! their process is in, and xtask itself stays where it is.
//!
//! The process reads a target a line, sends a request there and answers with a line: `POD sees ADDRESS`, or `! ERROR`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::traffic::Origin;
use crate::{netns, places};

/// The longest a connection, or its answer, may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Sends the demo's requests to the targets that it reads
#[derive(clap::Args)]
pub struct Args {
    /// The cgroup to run in
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

/// Serves until there are no more targets.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.cgroup.as_deref().map_or(Ok(()), places::enter)?;
    let mut out = std::io::stdout().lock();
    for target in std::io::stdin().lines() {
        let answer = match request(target?.parse()?) {
            Ok(answer) => answer,
            Err(error) => format!("! {error:#}").replace('\n', " "),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

/// One request on a connection of its own: what the pod says.
fn request(target: SocketAddr) -> anyhow::Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connecting to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: webapp\r\nConnection: close\r\n\r\n").context("sending")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    let body = answer.split_once("\r\n\r\n").filter(|_| answer.starts_with("HTTP/1.1 200 ")).map(|(_, body)| body);
    Ok(body.with_context(|| format!("not an answer: {answer:?}"))?.trim_end().to_owned())
}

/// Such a process. Dropping it ends it.
#[derive(Debug)]
pub struct Sender {
    child: Child,
    // `None` only while it is dropped.
    targets: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Sender {
    /// Starts it where an origin says.
    pub fn start(origin: &Origin) -> anyhow::Result<Self> {
        let mut command = netns::command(&origin.namespace, std::env::current_exe().context("where is xtask?")?);
        command.arg("send");
        if let Some(cgroup) = &origin.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        // In a process group of its own: Ctrl-C is for xtask.
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = started.with_context(|| format!("cannot start the sender of {}", origin.name))?;
        let (targets, answers) = (child.stdin.take(), child.stdout.take().context("no pipe to the sender")?);
        Ok(Self { child, targets, answers: BufReader::new(answers) })
    }

    /// Has it send one request. What became of that: the pod's name and the client's address as the pod saw it.
    ///
    /// # Errors
    /// The process ended.
    pub fn request(&mut self, target: SocketAddr) -> anyhow::Result<anyhow::Result<(String, String)>> {
        writeln!(self.targets.as_mut().context("the sender was told to end")?, "{target}")
            .context("the sender ended")?;
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("the sender's answer")? == 0 {
            return Err(anyhow!("the sender ended"));
        }
        let line = line.trim_end();
        Ok(match (line.strip_prefix("! "), line.split_once(" sees ")) {
            (Some(error), _) => Err(anyhow!("{error}")),
            (None, Some((pod, client))) => Ok((pod.to_owned(), client.to_owned())),
            (None, None) => Err(anyhow!("not an answer: {line:?}")),
        })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // The end of its targets ends it, after a request in hand; there is nobody left to tell.
        drop(self.targets.take());
        let _ = self.child.wait();
    }
}
