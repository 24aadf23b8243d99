//! A folder of the BPF file system that nobody else can change. Often everybody may make folders there (the kernel mounts it
//! with mode 1777 unless told otherwise), and whoever owns the folder that we pin in can put other pins in the place of ours.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use super::error::EbpfError;

/// Makes it, for our user alone, or takes one that is there if it is ours or root's and nobody else may write in it.
///
/// # Errors
/// It cannot be made, or is somebody else's.
pub(super) fn make(path: &Path) -> Result<(), EbpfError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(EbpfError::pin(path)(error)),
        _ => {}
    }
    // Not of what a link leads to.
    let meta = fs::symlink_metadata(path).map_err(EbpfError::pin(path))?;
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    let why = if !meta.is_dir() {
        "it is no folder"
    } else if !ours {
        "another user has made it, who could change what is pinned there"
    } else if meta.mode() & 0o022 != 0 {
        "others may write in it, and could change what is pinned there"
    } else {
        return Ok(());
    };
    Err(EbpfError::pin(path)(io::Error::other(format!("{why}: remove it, or name another place with --bpffs-root"))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn only_a_folder_that_nobody_else_can_change_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make(&at("new")).unwrap();
        assert_eq!(fs::metadata(at("new")).unwrap().mode() & 0o7777, 0o700);
        make(&at("new")).unwrap();
        fs::set_permissions(at("new"), fs::Permissions::from_mode(0o755)).unwrap();
        make(&at("new")).unwrap();
        fs::set_permissions(at("new"), fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(make(&at("new")).unwrap_err().to_string().contains("others may write in it"));
        symlink("/tmp", at("link")).unwrap();
        assert!(make(&at("link")).unwrap_err().to_string().contains("it is no folder"));
        fs::create_dir(at("theirs")).unwrap();
        std::os::unix::fs::chown(at("theirs"), Some(65_534), None).unwrap();
        assert!(make(&at("theirs")).unwrap_err().to_string().contains("another user has made it"));
    }
}
