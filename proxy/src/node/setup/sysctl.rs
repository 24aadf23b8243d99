//! One number in a file of the kernel: read, and written only where it differs.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A setting of the node that cannot be made.
#[derive(thiserror::Error, Debug)]
pub enum SetupError {
    /// The kernel has no such setting.
    #[error(
        "there is no {}: load the kernel module nf_conntrack (modprobe nf_conntrack), or leave the kernel's values alone \
         with conntrack.maxPerCore, tcpEstablishedTimeout and tcpCloseWaitTimeout of 0",
        path.display()
    )]
    Missing {
        /// The file that is not there.
        path: PathBuf,
    },
    /// The file system is mounted read-only, as in containers that are not privileged.
    #[error(
        "{} is {found} and should be {wanted}, and it is mounted read-only here: `kubeferry run --init-only` sets it, in a privileged \
         init container (which a new pod runs, and a container that is only started again does not); or set it from outside, or \
         leave it alone with {field}",
        path.display()
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        wanted: u64,
        /// How to have it left alone.
        field: &'static str,
    },
    /// A right is missing.
    #[error(
        "{} is {found} and should be {wanted}, and {right} is missing to write it: grant it, run `kubeferry run --init-only` \
         as root before, or leave it alone with {field}",
        path.display()
    )]
    Denied {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What it should say.
        wanted: u64,
        /// The right that would do.
        right: &'static str,
        /// How to have it left alone.
        field: &'static str,
    },
    /// No BPF file system.
    #[error(
        "cannot mount a BPF file system at {}: {source}; the folder must be there, and CAP_SYS_ADMIN is needed",
        path.display()
    )]
    Mount {
        /// Where it should be.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot set {} to {wanted}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it should say.
        wanted: u64,
        /// The system's error.
        source: io::Error,
    },
}

impl SetupError {
    /// Whether only here nobody may set it: who has more rights can, before or while we serve.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::ReadOnly { .. } | Self::Denied { .. })
    }
}

/// What became of a setting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Written {
    /// It was right.
    Already,
    /// It is now; this is what it was.
    Set(String),
    /// The kernel lets nobody write it in this network namespace: it belongs to the machine's own.
    Foreign(String),
}

/// Writes `wanted` where the file says something else. `field` is the setting that has it left alone, `right` what root has
/// that writing needs.
pub(super) fn write(path: &Path, wanted: u64, right: &'static str, field: &'static str) -> Result<Written, SetupError> {
    let path = path.to_path_buf();
    let io = |path: &Path, source| SetupError::Io { path: path.to_path_buf(), wanted, source };
    let found = match fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SetupError::Missing { path }),
        Err(error) => return Err(io(&path, error)),
    };
    if found == wanted.to_string() {
        return Ok(Written::Already);
    }
    // Not even root may, which is how the kernel marks what is the node's in other network namespaces.
    let mode = fs::metadata(&path).map_err(|error| io(&path, error))?.permissions().mode();
    if mode & 0o222 == 0 {
        return Ok(Written::Foreign(found));
    }
    match fs::write(&path, wanted.to_string()) {
        Ok(()) => Ok(Written::Set(found)),
        Err(source) => refused(Refused { path, found, wanted, right, field, source }),
    }
}

struct Refused {
    path: PathBuf,
    found: String,
    wanted: u64,
    right: &'static str,
    field: &'static str,
    source: io::Error,
}

/// What it means that a value was not taken.
fn refused(refused: Refused) -> Result<Written, SetupError> {
    let Refused { path, found, wanted, right, field, source } = refused;
    match source.raw_os_error() {
        // How parameters of a module answer other network namespaces than the machine's: their mode is the same there.
        Some(libc::EOPNOTSUPP) => Ok(Written::Foreign(found)),
        Some(libc::EROFS) => Err(SetupError::ReadOnly { path, found, wanted, field }),
        Some(libc::EPERM | libc::EACCES) => Err(SetupError::Denied { path, found, wanted, right, field }),
        _ => Err(SetupError::Io { path, wanted, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    #[test]
    fn only_what_differs_is_written() {
        let right = file("7\n", 0o644);
        assert_eq!(write(right.path(), 7, "", "").unwrap(), Written::Already);
        assert_eq!(fs::read_to_string(right.path()).unwrap(), "7\n", "as it was");
        let wrong = file("6\n", 0o644);
        assert_eq!(write(wrong.path(), 7, "", "").unwrap(), Written::Set("6".to_owned()));
        assert_eq!(fs::read_to_string(wrong.path()).unwrap(), "7");
    }

    #[test]
    fn what_nobody_may_write_is_the_nodes() {
        let foreign = file("6\n", 0o444);
        assert_eq!(write(foreign.path(), 7, "", "").unwrap(), Written::Foreign("6".to_owned()));
        assert_eq!(fs::read_to_string(foreign.path()).unwrap(), "6\n");
    }

    #[test]
    fn what_a_module_refuses_other_network_namespaces_is_the_machines() {
        let refused = |errno| {
            let source = io::Error::from_raw_os_error(errno);
            let path = PathBuf::from("/sys/module/nf_conntrack/parameters/hashsize");
            refused(Refused { path, found: "6".into(), wanted: 7, right: "", field: "", source })
        };
        assert_eq!(refused(libc::EOPNOTSUPP).unwrap(), Written::Foreign("6".to_owned()));
        assert!(matches!(refused(libc::EROFS), Err(SetupError::ReadOnly { .. })));
        assert!(matches!(refused(libc::EACCES), Err(SetupError::Denied { .. })));
        assert!(matches!(refused(libc::EINVAL), Err(SetupError::Io { .. })));
    }

    #[test]
    fn what_is_not_there_is_named_with_its_module() {
        let error = write(Path::new("/nonexistent/nf_conntrack_max"), 7, "", "").unwrap_err().to_string();
        assert!(error.contains("/nonexistent/nf_conntrack_max") && error.contains("modprobe nf_conntrack"), "{error}");
    }

    #[test]
    fn a_missing_right_is_named() {
        let denied = SetupError::Denied {
            path: "/p".into(),
            found: "6".into(),
            wanted: 7,
            right: "CAP_NET_ADMIN",
            field: "conntrack.min 0",
        };
        let text = denied.to_string();
        assert!(text.contains("CAP_NET_ADMIN is missing") && text.contains("--init-only"), "{text}");
    }
}
