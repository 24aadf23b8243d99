//! The real `nft`, and programs that stand in its place to misbehave.

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
    let nft = |text| check("nft", text, Version(0, 0, 0)).ok();
    assert_eq!(nft("nftables v1.0.6 (Lester Gooch #5)"), Some(Version(1, 0, 6)));
    assert_eq!(nft("nftables v1.1 (X)"), Some(Version(1, 1, 0)));
    assert_eq!(
        (nft("9 lives"), nft("nftables version unknown"), nft("Segmentation fault at 1.2.3")),
        (None, None, None)
    );
    assert_eq!(found("6.18.44-fc-v657\n"), Some(Version(6, 18, 44)));
    assert_eq!(found("5.13+"), Some(Version(5, 13, 0)));
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

/// Whether a process is there, whose number a script has written to a file.
fn is_there(pid: &std::path::Path) -> bool {
    let pid = std::fs::read_to_string(pid).unwrap();
    // One that has ended and that nobody has waited for is there as well, but for what it was started as.
    std::fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty())
}

#[test]
fn a_hanging_program_is_ended_with_all_that_it_has_started() {
    let folder = tempfile::tempdir().unwrap();
    let [pid, below] = ["pid", "below"].map(|name| folder.path().join(name));
    let text = format!("sleep 600 & echo $! > {}; echo $$ > {}; wait", below.display(), pid.display());
    let program = script(&folder, &text);
    // Long enough for the shell to write the numbers, for the test to see that they are gone.
    let error = block_on(async {
        let nft = Nft::new(program, Duration::from_secs(3));
        nft.load(&"x".repeat(1 << 20)).await.unwrap_err()
    });
    assert_eq!(
        error.to_string(),
        "nft did not finish within 3s and was ended: is another program holding the kernel's rules?"
    );
    assert!(!is_there(&pid));
    // It was told to end, and who has to wait for it is gone.
    let end = std::time::Instant::now() + Duration::from_secs(30);
    while is_there(&below) {
        assert!(std::time::Instant::now() < end, "what the program has started lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_program_that_somebody_kills_has_refused_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let error = block_on(Nft::new(script(&folder, "kill -KILL $$"), TIMEOUT).load("x")).unwrap_err();
    assert!(matches!(error, NftError::Killed { .. }), "{error}");
}

#[test]
fn garbage_is_no_version() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &str| block_on(Nft::new(script(&folder, text), TIMEOUT).check_versions(true)).unwrap_err();
    let error = check("head -c 100000 /dev/urandom | tr -d '0-9'").to_string();
    assert!(error.starts_with("cannot tell the version of nft from ") && error.len() < 1000, "{error}");
    let error = check("echo nftables v0.9.8 '(E)'").to_string();
    assert!(error.starts_with("nft is version 0.9.8, and 1.0.1 or later is needed"), "{error}");
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
