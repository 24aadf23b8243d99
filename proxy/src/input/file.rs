//! Reads one file, so that nothing that somebody puts in its place can hold the reader up or fill the memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The content of a regular file, also at the end of a symlink, of up to `largest` bytes.
///
/// # Errors
/// It cannot be opened or read, is no regular file (a pipe would be waited for, a device has no end) or is larger than `largest`.
pub(crate) fn read(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    // Not blocking: opening a pipe that nobody writes to does not wait.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    up_to(file, largest)
}

/// As [`read`], but waits for what a pipe tells: for who asks once.
///
/// # Errors
/// It cannot be opened or read, or is larger than `largest`.
pub(crate) fn read_any(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    up_to(File::open(path)?, largest)
}

fn up_to(file: File, largest: u64) -> io::Result<Vec<u8>> {
    let too_large = || io::Error::other(format!("it is larger than {} MiB", largest >> 20));
    let size = file.metadata()?.len();
    if size > largest {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    // It may grow meanwhile.
    file.take(largest + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > largest { Err(too_large()) } else { Ok(bytes) }
}

/// The text of what was read.
///
/// # Errors
/// It is not UTF-8.
pub(crate) fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: u64 = 64 << 20;

    #[test]
    fn only_regular_files_of_a_bearable_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let error = |name: &str| read(&at(name), LARGEST).unwrap_err().to_string();
        std::fs::write(at("a.yaml"), "a").unwrap();
        std::os::unix::fs::symlink("a.yaml", at("link.yaml")).unwrap();
        assert_eq!(read(&at("link.yaml"), LARGEST).unwrap(), b"a");
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
        assert!(read_any(&at("huge.yaml"), LARGEST).is_err());
        assert!(read_any(Path::new("/dev/zero"), 1 << 20).unwrap_err().to_string().contains("1 MiB"));
    }
}
