//! The `nft` program: whether it and the kernel serve, and running a script with it.
//!
//! Rows go over netlink (`netlink`); what needs `nft`'s language, the skeleton and its chains, goes through here.

use std::fs::File;
use std::io::{Seek, Write};
use std::{fmt, io, os::unix::process::ExitStatusExt, path::PathBuf, time::Duration};

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use super::child::Child;
use super::netlink::NOT_PERMITTED;

/// The oldest `nft` that serves, as for kube-proxy (pkg/proxy/nftables/supported.go).
pub const OLDEST_NFT: Version = Version(1, 0, 1);
/// The oldest kernel that serves, as for kube-proxy.
pub const OLDEST_KERNEL: Version = Version(5, 13, 0);
/// How long `nft` may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How many letters of what is no version an error shows.
const SHOWN: usize = 80;
/// How much of `nft`'s complaint an error keeps, in bytes: it repeats the script's lines, which may be long.
pub(crate) const COMPLAINT: usize = 4096;

/// A version: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The version at the beginning of a text such as `6.1.0-13-amd64`; a part that is missing is 0.
    pub(crate) fn find(text: &str) -> Option<Self> {
        let word = text.split_whitespace().next()?;
        let mut parts = word.split(|character: char| !character.is_ascii_digit()).map(str::parse);
        let major = parts.next()?.ok()?;
        let mut part = || parts.next().and_then(Result::ok).unwrap_or(0);
        Some(Self(major, part(), part()))
    }
}

/// What can go wrong with `nft`.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No such program.
    #[error("there is no program {program:?}: install the package nftables, or set PATH so that it is found")]
    Missing {
        /// What was looked for.
        program: PathBuf,
    },
    /// The program cannot be started or spoken to.
    #[error("cannot run {program:?}: {source}")]
    Io {
        /// What was run.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The program is too old.
    #[error("nft is version {found}, and {OLDEST_NFT} or later is needed: install a newer package nftables")]
    OldNft {
        /// Its version.
        found: Version,
    },
    /// The kernel is too old.
    #[error("the kernel is version {found}, and {OLDEST_KERNEL} or later is needed")]
    OldKernel {
        /// Its version.
        found: Version,
    },
    /// A version cannot be read.
    #[error("cannot tell the version of {what} from {text:?}")]
    Version {
        /// "nft" or "the kernel".
        what: &'static str,
        /// What it says.
        text: String,
    },
    /// The right to change rules is missing.
    #[error("{NOT_PERMITTED} (nft says: {complaint})")]
    NotPermitted {
        /// What `nft` wrote to its standard error.
        complaint: String,
    },
    /// The script was refused; nothing has changed.
    #[error("nft refused: {complaint}")]
    Refused {
        /// What `nft` wrote to its standard error.
        complaint: String,
    },
    /// The kernel lacks memory, or room in its buffers, for the script, whatever it says; nothing has changed.
    #[error("the kernel has no room for what nft is to load: {complaint}")]
    Short {
        /// What `nft` wrote to its standard error.
        complaint: String,
    },
    /// The program hung and was ended. Whether its transaction is in force is not known.
    #[error("nft did not finish within {}s and was ended: is another program holding the kernel's rules?", after.as_secs_f64())]
    TimedOut {
        /// How long it was given.
        after: Duration,
    },
    /// Somebody ended the program. Whether its transaction is in force is not known.
    #[error("nft was ended by somebody else ({how}): is there not enough memory?")]
    Killed {
        /// By which signal.
        how: String,
    },
    /// We were told to end while the program ran, and it was ended. Whether its transaction is in force is not known.
    #[error("nft was ended, because we are to end")]
    Ended,
}

/// Runs `nft` in the network namespace of the thread that polls.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
    timeout: Duration,
    ends: bool,
}

impl Nft {
    /// The program of this name or path, ended after `timeout`.
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { program: program.into(), timeout, ends: false }
    }

    /// Has SIGTERM and SIGINT, which the process has to handle already, end the program, so that nobody waits for one that
    /// hangs.
    pub fn ended_by_signals(self) -> Self {
        Self { ends: true, ..self }
    }

    /// Loads a script in `nft`'s language: one transaction.
    ///
    /// # Errors
    /// Every [`NftError`] but those about versions.
    pub async fn load(&self, script: &str) -> Result<(), NftError> {
        self.run(&["-f", "-"], script).await.map(drop)
    }

    /// Whether the program, and the kernel unless `any_kernel`, are new enough. Gives the program's version.
    ///
    /// # Errors
    /// [`NftError::Missing`], [`NftError::OldNft`], [`NftError::OldKernel`], or no answer.
    pub async fn check_versions(&self, any_kernel: bool) -> Result<Version, NftError> {
        let nft = check("nft", &self.run(&["--version"], "").await?, OLDEST_NFT)?;
        if !any_kernel {
            let path = PathBuf::from("/proc/sys/kernel/osrelease");
            let release =
                std::fs::read_to_string(&path).map_err(|source| NftError::Io { program: path.clone(), source })?;
            check("the kernel", &release, OLDEST_KERNEL)?;
        }
        Ok(nft)
    }

    /// Runs the program with arguments and standard input; gives its standard output.
    ///
    /// # Errors
    /// As for [`Nft::load`].
    pub async fn run(&self, arguments: &[&str], input: &str) -> Result<String, NftError> {
        let failed = |source| NftError::Io { program: self.program.clone(), source };
        let script = whole(input).map_err(failed)?;
        let told_to_end = self.told_to_end().map_err(failed)?;
        let mut child = Child::start(&self.program, arguments, script).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NftError::Missing { program: self.program.clone() },
            _ => failed(source),
        })?;
        let (stdout, stderr) = child.streams();
        let work = async { tokio::try_join!(read_all(stdout), read_all(stderr), child.wait()) };
        let result = tokio::select! {
            result = timeout(self.timeout, work) => result.map_err(|_| NftError::TimedOut { after: self.timeout }),
            () = told_to_end => Err(NftError::Ended),
        };
        let (stdout, stderr, status) = match result {
            Ok(result) => result.map_err(failed)?,
            Err(error) => {
                child.end().await.map_err(failed)?;
                return Err(error);
            }
        };
        if status.success() {
            return Ok(stdout);
        }
        if status.signal().is_some() {
            return Err(NftError::Killed { how: status.to_string() });
        }
        let mut complaint = complaint(&stderr);
        if complaint.is_empty() {
            complaint = status.to_string();
        }
        if complaint.contains("Operation not permitted") {
            return Err(NftError::NotPermitted { complaint });
        }
        // As `strerror` names ENOMEM and ENOBUFS.
        if ["Cannot allocate memory", "No buffer space available"].iter().any(|short| complaint.contains(short)) {
            return Err(NftError::Short { complaint });
        }
        Err(NftError::Refused { complaint })
    }
}

impl Nft {
    /// Ends when we are told to end, if that matters here.
    fn told_to_end(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let signals = match self.ends {
            true => Some((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)),
            false => None,
        };
        Ok(async move {
            let Some((mut terminate, mut interrupt)) = signals else { return std::future::pending().await };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
    }
}

impl Default for Nft {
    fn default() -> Self {
        Self::new("nft", TIMEOUT)
    }
}

/// The text as a file without a name. Through a pipe, the program would take what has come so far for all of it if we were
/// killed while we write, and that may be a script that it accepts.
fn whole(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create("kubeferry script", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// What `nft` wrote to its standard error, as long as an error keeps it.
pub(crate) fn complaint(stderr: &str) -> String {
    let mut complaint = stderr.trim().to_owned();
    if complaint.len() > COMPLAINT {
        complaint.truncate(complaint.floor_char_boundary(COMPLAINT));
        complaint.push_str(" …");
    }
    complaint
}

async fn read_all(stream: Option<impl AsyncReadExt + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn check(what: &'static str, text: &str, oldest: Version) -> Result<Version, NftError> {
    // `nftables v1.0.6 (Lester Gooch #5)`; what begins with a number otherwise is none.
    let version = if what == "nft" { text.strip_prefix("nftables v") } else { Some(text) };
    match version.and_then(Version::find) {
        None => Err(NftError::Version { what, text: text.chars().take(SHOWN).collect() }),
        Some(found) if found >= oldest => Ok(found),
        Some(found) if what == "nft" => Err(NftError::OldNft { found }),
        Some(found) => Err(NftError::OldKernel { found }),
    }
}

#[cfg(test)]
mod tests;
