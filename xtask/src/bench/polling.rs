//! What those who watch cost the proxy: its CPU and memory with nobody, with fifty pages open, and with fifty who ask for other
//! things all the time, without a pause. An endpoint changes each second meanwhile.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use super::generate::{Cluster, Size};
use super::metrics;
use super::notices::{Change, Notices};
use super::proxy::Proxy;
use super::report::median;
use crate::datapath::{Backend, Datapath};
use crate::interrupt;
use crate::netns::{Namespace, move_this_thread};
use crate::step;

const ASKERS: usize = 50;
/// Between two looks of a page, as in `proxy/src/health/page/app.js`.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two changes of an endpoint.
const CHANGES: Duration = Duration::from_secs(1);
/// Until when a change has to be in the kernel, and an answer there.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of /proc/PID/stat, the same on every architecture (`USER_HZ`).
const TICKS: f64 = 100.0;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Audience {
    Nobody,
    /// Fifty browsers with the page open: lists in every order, searches, single Services, the history.
    Pages,
    /// Fifty who each search for something else each time.
    Searches,
    /// Fifty who each ask for another Service, or where another packet would go, each time.
    Services,
}

impl Audience {
    const ALL: [Self; 4] = [Self::Nobody, Self::Pages, Self::Searches, Self::Services];

    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "nobody",
            Self::Pages => "50 pages",
            Self::Searches => "50 searching, no pause",
            Self::Services => "50 opening Services, no pause",
        }
    }

    /// What one of them asks for at one time.
    fn paths(self, asker: usize, turn: usize) -> Vec<String> {
        // Another one every time.
        let other = (asker * 7919 + turn * 104_729) % 10_000;
        match self {
            Self::Nobody => Vec::new(),
            Self::Pages => {
                let view = match asker % 5 {
                    0 => "services?limit=200&sort=rate".to_owned(),
                    1 => "services?limit=200&sort=health".to_owned(),
                    2 => format!("services?limit=200&search=svc-{:02}", other / 100),
                    3 => format!("services/bench/svc-{asker:05}"),
                    _ => "history?limit=100".to_owned(),
                };
                vec!["node".to_owned(), view]
            }
            Self::Searches => vec![format!("services?limit=200&search={other}+{turn}")],
            Self::Services if turn.is_multiple_of(2) => vec![format!("services/bench/svc-{other:05}")],
            Self::Services => vec![format!("trace?from=10.244.1.7:{}&to=tcp:10.96.0.10:80", 1024 + other)],
        }
    }

    fn pause(self) -> Duration {
        if self == Self::Pages { PAUSE } else { Duration::ZERO }
    }
}

/// The figures of one audience. Times are in seconds, memory in MiB.
#[derive(Clone, Serialize, Debug)]
pub struct Polling {
    pub backend: Backend,
    pub services: usize,
    pub endpoints: usize,
    pub audience: Audience,
    /// For how long.
    pub seconds: f64,
    /// Of one CPU, what the proxy took.
    pub cpu: f64,
    /// At the end, and at most.
    pub resident: f64,
    pub resident_peak: f64,
    /// Answers by code; 0: none within a minute.
    pub answers: BTreeMap<u16, usize>,
    /// How long each 200 took.
    pub waited: Vec<f64>,
    /// From changed files to the kernel.
    pub change: Vec<f64>,
}

/// Measures all audiences, each for `time`, at one proxy that counts connections.
pub fn measure(
    binary: &Path,
    (node, datapath): (&Namespace, &Datapath),
    home: &Path,
    size: Size,
    time: Duration,
) -> anyhow::Result<Vec<Polling>> {
    let backend = datapath.backend();
    step::note(format!("{size}, {}: writing the manifests", backend.name()));
    let mut cluster = Cluster::create(home, size)?;
    let proxy = Proxy { binary, node, home, datapath, hooks: &["--service-metrics", "connections"] };
    proxy.clear()?;
    let process = proxy.start(&cluster)?;
    let notices = Notices::open(node, datapath)?;
    let mut all = Vec::new();
    for audience in Audience::ALL {
        step::note(format!("{size}, {}: {}", backend.name(), audience.name()));
        // The peak is that of this audience (proc(5)).
        std::fs::write(format!("/proc/{}/clear_refs", process.id()), "5").context("resetting the peak of memory")?;
        let (began, before) = (Instant::now(), cpu(process.id())?);
        let (answers, change) = poll(node, audience, || changes(&mut cluster, &notices, time))?;
        let seconds = began.elapsed().as_secs_f64();
        let codes = answers.iter().fold(BTreeMap::<u16, usize>::new(), |mut codes, (code, _)| {
            *codes.entry(*code).or_default() += 1;
            codes
        });
        all.push(Polling {
            backend,
            services: size.services,
            endpoints: size.endpoints,
            audience,
            seconds,
            cpu: (cpu(process.id())? - before) / seconds,
            resident: metrics::memory(process.id(), "VmRSS")?,
            resident_peak: metrics::memory(process.id(), "VmHWM")?,
            answers: codes,
            waited: answers.iter().filter(|(code, _)| *code == 200).map(|(_, waited)| *waited).collect(),
            change,
        });
    }
    drop(process);
    proxy.clear()?;
    Ok(all)
}

/// One endpoint after the other is changed. How long each took to the kernel.
fn changes(cluster: &mut Cluster, notices: &Notices, time: Duration) -> anyhow::Result<Vec<f64>> {
    let end = Instant::now() + time;
    let mut took = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        let service = took.len() * 7919 % cluster.size().services;
        let endpoint = cluster.change_endpoint(service)?;
        notices.wait_for(&[Change { service: cluster.cluster_ip(service), endpoint }], PATIENCE)?;
        took.push(began.elapsed().as_secs_f64());
        interrupt::check()?;
        std::thread::sleep((began + CHANGES).min(end).saturating_duration_since(Instant::now()));
    }
    Ok(took)
}

/// Has all of an audience ask while `work` works: codes, and how long each took.
fn poll<T>(
    node: &Namespace,
    audience: Audience,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<(u16, f64)>, T)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let askers = if audience == Audience::Nobody { 0 } else { ASKERS };
        let ask = |asker: usize| {
            let over = &over;
            move || -> anyhow::Result<Vec<(u16, f64)>> {
                move_this_thread(node.name())?;
                // Not all at the same moment.
                std::thread::sleep(audience.pause() * asker as u32 / ASKERS as u32);
                let mut answers = Vec::new();
                for turn in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let began = Instant::now();
                    for path in audience.paths(asker, turn) {
                        let began = Instant::now();
                        let code = code(&path).unwrap_or(0);
                        answers.push((code, began.elapsed().as_secs_f64()));
                    }
                    std::thread::sleep((began + audience.pause()).saturating_duration_since(Instant::now()));
                }
                Ok(answers)
            }
        };
        let askers: Vec<_> = (0..askers).map(|asker| scope.spawn(ask(asker))).collect();
        let done = work();
        over.store(true, Ordering::Relaxed);
        let mut answers = Vec::new();
        for asker in askers {
            answers.extend(asker.join().map_err(|_| anyhow::anyhow!("a thread that asks panicked"))??);
        }
        Ok((answers, done?))
    })
}

/// The code of an answer that is read whole.
fn code(path: &str) -> anyhow::Result<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", 10249))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let code = answer.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("no HTTP answer")?;
    Ok(std::str::from_utf8(code)?.parse()?)
}

/// Seconds of CPU that a process has taken: of user and system, in /proc/PID/stat.
fn cpu(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may have spaces: state is the first, utime the 12th, stime the 13th.
    let (_, fields) = stat.rsplit_once(") ").context("no name in /proc/PID/stat")?;
    let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS)
}

/// Prints the table in Markdown.
pub fn print(all: &[Polling]) {
    println!(
        "| services × endpoints | datapath | who asks | CPU, of one | resident | peak | answers/s | refused | median | 99 of 100 | \
         one change |\n| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for one in all {
        let count = |code| one.answers.get(&code).copied().unwrap_or_default();
        let asked: usize = one.answers.values().sum();
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).map_or_else(|_| "–".to_owned(), step::duration);
        let mut sorted = one.waited.clone();
        sorted.sort_by(f64::total_cmp);
        let late = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(f64::NAN);
        println!(
            "| {} × {} | {} | {} | {:.1} % | {:.0} MiB | {:.0} MiB | {:.0} | {} | {} | {} | {} |",
            one.services,
            one.endpoints,
            one.backend.name(),
            one.audience.name(),
            one.cpu * 100.0,
            one.resident,
            one.resident_peak,
            count(200) as f64 / one.seconds,
            asked - count(200),
            time(median(&one.waited)),
            time(late),
            time(median(&one.change)),
        );
    }
    println!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_in_the_time_of_the_cpu() {
        let before = cpu(std::process::id()).unwrap();
        while cpu(std::process::id()).unwrap() - before < 0.05 {
            std::hint::black_box((0..1000).sum::<u64>());
        }
    }

    #[test]
    fn nobody_asks_the_same_twice() {
        for audience in [Audience::Searches, Audience::Services] {
            let all: Vec<String> =
                (0..ASKERS).flat_map(|asker| (0..20).flat_map(move |turn| audience.paths(asker, turn))).collect();
            let distinct: std::collections::BTreeSet<&String> = all.iter().collect();
            assert!(distinct.len() * 100 > all.len() * 95, "{} of {}", distinct.len(), all.len());
        }
        assert_eq!(Audience::Pages.paths(3, 0), Audience::Pages.paths(3, 1), "a page stays with its Service");
    }
}
