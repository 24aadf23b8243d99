//! One proxy at a time in a network namespace: two would undo each other's rows without end.
//!
//! The lock is an abstract unix socket. Its name belongs to the network namespace, as the tables do, so it needs no folder
//! that two containers share, and it goes with the process however that ends. Anybody in the namespace may take the name,
//! so only a process that could be a proxy is waited for: one of our own user, or of root.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// The leading zero makes it abstract.
const NAME: &[u8] = b"\0kubeferry/nftables";
/// How often somebody who waits looks whether the other has ended.
const AGAIN: Duration = Duration::from_millis(250);
/// How often in a row a holder may be silent; one of ours is so for the moment between two system calls.
const SILENT: u32 = 20;

/// The lock, held until it is dropped. `None`: there is none, and the proxy goes on without.
#[derive(Debug)]
pub struct Lock(Option<StdListener>);

/// The lock while the proxy serves.
#[derive(Debug)]
pub struct Held(Option<JoinHandle<()>>);

/// Another proxy has the lock.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
#[error(
    "another kubeferry run ({0}) serves this network namespace, and the two would undo each other's rows: end it first"
)]
pub struct Taken(pub Holder);

/// Who has the lock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    /// The process id; `None` where it lies outside our pid namespace.
    pub pid: Option<i32>,
    uid: u32,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}"),
            None => f.write_str("a process of another container"),
        }
    }
}

/// Takes the lock. While another proxy has it, `wait` decides: wait for its end, and say so in the log; or fail. Where the
/// lock cannot be had by any waiting, a warning says why, and the proxy goes on without. `None`: `end` was set meanwhile.
///
/// Whoever waits writes nothing and sets nothing, not even sysctls. So this comes before rights are given up, and before there
/// are threads: it starts none.
///
/// # Errors
/// [`Taken`], only without `wait`.
pub async fn take(wait: bool, end: &AtomicBool) -> Result<Option<Lock>, Taken> {
    let (mut waited_for, mut silent) = (None, 0);
    let without = |why: fmt::Arguments<'_>| {
        tracing::warn!("going on without the lock that keeps two proxies apart: {why}");
        Ok(Some(Lock(None)))
    };
    loop {
        if end.load(Ordering::Relaxed) {
            return Ok(None);
        }
        match UnixListener::bind(OsStr::from_bytes(NAME)).and_then(UnixListener::into_std) {
            Ok(listener) => {
                if waited_for.is_some() {
                    tracing::info!("the other kubeferry run has ended: taking over");
                }
                return Ok(Some(Lock(Some(listener))));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return without(format_args!("{error}")),
        }
        match holder().await {
            Ok((holder, false)) => {
                return without(format_args!(
                    "its name is taken by {holder} of user {}, which is no proxy",
                    holder.uid
                ));
            }
            Ok((holder, true)) if !wait => return Err(Taken(holder)),
            Ok((holder, true)) => {
                silent = 0;
                if waited_for.as_ref() != Some(&holder) {
                    tracing::warn!("{}; waiting until it ends, nothing is written before", Taken(holder.clone()));
                    waited_for = Some(holder);
                }
            }
            // It has just ended, or does not listen yet.
            Err(_) if silent < SILENT => silent += 1,
            Err(error) => return without(format_args!("whoever has its name does not answer: {error}")),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether another proxy has the lock at this moment.
pub async fn is_taken() -> bool {
    holder().await.is_ok_and(|(_, is_proxy)| is_proxy)
}

/// Who has the lock, and whether it may be a proxy.
async fn holder() -> io::Result<(Holder, bool)> {
    // The kernel tells who made the socket listen.
    let cred = UnixStream::connect(OsStr::from_bytes(NAME)).await?.peer_cred()?;
    let ours = UnixStream::pair()?.0.peer_cred()?.uid();
    // 0 is what the kernel says of a process that our pid namespace does not have.
    let holder = Holder { pid: cred.pid().filter(|pid| *pid != 0), uid: cred.uid() };
    let trusted = [0, ours].contains(&holder.uid);
    Ok((holder, trusted))
}

/// Takes the visits of those who ask, which would fill the queue otherwise. There is nothing to say to them.
async fn answer(listener: UnixListener) {
    loop {
        if listener.accept().await.is_err() {
            // Too many open files, for one.
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl Lock {
    /// Holds it on while the proxy serves: answers those who ask for it.
    ///
    /// # Errors
    /// The runtime does not take the socket.
    pub fn hold(self) -> io::Result<Held> {
        let listener = self.0.map(UnixListener::from_std).transpose()?;
        Ok(Held(listener.map(|listener| tokio::spawn(answer(listener)))))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
