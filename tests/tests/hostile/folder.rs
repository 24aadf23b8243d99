//! A folder of manifests with what is no manifest: pipes, devices, loops, files without end, and YAML that multiplies.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use kubeferry_tests::client::Connection;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use rustix::fs::{CWD, FileType, mknodat};

use crate::cluster::{Cluster, proper};

on_both_datapaths! {
    what_is_no_manifest_holds_nobody_up,
}

fn folder(cluster: &Cluster) -> PathBuf {
    let command = cluster.web.source.command("run").unwrap();
    let flags: Vec<_> = command.get_args().collect();
    let at = flags.iter().position(|flag| *flag == "--manifests").unwrap();
    flags[at + 1].into()
}

fn what_is_no_manifest_holds_nobody_up(datapath: Datapath) {
    let cluster = Cluster::start_from_folder(datapath);
    let folder = folder(&cluster);
    let at = |name: &str| folder.join(name);
    let write = |name: &str, text: String| fs::write(at(name), text).unwrap();
    let later = |name: &str, ip: &str| {
        let objects = proper(name, ip, "10.244.1.2").map(|mut object| {
            let group = if object["kind"] == "Service" { "v1" } else { "discovery.k8s.io/v1" };
            object["apiVersion"] = group.into();
            object.to_string()
        });
        write(&format!("{name}.json"), objects.join("\n"));
        let to = format!("{ip}:80").parse().unwrap();
        cluster.until(&format!("{name} to answer"), || Connection::attempt(cluster.web.client(), to)?.ask().ok());
    };
    cluster
        .web
        .under_load(|| {
            mknodat(CWD, at("pipe.yaml"), FileType::Fifo, 0o666.into(), 0).unwrap();
            symlink("/dev/zero", at("zero.yaml")).unwrap();
            symlink("loop.yaml", at("loop.yaml")).unwrap();
            symlink("/proc/self/mem", at("memory.yaml")).unwrap();
            fs::create_dir(at("folder.yaml")).unwrap();
            // A hole takes no room on the disk.
            File::create(at("huge.yaml")).unwrap().set_len(1 << 40).unwrap();
            later("one", "10.96.7.1");
            fs::write(at("binary.yaml"), [0xff, 0xfe, 0, b'\n', 0x80]).unwrap();
            let laughs = |n: u32| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(","));
            write("laughs.yaml", format!("l0: &l0 [lol, lol]\n{}", (1..12).map(laughs).collect::<String>()));
            write("wide.yaml", format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(50_000), "*a,".repeat(50_000)));
            write("merge.yaml", format!("a: &a {{{}}}\nb: [{}]\n", keys(5000), "{<<: *a},".repeat(5000)));
            write("flow.yaml", "[".repeat(1 << 20));
            write("block.yaml", "- ".repeat(1 << 18));
            write("deep.json", format!("{{\"a\":{}", "[".repeat(1 << 20)));
            write("documents.yaml", "--- 1\n".repeat(100_000));
            write("same.yaml", "kind: Service\napiVersion: v1\nmetadata: {name: x}\n---\n".repeat(10_000));
            let odd = std::ffi::OsStr::from_bytes(b"odd\n2026 ERROR injected \x1b[31m.yaml");
            fs::write(folder.join(odd), "kind: [").unwrap();
            later("two", "10.96.7.2");
        })
        .unwrap();
    for (file, part) in [
        ("pipe.yaml", "no regular file"),
        ("zero.yaml", "no regular file"),
        ("loop.yaml", "symbolic links"),
        ("folder.yaml", "no regular file"),
        ("huge.yaml", "larger than 64 MiB"),
        ("binary.yaml:1", "not UTF-8"),
        ("laughs.yaml", "does not parse"),
        ("wide.yaml", "aliases come to more than"),
        ("merge.yaml", "aliases come to more than"),
        ("flow.yaml", "brackets open"),
        ("block.yaml", "does not parse"),
        ("deep.json", "does not parse"),
        ("documents.yaml", "and 99950 more faults of this file"),
        ("same.yaml", "and 9949 more faults of this file"),
        ("odd\\n2026 ERROR injected \\u{1b}[31m.yaml", "does not parse"),
    ] {
        let said = |line: &String| line.contains(file) && line.contains(part);
        cluster.until(&format!("{file}: {part}"), || cluster.ignored().iter().any(said).then_some(()));
    }
    let log = cluster.log();
    let odd = log.lines().find(|line| !line.starts_with("20") || line.contains('\u{1b}'));
    assert_eq!(odd, None);
    cluster.assert_small("a folder of bombs");
}

fn keys(count: usize) -> String {
    (0..count).map(|number| format!("k{number}: 1,")).collect()
}
