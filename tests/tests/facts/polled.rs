//! Fifty who ask the proxy of 10,000 Services all the time: they share its answers, so memory stays, and it does its work.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubeferry::status::get;
use kubeferry_tests::client::{Running, until, until_for};
use kubeferry_tests::web::{MANIFESTS, Web};

use super::asking::{json, try_json};

const SERVICES: usize = 10_000;
const POLLERS: usize = 50;
/// What all of them ask for, one after the other.
const PATHS: [&str; 7] = [
    "/metrics",
    "/status",
    "/api/v1/node",
    "/api/v1/services?sort=rate&limit=1000",
    "/api/v1/services/many/svc-77",
    "/api/v1/history",
    "/api/v1/trace?from=10.244.1.7&to=tcp:10.97.0.77:80",
];
/// Those that are made once for all who ask at one time.
const SHARED: [&str; 2] = ["/metrics", "/status"];
/// `/metrics` and `/status` are megabytes each here: a copy for each who asks would be some hundred times that.
const MOST_MIB: u64 = 200;
/// How long a start with so many objects may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The most memory that a process has had, in MiB.
fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// Their manifests.
fn services() -> String {
    let mut many = String::new();
    for number in 0..SERVICES {
        let (high, low) = (number / 256, number % 256);
        let name = format!("svc-{number}");
        write!(
            many,
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: many}}, \
             spec: {{clusterIP: 10.97.{high}.{low}, ports: [{{name: http, port: 80}}]}}}}\n\
             ---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
             metadata: {{name: {name}-1, namespace: many, labels: {{kubernetes.io/service-name: {name}}}}}, \
             ports: [{{name: http, port: 8080}}], endpoints: [{{addresses: [10.245.{high}.{low}]}}]}}\n"
        )
        .unwrap();
    }
    many
}

/// A proxy that has taken all of them in.
fn start(web: &Web, many: &str) -> Running {
    let node = &web.hosts.node;
    web.write(&format!("{MANIFESTS}{many}")).unwrap();
    let mut command = web.source.command("run").unwrap();
    command.args(["--service-metrics", "connections"]);
    let running = Running::start_command(&mut command, node).unwrap();
    let counted = || try_json(node, "/api/v1/node").filter(|facts| facts["counts"]["services"] == SERVICES + 1);
    until_for(PATIENCE, "all Services to be told", counted).unwrap();
    running
}

#[test]
fn fifty_pollers_share_the_answers_and_the_proxy_does_its_work() {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let many = services();
    let running = start(&web, &many);
    // Each answer once: what one costs is not what is asked about.
    for path in PATHS {
        until_for(PATIENCE, path, || node.run(|| ask(path)).unwrap().filter(|code| *code == 200)).unwrap();
    }
    let before = peak_mib(running.id());

    let over = AtomicBool::new(false);
    let codes: BTreeMap<u16, usize> = std::thread::scope(|scope| {
        let poll = |first: usize| {
            let over = &over;
            move || {
                let mut codes = Vec::new();
                node.run(|| {
                    for turn in first.. {
                        if over.load(Ordering::Relaxed) && codes.len() >= PATHS.len() {
                            break;
                        }
                        codes.extend(match PATHS.get(turn % (PATHS.len() + 1)) {
                            Some(path) => ask(path),
                            // And each for something else.
                            None => ask(&format!("/api/v1/services?search={first}+{turn}&limit=1000")),
                        });
                    }
                })
                .unwrap();
                codes
            }
        };
        let pollers: Vec<_> = (0..POLLERS).map(|first| scope.spawn(poll(first))).collect();
        // A change reaches the kernel meanwhile.
        web.write(&format!("{}{many}", MANIFESTS.replace("10.96.0.10", "10.96.0.99"))).unwrap();
        let changed = || {
            let rows = node.nft(&["list", "map", "inet", "kubeferry", "frontends4"], "").ok()?;
            rows.contains("10.96.0.99").then_some(())
        };
        let result = until_for(PATIENCE, "a change to be in the kernel", changed);
        over.store(true, Ordering::Relaxed);
        result.unwrap();
        let mut all = BTreeMap::new();
        for poller in pollers {
            for code in poller.join().unwrap() {
                *all.entry(code).or_default() += 1;
            }
        }
        all
    });
    assert!(codes.keys().all(|code| [200, 503].contains(code)), "{codes:?}");
    assert!(codes[&200] >= POLLERS * PATHS.len() / 2, "{codes:?}");
    let grown = peak_mib(running.id()) - before;
    assert!(grown <= MOST_MIB, "{grown} MiB more for {POLLERS} who ask, {codes:?}");
    until("an answer afterwards", || try_json(node, "/api/v1/services/many/svc-9999")).unwrap();
    assert_eq!(json(node, "/api/v1/node")["healthy"], true);
    assert!(running.stop().unwrap().success());
}

/// The CPU time that a process has taken, in hundredths of a second.
fn cpu(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    [11, 12].iter().map(|field| fields[*field].parse::<u64>().unwrap()).sum()
}

/// By work, not by time: as many rounds are asked by one and by fifty, each round for answers that are not there yet.
#[test]
fn fifty_at_a_time_cost_the_proxy_little_more_than_one() {
    const ROUNDS: usize = 5;
    /// Making an answer takes no more than a twentieth of the time: so long after, one that is asked for is made.
    const BETWEEN: Duration = Duration::from_secs(4);
    /// It would be fifty if each were made for whoever asks.
    const MOST: f64 = 15.0;
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let running = start(&web, &services());
    let took = |pollers: usize| {
        let before = cpu(running.id());
        for _ in 0..ROUNDS {
            std::thread::sleep(BETWEEN);
            std::thread::scope(|scope| {
                let ask = || node.run(|| SHARED.map(ask)).unwrap();
                let answers: Vec<_> = (0..pollers).map(|_| scope.spawn(ask)).collect();
                for answer in answers {
                    let codes = answer.join().unwrap();
                    assert!(codes.iter().all(|code| [Some(200), Some(503)].contains(code)), "{codes:?}");
                }
            });
        }
        (cpu(running.id()) - before) as f64 / 100.0
    };
    // The first of each, and what a start leaves to do.
    took(1);
    let [nobody, one, fifty] = [0, 1, POLLERS].map(took);
    println!("{ROUNDS} rounds took {nobody:.2} s of CPU with nobody, {one:.2} s with one, {fifty:.2} s with {POLLERS}");
    assert!(one > nobody, "one who asks takes nothing: {one} s beside {nobody} s");
    let times = (fifty - nobody) / (one - nobody);
    assert!(
        times < MOST,
        "{POLLERS} take {times:.1} times what one takes: {fifty} s and {one} s, {nobody} s with nobody"
    );
}

/// The code that is answered; `None` where there is no answer in time.
fn ask(path: &str) -> Option<u16> {
    get(&format!("http://127.0.0.1:10249{path}"), Duration::from_secs(60)).ok().map(|response| response.code)
}
