//! Section 3, one pod gets everything: each cause that the page names, and what `kubeferry top` says then.

use std::thread;
use std::time::Duration;

use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::MANIFESTS;

use super::page::{commands, section, shows};
use super::served::{PATIENCE, Served};

const ENDPOINTS: [&str; 2] = ["10.244.1.1:8080", "10.244.1.2:8080"];
const BOTH: &str = "{addresses: [10.244.1.1], nodeName: worker-1}, {addresses: [10.244.1.2], nodeName: worker-1}";
const FIRST: &str = "{addresses: [10.244.1.1], nodeName: worker-1}";

/// The Service with annotations, lines in its `spec`, and these endpoints.
fn web(annotations: &str, spec: &str, endpoints: &str) -> String {
    let text = MANIFESTS
        .replace(
            "{name: web, namespace: default}",
            &format!("{{name: web, namespace: default, annotations: {{{annotations}}}}}"),
        )
        .replace("  clusterIP: 10.96.0.10\n", &format!("  clusterIP: 10.96.0.10\n{spec}"))
        .replace(BOTH, endpoints);
    assert!(text.contains(annotations) && text.contains(endpoints));
    text
}

fn start(datapath: Datapath, manifests: &str) -> Served {
    Served::start(datapath, manifests, &["--service-metrics", "full"])
}

/// What `top` says of an endpoint of the first port.
#[derive(Clone, Copy, Debug)]
struct Told {
    lately: f64,
    overall: f64,
    promised: f64,
    active: u64,
}

/// Has the page's command run, with a shorter interval, while connections keep coming; again where nobody had time to count meanwhile.
fn top(served: &Served) -> (String, [Told; 2]) {
    let section = section(3);
    let command = &commands(&section, "kubeferry top ")[0];
    assert!(command.contains("--interval 30s"), "{command}");
    let command = command.replace("--interval 30s", "--interval 4s");
    served.until_counted();
    let text = thread::scope(|scope| {
        let counted = || Some(served.enter(&command)).filter(|text| rows(text).iter().all(|cells| cells[4] != "-"));
        let top = scope.spawn(move || until_for(PATIENCE, "connections to be counted", counted).unwrap());
        while !top.is_finished() {
            drop(served.open(2));
            thread::sleep(Duration::from_millis(50));
        }
        top.join().unwrap()
    });
    shows(&section, "LATELY", &text);
    let told = rows(&text).map(|cells| {
        let share = |at: usize| cells[at].strip_suffix('%').and_then(|share| share.parse().ok()).unwrap_or(f64::NAN);
        Told { lately: share(4), overall: share(5), promised: share(6), active: cells[8].parse().unwrap() }
    });
    (text, told)
}

/// The cells of each endpoint of the first port.
fn rows(text: &str) -> [Vec<&str>; 2] {
    let first = text.split("\n\n").find(|part| part.starts_with("tcp ")).unwrap_or_else(|| panic!("{text}"));
    ENDPOINTS.map(|endpoint| {
        let line = first.lines().find(|line| line.starts_with(endpoint));
        line.unwrap_or_else(|| panic!("{endpoint}: {text}")).split_whitespace().collect()
    })
}

fn about(told: f64, expected: f64) -> bool {
    (told - expected).abs() <= 12.0
}

fn who_came_later_has_a_small_overall_and_its_share_lately(datapath: Datapath) {
    let served = start(datapath, &web("kubeferry.dev/scheduler: rr", "", FIRST));
    drop(served.open(1_000));
    served.change(&web("kubeferry.dev/scheduler: rr", "", BOTH));
    let (text, [first, second]) = top(&served);
    assert!([first, second].iter().all(|told| about(told.lately, 50.0) && told.promised == 50.0), "{text}");
    assert!(first.overall > 70.0 && second.overall < 30.0, "{text}");
}

fn weights_slow_start_and_hints_are_in_the_promise(datapath: Datapath) {
    let mut served =
        start(datapath, &web("kubeferry.dev/scheduler: wrr, kubeferry.dev/weights: 10.244.1.1=3", "", BOTH));
    let (text, [first, second]) = top(&served);
    assert_eq!([first.promised, second.promised], [75.0, 25.0], "{text}");
    assert!(about(first.lately, 75.0) && about(second.lately, 25.0), "{text}");

    // It begins as the second comes, and takes longer than anybody looks here.
    served.change(&web("kubeferry.dev/scheduler: wrr, kubeferry.dev/slow-start: 1h", "", FIRST));
    served.change(&web("kubeferry.dev/scheduler: wrr, kubeferry.dev/slow-start: 1h", "", BOTH));
    let (text, [first, second]) = top(&served);
    assert!(first.promised > 75.0 && second.promised < 25.0, "{text}");
    assert!(first.lately > 75.0 && second.lately < 25.0, "{text}");

    served.web.node.zone = Some("here".into());
    let in_zone = |ip: &str, zone: &str| {
        format!("{{addresses: [{ip}], nodeName: worker-1, zone: {zone}, hints: {{forZones: [{{name: {zone}}}]}}}}")
    };
    let hinted = format!("{}, {}", in_zone("10.244.1.1", "here"), in_zone("10.244.1.2", "there"));
    served.change(&web("kubeferry.dev/scheduler: rr", "  trafficDistribution: PreferClose\n", &hinted));
    let (text, [first, second]) = top(&served);
    assert_eq!([first.promised, second.promised], [100.0, 0.0], "{text}");
    assert_eq!([first.lately, second.lately], [100.0, 0.0], "{text}");
}

fn one_client_is_kept_by_affinity_and_hashes_but_for_its_ports(datapath: Datapath) {
    let served = start(datapath, &web("", "  sessionAffinity: ClientIP\n", BOTH));
    let one_gets_all = |text: &str, told: [Told; 2], promised: f64| {
        let mut lately = told.map(|told| told.lately);
        lately.sort_by(f64::total_cmp);
        assert_eq!((lately, told.map(|told| told.promised)), ([0.0, 100.0], [promised, 100.0 - promised]), "{text}");
    };
    let (text, told) = top(&served);
    one_gets_all(&text, told, 50.0);
    for scheduler in ["sh", "mh"] {
        served.change(&web(&format!("kubeferry.dev/scheduler: {scheduler}"), "", BOTH));
        let (text, told) = top(&served);
        one_gets_all(&text, told, told[0].promised);
        assert!(about(told[0].promised, 50.0), "{text}");
        let keyed = format!("kubeferry.dev/scheduler: {scheduler}, kubeferry.dev/hash-key: source-address-and-port");
        assert!(section(3).contains("kubeferry.dev/hash-key: source-address-and-port"));
        served.change(&web(&keyed, "", BOTH));
        let (text, told) = top(&served);
        assert!(told.iter().all(|told| told.lately > 10.0), "{scheduler}: {text}");
    }
}

on_both_datapaths! {
    who_came_later_has_a_small_overall_and_its_share_lately,
    weights_slow_start_and_hints_are_in_the_promise,
    one_client_is_kept_by_affinity_and_hashes_but_for_its_ports,
}

/// Connections that live long: who has none of them gets the new ones.
#[test]
fn least_connections_looks_at_what_is_active() {
    let served = start(Datapath::ebpf().unwrap(), &web("kubeferry.dev/scheduler: lc", "", BOTH));
    let open = || {
        let mut connection = Connection::open(served.web.client(), served.web.vip()).unwrap();
        (connection.ask().unwrap().0, connection)
    };
    let all: Vec<(String, Connection)> = (0..40).map(|_| open()).collect();
    let kept: Vec<_> = all.into_iter().filter(|(name, _)| name == "web1").collect();
    assert!(kept.len() >= 15, "{}", kept.len());
    let (text, [first, second]) = top(&served);
    assert_eq!((first.active, [first.promised, second.promised]), (kept.len() as u64, [50.0, 50.0]), "{text}");
    assert!(second.lately > 80.0, "{text}");
}
