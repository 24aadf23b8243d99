//! What rows count, over everything that may become of them. Somebody's rows that have counted stand for connections.

use super::*;
use crate::backend::Left;

/// A Service with two endpoints, on a node that counts connections.
struct Counted {
    state: State,
    desired: Desired,
    scheduler: Scheduler,
    reconciler: Reconciler<Netfilter>,
}

fn counting() -> NodeView {
    NodeView { service_metrics: ServiceMetrics::Connections, ..view(&[]) }
}

/// The Service under this name.
fn named(name: &str, scheduler: Scheduler) -> Event {
    let mut web = service(name, &["10.96.0.1"]);
    web.external_ips = vec!["198.51.100.1".parse().unwrap()];
    web.scheduling = Some(Box::new(Scheduling { scheduler: Some(scheduler), ..Scheduling::default() }));
    Event::Service(web)
}

impl Counted {
    fn new(mut reconciler: Reconciler<Netfilter>, scheduler: Scheduler) -> Self {
        let mut state = State::default();
        state.apply(named("web", scheduler));
        state.apply(Event::Slice(slice("web", Family::V4, &["10.244.0.1", "10.244.1.2"])));
        let desired = Desired::of(&state, counting());
        state.take_changes();
        reconciler.sync(&desired, Touched::default()).unwrap();
        Self { state, desired, scheduler, reconciler }
    }

    fn follow(&mut self, events: impl IntoIterator<Item = Event>) -> crate::backend::Report {
        events.into_iter().for_each(|event| self.state.apply(event));
        let changes = self.state.take_changes();
        let touched = self.desired.update(&self.state, &changes, counting());
        self.reconciler.sync(&self.desired, touched).unwrap()
    }

    fn map(&self) -> &'static str {
        if self.scheduler == Scheduler::Rr { "turns4" } else { "endpoints4" }
    }

    /// A row of 10.244.1.2 that has counted nothing: its key and its value, as nft says them.
    fn row(&self) -> (String, String) {
        let list = run("nft", &["list", "map", "inet", "kubeferry", self.map()], "");
        let rows = list.split_once("elements = {").unwrap().1;
        let of = |row: &&str| row.contains(": 10.244.1.2 . 8080") && row.contains(" counter packets 0 bytes 0 ");
        let row = rows.split([',', '}']).find(of).unwrap_or_else(|| panic!("{list}"));
        let (key, value) = row.trim().split_once(" counter packets 0 bytes 0 : ").unwrap();
        (key.to_owned(), value.trim().to_owned())
    }

    /// Connections of 10.244.1.2.
    fn count(&self, connections: u64) {
        let ((key, value), map) = (self.row(), self.map());
        let change = format!(
            "delete element inet kubeferry {map} {{ {key} }}\n\
             add element inet kubeferry {map} {{ {key} counter packets {connections} bytes 420 : {value} }}"
        );
        run("nft", &["-f", "-"], &change);
    }

    /// The connections of those who are here and have any, and of those who have left.
    fn look(&mut self) -> (Vec<(String, u64)>, u64) {
        let counts = self.reconciler.look(&self.desired).unwrap();
        let http = counts.into_iter().find(|counts| &*counts.port.0.port == "http").unwrap();
        let Left::Ever(left) = http.left else { panic!("{:?}", http.left) };
        let told = http.here.into_iter().map(|count| (count.endpoint.to_string(), count.opened));
        (told.filter(|(_, opened)| *opened > 0).collect(), left.connections)
    }

    /// How many connections 10.244.1.2 has; nobody else has any.
    fn told(&mut self) -> u64 {
        let scheduler = self.scheduler;
        match self.look() {
            (here, 0) if here.is_empty() => 0,
            (here, 0) if here.len() == 1 && here[0].0 == "10.244.1.2:8080" => here[0].1,
            other => panic!("{scheduler}: {other:?}"),
        }
    }

    fn repaired(&mut self) {
        // While others commit, not every glance reads the table.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            if let Some(report) = self.reconciler.check(&self.desired).unwrap() {
                break assert!(report.repaired > 0, "{report:?}");
            }
            assert!(std::time::Instant::now() < deadline, "nothing was repaired in 30 s");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[test]
fn what_a_row_had_counted_is_kept_when_it_goes() {
    // Few rows, whose counts come with their deletion, and more than that is done for.
    for scheduler in [Scheduler::Random, Scheduler::Rr, Scheduler::Mh] {
        with_kernel(|reconciler| {
            let mut counted = Counted::new(reconciler, scheduler);
            counted.count(7);
            assert_eq!(counted.told(), 7, "{scheduler}");
            let report = counted.follow([Event::Slice(slice("web", Family::V4, &[]))]);
            assert!(!report.full && report.by_map[counted.map()].deleted >= 2, "{report:?}");
            for _ in 0..2 {
                assert_eq!(counted.look(), (vec![], 7), "{scheduler}");
            }
        });
    }
}

#[test]
fn what_was_read_of_a_row_is_kept_when_somebody_deletes_it() {
    for scheduler in [Scheduler::Random, Scheduler::Rr] {
        with_kernel(|reconciler| {
            let mut counted = Counted::new(reconciler, scheduler);
            counted.count(7);
            assert_eq!(counted.told(), 7);
            // Nobody looks meanwhile, and more come than had come.
            run("nft", &["delete", "table", "inet", "kubeferry"], "");
            counted.repaired();
            counted.count(9);
            assert_eq!(counted.told(), 16, "{scheduler}");
            run("nft", &["delete", "table", "inet", "kubeferry"], "");
            assert_eq!(counted.told(), 16, "there is none");
            counted.repaired();
            assert_eq!(counted.told(), 16);
            // All of them, so that the next that counts is another.
            run("nft", &["flush", "map", "inet", "kubeferry", counted.map()], "");
            counted.repaired();
            counted.count(10);
            assert_eq!(counted.told(), 26, "{scheduler}");
            // The same table in another: nothing is to be repaired, or all of it.
            let saved = run("nft", &["-s", "list", "table", "inet", "kubeferry"], "");
            run("nft", &["-f", "-"], &format!("delete table inet kubeferry\n{saved}"));
            counted.reconciler.check(&counted.desired).unwrap();
            counted.count(11);
            assert_eq!(counted.told(), 37, "{scheduler}");
            // A rule of ours that somebody changed: the table is replaced.
            run("nft", &["insert", "rule", "inet", "kubeferry", "services4", "accept"], "");
            counted.repaired();
            assert_eq!(counted.told(), 37);
            counted.count(12);
            assert_eq!(counted.told(), 49, "{scheduler}");
        });
    }
}

#[test]
fn another_service_at_the_same_address_begins_at_nothing() {
    for scheduler in [Scheduler::Random, Scheduler::Rr] {
        with_kernel(|reconciler| {
            let mut counted = Counted::new(reconciler, scheduler);
            counted.count(7);
            assert_eq!(counted.told(), 7);
            let ips = ["10.244.0.1", "10.244.1.2"];
            let report = counted.follow([
                Event::ServiceGone(ObjectName::new("default", "web")),
                named("other", scheduler),
                Event::Slice(slice("other", Family::V4, &ips)),
            ]);
            assert!(!report.full && report.repaired == 0, "{report:?}");
            assert_eq!(counted.told(), 0, "{scheduler}");
            counted.count(3);
            assert_eq!(counted.told(), 3);
            assert_eq!(counted.reconciler.check(&counted.desired).unwrap(), None);
            // Of what has not changed hands nothing is written again.
            let report = counted.follow([named("other", scheduler), Event::Slice(slice("other", Family::V4, &ips))]);
            assert_eq!(report.changes, 0, "{report:?}");
            assert_eq!(counted.told(), 3);
        });
    }
}
