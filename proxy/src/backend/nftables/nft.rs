//! The `nft` program: whether it and the kernel serve, and running a script with it.
//!
//! Rows go over netlink (`netlink`); what needs `nft`'s language, the skeleton and its chains, goes through here.

use std::fs::File;
use std::io::{Seek, Write};
use std::{fmt, io, path::PathBuf, process::Stdio, time::Duration};

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::{io::AsyncReadExt, process::Command, time::timeout};

/// The oldest `nft` that serves, as for kube-proxy (pkg/proxy/nftables/supported.go).
pub const OLDEST_NFT: Version = Version(1, 0, 1);
/// The oldest kernel that serves, as for kube-proxy.
pub const OLDEST_KERNEL: Version = Version(5, 13, 0);
/// How long `nft` may take by default.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// How much of `nft`'s complaint an error keeps, in bytes: it repeats the script's lines, which may be long.
const COMPLAINT: usize = 4096;

/// A version: major, minor, patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Version {
    /// The first version in a text such as `nftables v1.0.6 (Lester Gooch #5)` or `6.1.0-13-amd64`; a part that is
    /// missing is 0.
    fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(|word| {
            let word = word.strip_prefix('v').unwrap_or(word);
            let mut parts = word.split(|character: char| !character.is_ascii_digit()).map(str::parse);
            let major = parts.next()?.ok()?;
            let mut part = || parts.next().and_then(Result::ok).unwrap_or(0);
            Some(Self(major, part(), part()))
        })
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
    #[error("CAP_NET_ADMIN is needed in this network namespace: run as root or grant it (nft says: {complaint})")]
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
    /// The program hung and was ended. Whether its transaction is in force is not known.
    #[error("nft did not finish within {}s and was ended: is another program holding the kernel's rules?", after.as_secs_f64())]
    TimedOut {
        /// How long it was given.
        after: Duration,
    },
}

/// Runs `nft` in the network namespace of the thread that polls.
#[derive(Debug, Clone)]
pub struct Nft {
    program: PathBuf,
    timeout: Duration,
}

impl Nft {
    /// The program of this name or path, ended after `timeout`.
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self { program: program.into(), timeout }
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
        let mut child = Command::new(&self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(script)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => NftError::Missing { program: self.program.clone() },
                _ => failed(source),
            })?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async { tokio::try_join!(read_all(stdout), read_all(stderr), child.wait()) };
        let (stdout, stderr, status) = match timeout(self.timeout, work).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => {
                child.kill().await.map_err(failed)?;
                return Err(NftError::TimedOut { after: self.timeout });
            }
        };
        if status.success() {
            return Ok(stdout);
        }
        let mut complaint = stderr.trim().to_owned();
        if complaint.is_empty() {
            complaint = status.to_string();
        }
        if complaint.len() > COMPLAINT {
            complaint.truncate(complaint.floor_char_boundary(COMPLAINT));
            complaint.push_str(" …");
        }
        if complaint.contains("Operation not permitted") {
            return Err(NftError::NotPermitted { complaint });
        }
        Err(NftError::Refused { complaint })
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

async fn read_all(stream: Option<impl AsyncReadExt + Unpin>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn check(what: &'static str, text: &str, oldest: Version) -> Result<Version, NftError> {
    match Version::find(text) {
        None => Err(NftError::Version { what, text: text.to_owned() }),
        Some(found) if found >= oldest => Ok(found),
        Some(found) if what == "nft" => Err(NftError::OldNft { found }),
        Some(found) => Err(NftError::OldKernel { found }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::netns::{drop_capabilities, in_new_netns, run};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    /// A script that stands for `nft`.
    fn script(folder: &tempfile::TempDir, text: &str) -> PathBuf {
        let path = folder.path().join("nft");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_are_read_and_compared() {
        let found = |text| Version::find(text);
        assert_eq!(found("nftables v1.0.6 (Lester Gooch #5)"), Some(Version(1, 0, 6)));
        assert_eq!(found("nftables v1.1 (X)"), Some(Version(1, 1, 0)));
        assert_eq!(found("6.18.44-fc-v657\n"), Some(Version(6, 18, 44)));
        assert_eq!(found("5.13+"), Some(Version(5, 13, 0)));
        assert_eq!(found("nftables version unknown"), None);
        assert!(check("nft", "nftables v1.0.1 (F)", OLDEST_NFT).is_ok());
        let error = check("nft", "nftables v0.9.8 (E)", OLDEST_NFT).unwrap_err().to_string();
        assert_eq!(error, "nft is version 0.9.8, and 1.0.1 or later is needed: install a newer package nftables");
        let error = check("the kernel", "5.10.0-28-amd64", OLDEST_KERNEL).unwrap_err().to_string();
        assert_eq!(error, "the kernel is version 5.10.0, and 5.13.0 or later is needed");
    }

    #[test]
    fn a_script_is_loaded_in_the_threads_namespace() {
        in_new_netns(|| {
            let nft = Nft::default();
            assert!(block_on(nft.check_versions(false)).unwrap() >= OLDEST_NFT);
            block_on(nft.load("add table inet t\nadd chain inet t c")).unwrap();
            assert!(run("nft", &["list", "tables"], "").contains("table inet t"));
            let error = block_on(nft.load("add rule inet t nochain accept")).unwrap_err();
            assert!(matches!(error, NftError::Refused { .. }), "{error}");
            assert!(error.to_string().contains("nochain"), "{error}");
        });
    }

    #[test]
    fn the_missing_right_is_named() {
        in_new_netns(|| {
            drop_capabilities();
            let error = block_on(Nft::default().load("add table inet t")).unwrap_err();
            assert!(matches!(error, NftError::NotPermitted { .. }), "{error}");
        });
    }

    #[test]
    fn the_missing_program_is_named() {
        let error = block_on(Nft::new("nft-that-is-not-there", TIMEOUT).check_versions(true)).unwrap_err();
        let text = "there is no program \"nft-that-is-not-there\": install the package nftables, or set PATH";
        assert!(error.to_string().starts_with(text), "{error}");
    }

    #[test]
    fn a_hanging_program_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let program = script(&folder, &format!("echo $$ > {}; exec sleep 600", pid.display()));
        // Long enough for the shell to write its number, for the test to see that it is gone.
        let error = block_on(async {
            let nft = Nft::new(program, Duration::from_secs(3));
            nft.load(&"x".repeat(1 << 20)).await.unwrap_err()
        });
        assert_eq!(
            error.to_string(),
            "nft did not finish within 3s and was ended: is another program holding the kernel's rules?"
        );
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!PathBuf::from(format!("/proc/{}", pid.trim())).exists());
    }

    #[test]
    fn a_script_is_whole_before_the_program_reads() {
        let folder = tempfile::tempdir().unwrap();
        let nft = Nft::new(script(&folder, "stat -L -c '%F %s' /dev/stdin && tail -c 3"), TIMEOUT);
        let text = format!("{}end", "x".repeat(1 << 20));
        assert_eq!(block_on(nft.run(&[], &text)).unwrap(), format!("regular file {}\nend", text.len()));
    }

    #[test]
    fn a_program_that_reads_nothing_and_says_much_is_no_trouble() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(&folder, "yes complaint | head -c 1000000 >&2; exit 1");
        let error = block_on(Nft::new(program, TIMEOUT).load(&"x".repeat(1 << 20))).unwrap_err();
        assert!(matches!(&error, NftError::Refused { complaint } if complaint.len() < COMPLAINT + 10), "{error}");
    }
}
