//! What a fuzzer calls with any bytes: a function for each parser of what comes from outside. Each returns where the bytes
//! are read, or refused, as they should be, and panics where not. `fuzz/README.md` says how they are run; with every case
//! that was found, and those that are a beginning, an ordinary `cargo test` runs them.

pub mod objects;
pub mod packets;
mod pipeline;
pub mod settings;
pub mod tables;
pub mod text;
pub mod traces;

/// A parser under attack.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of its folder below `fuzz/corpus` and `fuzz/regressions`.
    pub name: &'static str,
    /// What it reads.
    pub reads: &'static str,
    /// Panics where the bytes show a fault.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "manifests", reads: "YAML and JSON documents, to the kernel's rows", run: objects::manifests },
    Target { name: "api_list", reads: "a list of the API server's, to the kernel's rows", run: objects::api_list },
    Target { name: "api_watch", reads: "lines of a watch of the API server's", run: objects::api_watch },
    Target { name: "annotations", reads: "our annotations of a Service, to slots", run: objects::annotations },
    Target { name: "configuration", reads: "KubeProxyConfiguration, to settings and back", run: settings::file },
    Target { name: "command_line", reads: "our flags and kube-proxy's, to settings", run: settings::command_line },
    Target { name: "addresses", reads: "sloppy addresses, CIDRs and sockets", run: text::addresses },
    Target { name: "durations", reads: "Go's durations, to text and back", run: text::durations },
    Target { name: "nft_output", reads: "versions of nft and of kernels", run: text::versions },
    Target { name: "nft_rows", reads: "generated rows, as a netlink batch and back", run: tables::rows },
    Target { name: "nft_answers", reads: "nf_tables' answers over netlink", run: tables::nf_tables },
    Target { name: "nft_taken", reads: "rows that a transaction has taken, over netlink", run: tables::taken },
    Target { name: "trace_events", reads: "nf_tables' traces of packets, to journeys", run: traces::events },
    Target { name: "trace_headers", reads: "headers of packets that are followed", run: traces::headers },
    Target { name: "conntrack", reads: "connection tracking's answers over netlink", run: tables::conntrack },
    Target { name: "conntrack_counts", reads: "what connections carried, to sums", run: tables::counts },
    Target { name: "interfaces", reads: "rtnetlink's answers", run: tables::interfaces },
    Target { name: "leftovers", reads: "what kube-proxy left: xtables, IPVS, ipset", run: tables::leftovers },
    Target { name: "http_answer", reads: "the answer of who has the proxy's port, to tables", run: text::http_answer },
    Target { name: "api_questions", reads: "what our API is asked for", run: text::api_questions },
    #[cfg(feature = "ebpf")]
    Target { name: "filters", reads: "rtnetlink's answers about filters", run: tables::filters },
    #[cfg(feature = "ebpf")]
    Target { name: "live_events", reads: "the BPF programs' events of packets, to journeys", run: traces::live_events },
    #[cfg(feature = "ebpf")]
    Target { name: "sockets", reads: "sock_diag's answers over netlink", run: tables::sockets },
    #[cfg(feature = "ebpf")]
    Target {
        name: "program_log",
        reads: "the BPF programs' lines, and the node's port ranges",
        run: text::program_log,
    },
    Target { name: "packet_read", reads: "packets, and whose they are", run: packets::read },
    Target { name: "packet_rewrite", reads: "packets, rewritten and back, with every checksum", run: packets::rewrite },
    Target { name: "packet_icmp", reads: "ICMP errors, translated, with every checksum", run: packets::icmp },
    Target { name: "packet_reset", reads: "refused TCP packets, with every checksum", run: packets::reset },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::time::{Duration, Instant};

    use super::*;

    fn folder(of: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(of)
    }

    /// The files of a target, which is no folder where nothing was found yet.
    fn files(of: &str, target: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder(of).join(target)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn whatever_was_found_or_is_a_beginning_is_read_as_it_should() {
        for target in TARGETS {
            let beginnings = files("corpus", target.name);
            assert!(!beginnings.is_empty(), "{} has no corpus", target.name);
            for file in beginnings.into_iter().chain(files("regressions", target.name)) {
                let bytes = std::fs::read(&file).unwrap();
                // The file is named before it is run: a crash that is no panic says nothing itself.
                let run = std::panic::catch_unwind(|| (target.run)(&bytes));
                assert!(run.is_ok(), "{} fails with {}", target.name, file.display());
            }
        }
    }

    /// A few bytes changed, left out, doubled, or of another file.
    fn changed(bytes: &[u8], others: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
        const TELLING: [u8; 12] = [0, 1, 4, 6, 17, 0x7f, 0x80, 0xff, b'\n', b' ', b'"', b'-'];
        let mut bytes = bytes.to_vec();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(0..=bytes.len());
            let end = (at + random.usize(0..12)).min(bytes.len());
            match random.u8(0..6) {
                0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
                1 if at < bytes.len() => bytes[at] = TELLING[random.usize(0..TELLING.len())],
                2 => drop(bytes.drain(at..end)),
                3 => {
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                4 => bytes.insert(at, random.u8(..)),
                _ => {
                    let other = &others[random.usize(0..others.len())];
                    let from = random.usize(0..=other.len());
                    let to = (from + random.usize(0..64)).min(other.len());
                    bytes.splice(at..at, other[from..to].iter().copied());
                }
            }
        }
        bytes
    }

    /// Without libFuzzer, and so blind; for a moment, or as many seconds for each target as the variable says.
    #[test]
    fn what_is_changed_a_little_is_read_as_it_should() {
        let seconds = std::env::var("KUBEFERRY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0.2);
        let mut found = Vec::new();
        for target in TARGETS {
            let seed = fastrand::u64(..);
            let mut random = fastrand::Rng::with_seed(seed);
            let all: Vec<Vec<u8>> =
                files("corpus", target.name).iter().map(|file| std::fs::read(file).unwrap()).collect();
            let (began, mut runs) = (Instant::now(), 0);
            while began.elapsed() < Duration::from_secs_f64(seconds) {
                let bytes = changed(&all[random.usize(0..all.len())], &all, &mut random);
                if std::panic::catch_unwind(|| (target.run)(&bytes)).is_err() {
                    found.push(format!("{} fails with {}", target.name, bytes.escape_ascii()));
                    break;
                }
                runs += 1;
            }
            println!("{}: {runs} runs, seed {seed}", target.name);
        }
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    #[test]
    fn every_folder_is_a_targets() {
        let known: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
        assert_eq!(known.len(), TARGETS.len());
        // Without the eBPF datapath there are fewer.
        let known = |name: &str| known.contains(name) || !cfg!(feature = "ebpf");
        for of in ["corpus", "regressions"] {
            for entry in std::fs::read_dir(folder(of)).into_iter().flatten() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!(known(&name), "{of}/{name} is no target's");
            }
        }
    }

    #[test]
    fn every_parser_has_a_program_of_its_own() {
        let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
        let mut functions = BTreeSet::new();
        for Target { name, .. } in TARGETS {
            assert!(
                manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
                "{name} is not in fuzz/Cargo.toml"
            );
            let program = std::fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs"))).unwrap();
            let (_, function) = program.split_once("kubeferry::fuzzing::").unwrap();
            assert!(functions.insert(function.to_owned()), "{name} calls what another one calls");
        }
        let programs = std::fs::read_dir(folder("fuzz_targets")).unwrap().count();
        assert!(programs == TARGETS.len() || !cfg!(feature = "ebpf"), "{programs} programs");
    }

    #[test]
    fn nothing_is_read_as_nothing() {
        TARGETS.iter().for_each(|target| (target.run)(b""));
    }
}
