//! Whether a folder that is suddenly empty is believed, as lists of an API server are doubted: a file system that is mounted late
//! or no more, a copy that failed half way, would take every Service away.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long an empty folder is not believed, and how often it is looked at meanwhile.
const DOUBTED: Duration = Duration::from_secs(10);
pub(super) const AGAIN: Duration = Duration::from_secs(1);

/// What of the folder has not been believed.
#[derive(Default, Debug)]
pub(super) struct Doubts {
    /// Device and inode of the folder that files were last seen in.
    seen_in: Option<(u64, u64)>,
    since: Option<Instant>,
}

impl Doubts {
    /// Whether it is not believed yet that all of `held` files with objects are gone. `is_empty`: there is no manifest at all. The
    /// last file of a folder may go at once; not the folder itself.
    pub fn about(&mut self, dir: &Path, held: usize, is_empty: bool, now: Instant) -> bool {
        let folder = std::fs::metadata(dir).ok().map(|meta| (meta.dev(), meta.ino()));
        let is_strange = is_empty && held > 0 && (held > 1 || folder != self.seen_in);
        let since = *self.since.get_or_insert(now);
        if is_strange && now.saturating_duration_since(since) < DOUBTED {
            return true;
        }
        if is_strange {
            tracing::warn!(dir = %dir.display(), "the folder of manifests stays empty: that is the truth now");
        }
        (self.seen_in, self.since) = (folder, None);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_files_at_once_are_missed_for_a_while() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = Instant::now();
        let mut doubts = Doubts::default();
        assert!(!doubts.about(dir.path(), 0, true, start), "nothing is missed");
        assert!(!doubts.about(dir.path(), 2, false, start));
        assert!(doubts.about(dir.path(), 2, true, start));
        assert!(!doubts.about(dir.path(), 2, false, start + AGAIN), "they are back");
        assert!(doubts.about(dir.path(), 2, true, start + DOUBTED), "it begins anew");
        assert!(doubts.about(dir.path(), 2, true, start + DOUBTED + AGAIN));
        assert!(!doubts.about(dir.path(), 2, true, start + DOUBTED * 2));
        assert!(!doubts.about(dir.path(), 1, true, start + DOUBTED * 2), "somebody deleted it");
        assert!(doubts.about(other.path(), 1, true, start + DOUBTED * 2), "another folder is in its place");
    }
}
