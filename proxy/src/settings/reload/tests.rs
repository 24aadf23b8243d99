use rustix::fs::{CWD, FileType, mknodat};
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n\
                      clusterCIDR: 10.244.0.0/16\n";
const PATIENCE: Duration = Duration::from_secs(60);

/// A configuration file that is followed.
struct Followed {
    folder: TempDir,
    reload: Reload,
}

impl Followed {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = ConfigFile { path: folder.path().join("config.yaml"), text: HEADER.to_owned() };
        std::fs::write(&file.path, HEADER).unwrap();
        let reload = Reload::start(RunArgs::default(), file, Vec::new()).unwrap();
        Self { folder, reload }
    }

    /// Puts a file with these fields in the place of ours.
    fn replace(&self, fields: &str) {
        self.replace_by(|path| std::fs::write(path, format!("{HEADER}{fields}")).unwrap());
    }

    fn replace_by(&self, make: impl FnOnce(&Path)) {
        let new = self.folder.path().join("new");
        make(&new);
        std::fs::rename(new, self.reload.path()).unwrap();
    }

    async fn next(&mut self) -> Result<Loaded, String> {
        let changed = timeout(PATIENCE, self.reload.next()).await.expect("a change is told");
        changed.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn what_would_take_for_ever_to_read_is_wrong_at_once_and_what_follows_is_taken_over() {
    let mut followed = Followed::start();
    followed.replace(&format!("x: {}", "[".repeat(200_000)));
    assert!(followed.next().await.unwrap_err().contains("brackets open"));
    let wide = format!("x: &a [{}]\ny: [{}]\n", "1,".repeat(3000), "*a,".repeat(3000));
    followed.replace(&wide);
    assert!(followed.next().await.unwrap_err().contains("aliases come to more than"));
    // A hole takes no room.
    followed.replace_by(|path| std::fs::File::create(path).unwrap().set_len(1 << 40).unwrap());
    assert!(followed.next().await.unwrap_err().contains("larger than 1 MiB"));
    followed.replace("nftables: {minSyncPeriod: 3s}\n");
    assert_eq!(followed.next().await.unwrap().warnings, Vec::<String>::new());
}

#[tokio::test]
async fn a_pipe_in_the_place_of_the_file_is_told_and_does_not_end_the_following() {
    let mut followed = Followed::start();
    followed.replace_by(|path| mknodat(CWD, path, FileType::Fifo, 0o600.into(), 0).unwrap());
    assert!(followed.next().await.unwrap_err().contains("no regular file"));
    followed.replace("nftables: {minSyncPeriod: 2s}\n");
    assert!(followed.next().await.is_ok());
}

#[tokio::test]
async fn a_file_that_comes_back_as_it_was_is_told_and_so_is_each_reason_why_it_cannot_be_read() {
    let mut followed = Followed::start();
    std::fs::remove_file(followed.reload.path()).unwrap();
    assert!(followed.next().await.unwrap_err().contains("No such file"));
    followed.replace_by(|path| mknodat(CWD, path, FileType::Fifo, 0o600.into(), 0).unwrap());
    assert!(followed.next().await.unwrap_err().contains("no regular file"));
    followed.replace("");
    assert!(followed.next().await.is_ok(), "who was told that it is wrong is told that it is right");
}

#[tokio::test]
async fn warnings_that_were_said_are_not_said_again_and_never_too_many() {
    let mut followed = Followed::start();
    followed.replace("typo: 1\n");
    assert_eq!(followed.next().await.unwrap().warnings.len(), 1);
    followed.replace("typo: 1\nnftables: {minSyncPeriod: 2s}\n");
    assert_eq!(followed.next().await.unwrap().warnings, Vec::<String>::new());
    let many: String = (0..50_000).map(|number| format!("typo{number}: 1\n")).collect();
    followed.replace(&many);
    let warnings = followed.next().await.unwrap().warnings;
    assert!(warnings.len() <= 101 && warnings.last().unwrap().contains("more warnings"), "{}", warnings.len());
}
