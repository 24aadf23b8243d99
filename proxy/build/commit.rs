//! Which commit a build is of: from git, or from what `git archive` wrote into `commit.txt`. Part of the build script, and tested
//! with the crate.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the binary is made of, from the workspace's folder.
pub const SOURCES: [&str; 4] = ["proxy", "proxy-ebpf", "Cargo.toml", "Cargo.lock"];
/// Digits of a commit's name that are shown.
const DIGITS: usize = 12;

/// The commit of the sources, with `, dirty` behind it where they differ from it; `None` where nothing says which. `archived` is
/// the text of `commit.txt`.
pub fn find(workspace: &Path, archived: &str) -> Option<String> {
    let Some(head) = head(workspace) else { return shown(archived.trim()) };
    let changed = git(workspace, &[&["status", "--porcelain", "--"][..], &SOURCES].concat())?;
    shown(&head).map(|commit| if changed.is_empty() { commit } else { format!("{commit}, dirty") })
}

/// The commit that is checked out; not that of a repository which the sources just lie in.
fn head(workspace: &Path) -> Option<String> {
    let top = git(workspace, &["rev-parse", "--show-toplevel"])?;
    let ours = Path::new(&top).canonicalize().ok()? == workspace.canonicalize().ok()?;
    git(workspace, &["rev-parse", "--verify", "HEAD"]).filter(|_| ours)
}

/// The files whose change means another commit, where there is a repository.
pub fn watched(workspace: &Path) -> Vec<PathBuf> {
    let path = |name: &str| git(workspace, &["rev-parse", "--git-path", name]).map(|path| workspace.join(path));
    let branch = git(workspace, &["symbolic-ref", "--quiet", "HEAD"]);
    let files = [Some("HEAD"), Some("packed-refs"), branch.as_deref()].into_iter().flatten();
    // One that is not there would have the build script run each time.
    files.filter_map(path).filter(|path| path.exists()).collect()
}

/// The first digits of a commit's name; nothing of what is none, such as `$Format:%H$` outside of an archive.
fn shown(name: &str) -> Option<String> {
    let is_commit = name.len() >= 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit.then(|| name[..DIGITS].to_owned())
}

/// What git prints, trimmed; nothing where it fails or is not there.
fn git(workspace: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(workspace).args(args);
    // Where a hook of another repository builds us.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name);
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHIVED: &str = "0123456789abcdef0123456789abcdef01234567\n";

    fn run(folder: &Path, args: &[&str]) -> String {
        let settings = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"];
        git(folder, &[&settings[..], args].concat()).unwrap_or_else(|| panic!("git {args:?}"))
    }

    #[test]
    fn the_commit_is_that_of_the_sources() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        for file in ["proxy/main.rs", "Cargo.toml", "README.md"] {
            std::fs::create_dir_all(place.join("proxy")).unwrap();
            std::fs::write(place.join(file), "1").unwrap();
        }
        run(place, &["init", "--quiet"]);
        run(place, &["add", "."]);
        run(place, &["commit", "--quiet", "-m", "first"]);
        let head = run(place, &["rev-parse", "HEAD"]);
        assert_eq!(find(place, ARCHIVED).unwrap(), head[..12]);
        assert!(watched(place).iter().any(|path| path.ends_with("HEAD")));
        assert!(watched(place).iter().any(|path| path.ends_with("refs/heads/main")));
        // What is no part of the binary.
        std::fs::write(place.join("README.md"), "2").unwrap();
        assert_eq!(find(place, ARCHIVED).unwrap(), head[..12]);
        std::fs::write(place.join("proxy/new.rs"), "2").unwrap();
        assert_eq!(find(place, ARCHIVED).unwrap(), format!("{}, dirty", &head[..12]));
    }

    #[test]
    fn without_a_repository_of_ours_the_archive_says_it() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(folder.path(), ARCHIVED).unwrap(), "0123456789ab");
        assert_eq!(find(folder.path(), "$Format:%H$\n"), None);
        // Unpacked within somebody else's repository.
        run(folder.path(), &["init", "--quiet"]);
        std::fs::create_dir(folder.path().join("inner")).unwrap();
        assert_eq!(find(&folder.path().join("inner"), ARCHIVED).unwrap(), "0123456789ab");
        assert_eq!(watched(&folder.path().join("nowhere")), Vec::<PathBuf>::new());
    }
}
