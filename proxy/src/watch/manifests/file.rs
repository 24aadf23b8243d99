//! Reads one file of the folder, so that nothing that somebody puts there can hold the reader up or fill the memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The largest file that is read, in bytes: 64 MiB, some 100,000 Services.
pub(super) const LARGEST: u64 = 64 << 20;

/// The content of a regular file, also at the end of a symlink.
///
/// # Errors
/// It cannot be opened or read, is no regular file (a pipe would be waited for, a device has no end) or is larger than
/// [`LARGEST`].
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Not blocking: opening a pipe that nobody writes to does not wait.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let too_large = || io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20));
    if meta.len() > LARGEST {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
    // It may grow meanwhile.
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST { Err(too_large()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bearable_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let error = |name: &str| read(&at(name)).unwrap_err().to_string();
        std::fs::write(at("a.yaml"), "a").unwrap();
        std::os::unix::fs::symlink("a.yaml", at("link.yaml")).unwrap();
        assert_eq!(read(&at("link.yaml")).unwrap(), b"a");
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe.yaml"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("zero.yaml")).unwrap();
        std::fs::create_dir(at("folder.yaml")).unwrap();
        for name in ["pipe.yaml", "zero.yaml", "folder.yaml"] {
            assert_eq!(error(name), "it is no regular file", "{name}");
        }
        std::os::unix::fs::symlink("loop.yaml", at("loop.yaml")).unwrap();
        assert!(error("loop.yaml").contains("symbolic links"), "{}", error("loop.yaml"));
        // A hole takes no room.
        File::create(at("huge.yaml")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(error("huge.yaml"), "it is larger than 64 MiB");
    }
}
