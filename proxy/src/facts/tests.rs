use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::args::{CommonArgs, ServeArgs};
use crate::backend::{Backend, Counts, EndpointCount, Left, Report, RowChanges};
use crate::conntrack::{Cleaned, UdpService};
use crate::desired::target::{Frontend, Target};
use crate::desired::{Desired, Touched};
use crate::events::Events;
use crate::metrics::Metrics;
use crate::observe::Observer;
use crate::proxy::Proxy;
use crate::settings::Settings;
use crate::state::convert;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};
use crate::traffic::Counting;
use crate::watch::WatchStats;

mod faults;

/// A datapath that gave each endpoint as many connections as its address says.
#[derive(Default)]
struct Counted {
    rows: BTreeMap<&'static str, usize>,
    left_out: BTreeMap<Frontend, String>,
}

impl Backend for Counted {
    type Error = std::convert::Infallible;

    fn name(&self) -> &'static str {
        "counted"
    }

    fn sync(&mut self, _: &Desired, _: Touched) -> Result<Report, Self::Error> {
        let by_map = [("frontends4", RowChanges { added: 2, deleted: 1 })].into();
        Ok(Report { changes: 3, by_map, ..Report::default() })
    }

    fn check(&mut self, _: &Desired) -> Result<Option<Report>, Self::Error> {
        Ok(None)
    }

    fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.rows
    }

    fn refused(&self) -> Vec<Ignored> {
        Vec::new()
    }

    fn left_out(&self) -> BTreeMap<Frontend, String> {
        self.left_out.clone()
    }

    fn clean_udp(&mut self, _: &[UdpService]) -> Result<Cleaned, Self::Error> {
        Ok(Cleaned::default())
    }

    fn counting(&self, _: &Desired) -> Counting {
        Counting { connections: true, active: true, ..Counting::default() }
    }

    fn look(&mut self, desired: &Desired) -> Result<Vec<Counts>, Self::Error> {
        let count = |endpoint: &std::net::SocketAddr| {
            let std::net::IpAddr::V4(ip) = endpoint.ip() else { unreachable!("only IPv4 here") };
            let opened = u64::from(ip.octets()[3]);
            EndpointCount { endpoint: *endpoint, opened, active: 1, packets: 0, bytes: 0 }
        };
        let of = |target: &Target| Counts {
            port: (target.name.clone(), target.family),
            here: target.endpoints.serving.iter().map(count).collect(),
            left: Left::Since(Vec::new()),
        };
        Ok(desired.targets().map(|(_, target, _)| of(target)).collect())
    }
}

struct Node {
    proxy: Proxy<Counted>,
    observer: Observer,
    settings: Settings,
}

impl Node {
    /// With these objects.
    fn with(objects: &[Value]) -> Self {
        let settings = Settings::checked(&CommonArgs::default(), &ServeArgs::default(), None, "n1").unwrap().0;
        let metrics = Arc::new(Metrics::new());
        let events = Events::to_log(metrics.clone());
        let observer = Observer::new(&settings, Arc::new(WatchStats::default()), metrics, events, Arc::default());
        let proxy = Proxy::new(settings.clone(), Counted::default(), BTreeSet::new());
        let mut node = Self { proxy, observer, settings };
        objects.iter().for_each(|object| node.apply(object));
        node.sync();
        node
    }

    fn apply(&mut self, object: &Value) {
        if object["addressType"].is_null() {
            let converted = convert::service(&serde_json::from_value(object.clone()).unwrap());
            let service = converted.object.unwrap();
            let (kind, name, faults) = (Kind::Service, service.name.clone(), converted.faults);
            self.proxy.apply(Event::Service(service));
            self.proxy.apply(Event::Ignored { kind, name, faults });
        } else {
            let slice = convert::endpoint_slice(&serde_json::from_value(object.clone()).unwrap());
            self.proxy.apply(Event::Slice(slice.object.unwrap()));
        }
    }

    fn sync(&mut self) {
        self.observer.took_in(&self.proxy, true);
        let synced = self.proxy.sync().unwrap();
        self.observer.synced(&self.proxy, &synced);
    }

    fn snapshot(&mut self) -> Snapshot {
        self.observer.snapshot(&mut self.proxy, &self.settings)
    }
}

fn service(number: u8, spec: Value) -> Value {
    let mut all = json!({"clusterIP": format!("10.96.0.{number}"), "ports": [{"name": "http", "port": 80}]});
    all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"metadata": {"name": format!("web-{number}"), "namespace": "default"}, "spec": all})
}

/// Endpoints 10.244.1.LAST of a Service, with their conditions.
fn slice(number: u8, endpoints: &[(u8, Value)]) -> Value {
    let endpoint = |(last, conditions): &(u8, Value)| json!({"addresses": [format!("10.244.1.{last}")], "conditions": conditions, "nodeName": if last % 2 == 0 { "n1" } else { "n2" }});
    json!({"metadata": {"name": format!("web-{number}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": format!("web-{number}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>()})
}

/// Nine Services: web-N has one endpoint that got N connections.
fn nine() -> Node {
    let services = (1..=9).flat_map(|number| [service(number, json!({})), slice(number, &[(number, json!({}))])]);
    Node::with(&services.collect::<Vec<_>>())
}

fn names(page: &ServicePage) -> Vec<&str> {
    page.items.iter().map(|row| row.name.as_str()).collect()
}

#[test]
fn pages_go_through_all_services_once_in_every_order() {
    let snapshot = nine().snapshot();
    for sort in Order::ALL {
        let (mut all, mut query) = (Vec::new(), ServicesQuery { sort, limit: Some(4), ..ServicesQuery::default() });
        loop {
            let page = ServicePage::of(&snapshot, &query).unwrap();
            assert_eq!((page.total, page.found, page.skipped), (9, 9, all.len()));
            all.extend(page.items.iter().map(|row| row.name.clone()));
            query.continue_at = page.continue_at;
            if query.continue_at.is_none() {
                break;
            }
        }
        let mut expected: Vec<String> = (1..=9).map(|number| format!("web-{number}")).collect();
        if sort == Order::Connections {
            expected.reverse();
        }
        assert_eq!(all, expected, "{sort:?}");
    }
}

#[test]
fn every_word_of_a_search_has_to_be_found() {
    let snapshot = nine().snapshot();
    let find = |search: &str| {
        let query = ServicesQuery { search: search.into(), ..ServicesQuery::default() };
        let page = ServicePage::of(&snapshot, &query).unwrap();
        names(&page).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(find("WEB-3"), ["web-3"]);
    assert_eq!(find("10.96.0.7"), ["web-7"]);
    assert_eq!(find("default random http 80").len(), 9);
    assert_eq!(find("default rr").len(), 0);
    assert_eq!(find("ok clusterip").len(), 9);
}

#[test]
fn what_is_no_page_is_refused() {
    let snapshot = nine().snapshot();
    let ask = |limit, continue_at: Option<&str>| {
        let continue_at = continue_at.map(str::to_owned);
        ServicePage::of(&snapshot, &ServicesQuery { limit, continue_at, ..ServicesQuery::default() }).map(drop)
    };
    assert_eq!(ask(Some(0), None), Err(Refusal::Limit));
    assert_eq!(ask(Some(1_001), None), Err(Refusal::Limit));
    assert_eq!(ask(None, Some("web-3")), Err(Refusal::Continue));
    assert_eq!(ask(Some(1_000), Some("0~default/web-3")), Ok(()));
}

#[test]
fn a_service_is_told_whole() {
    let ready = |ready: bool| json!({"ready": ready});
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let mut web =
        service(1, json!({"internalTrafficPolicy": "Local", "sessionAffinity": "ClientIP", "type": "NodePort"}));
    web["spec"]["ports"][0]["nodePort"] = json!(30080);
    web["metadata"]["annotations"] = json!({"kubeferry.dev/scheduler": "wrr", "kubeferry.dev/weights": "10.244.1.2=3"});
    let endpoints =
        slice(1, &[(1, ready(true)), (2, ready(true)), (3, leaving), (4, json!({"ready": false, "serving": false}))]);
    let mut node = Node::with(&[web, endpoints]);
    let name = ObjectName::new("default", "web-1");
    let facts = node.observer.service(&mut node.proxy, &name).unwrap();
    assert_eq!((facts.kind.as_str(), facts.health.state), ("NodePort", HealthState::Degraded), "{facts:?}");
    assert_eq!((facts.policies.internal.as_str(), facts.policies.affinity_seconds), ("Local", Some(10_800)));
    let [port] = facts.ports.as_slice() else { panic!("{facts:?}") };
    assert_eq!((port.scheduler.as_str(), port.family.as_str(), port.protocol.as_str()), ("wrr", "IPv4", "tcp"));
    assert_eq!(port.counts, EndpointCounts { ready: 2, serving: 3, terminating: 1, unusable: 1, local: 1 });
    let frontends: Vec<_> = port.frontends.iter().map(|one| (one.address.as_str(), one.role, one.state)).collect();
    assert_eq!(
        frontends,
        [
            ("10.96.0.1:80", FrontendRole::ClusterIp, FrontendState::Served),
            ("*:30080", FrontendRole::NodePort, FrontendState::Served)
        ]
    );
    let told: Vec<_> = port
        .endpoints
        .iter()
        .map(|one| (one.address.as_str(), one.weight, one.promised_share, one.promised_share_local, one.connections))
        .collect();
    assert_eq!(
        told,
        [
            ("10.244.1.1:8080", 1, Some(0.25), Some(0.0), Some(1)),
            ("10.244.1.2:8080", 3, Some(0.75), Some(1.0), Some(2)),
            ("10.244.1.3:8080", 1, Some(0.0), Some(0.0), Some(3)),
            ("10.244.1.4:8080", 1, Some(0.0), Some(0.0), Some(0)),
        ]
    );
    assert_eq!((port.connections, port.active, port.packets), (Some(6), Some(3), None));
    assert_eq!(port.endpoints[1].share, Some(2.0 / 6.0));
    assert_eq!(node.observer.service(&mut node.proxy, &ObjectName::new("default", "other")), None);
}

#[test]
fn contested_and_empty_services_are_told_apart() {
    let mut taken = service(2, json!({"externalIPs": ["192.0.2.7"]}));
    taken["metadata"]["creationTimestamp"] = json!("2026-01-02T00:00:00Z");
    let mut first = service(1, json!({"externalIPs": ["192.0.2.7"]}));
    first["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    let mut node = Node::with(&[first, taken, slice(2, &[(2, json!({}))])]);
    let snapshot = node.snapshot();
    let states: Vec<_> = snapshot.services.iter().map(|service| service.health.state).collect();
    assert_eq!(states, [HealthState::Down, HealthState::Degraded]);
    assert_eq!((snapshot.node.counts.down, snapshot.node.counts.degraded, snapshot.node.counts.ignored), (1, 1, 1));
    let [fault] = snapshot.ignored.items.as_slice() else { panic!("{:?}", snapshot.ignored) };
    assert_eq!((fault.name.as_str(), fault.reason.as_str()), ("web-2", "FrontendContested"));
    assert!(fault.why.contains("default/web-1") && fault.fix.contains("another address"), "{fault:?}");
    let facts = node.observer.service(&mut node.proxy, &ObjectName::new("default", "web-2")).unwrap();
    let contested = &facts.ports[0].frontends[1];
    assert_eq!((contested.state, contested.held_by.as_deref()), (FrontendState::Contested, Some("default/web-1:http")));
    assert_eq!(facts.ignored, snapshot.ignored.items);
}

#[test]
fn the_last_syncs_are_remembered_and_no_more() {
    let mut node = Node::with(&[service(1, json!({}))]);
    let names: Vec<Value> = (1..=40).map(|number| service(number, json!({}))).collect();
    names.iter().for_each(|service| node.apply(service));
    node.sync();
    let snapshot = node.snapshot();
    let page = HistoryPage::of(&snapshot, 1, 10);
    let [sync] = page.items.as_slice() else { panic!("{page:?}") };
    assert_eq!((page.newest, sync.number, sync.objects.len(), sync.objects_total), (2, 2, 20, 39));
    assert_eq!(sync.rows["frontends4"], RowChanges { added: 2, deleted: 1 });
    assert!(sync.change_to_kernel_seconds.is_some_and(|seconds| seconds >= 0.0) && sync.lag_seconds.is_none());
    assert_eq!(snapshot.node.sync.took.samples, 2);
    (0..300).for_each(|_| node.sync());
    let page = HistoryPage::of(&node.snapshot(), 0, usize::MAX);
    assert_eq!((page.items.len(), page.newest), (history::CAPACITY, 302));
}

#[test]
fn a_failure_that_goes_on_is_one_entry() {
    let mut history = History::default();
    for seconds in 0..5 {
        let at = Timestamp::from_second(seconds).unwrap();
        history.failed("no memory".to_owned(), Duration::from_millis(3), at);
    }
    history.failed("other".to_owned(), Duration::from_millis(3), Timestamp::from_second(9).unwrap());
    let all = history.all();
    let told: Vec<_> = all.iter().map(|sync| (sync.failed_times, sync.at.as_second(), sync.number)).collect();
    assert_eq!(told, [(5, 4, 1), (1, 9, 2)]);
    assert_eq!(history.latencies().0.samples, 0, "failures say nothing of how long a sync takes");
}

#[test]
fn strange_names_are_only_text() {
    let mut web = service(1, json!({}));
    web["metadata"]["name"] = json!("</script><b>\"\\\u{7f}\u{1f600}");
    let snapshot = Node::with(&[web]).snapshot();
    let page = ServicePage::of(&snapshot, &ServicesQuery::default()).unwrap();
    let text = serde_json::to_string(&page).unwrap();
    assert_eq!(serde_json::from_str::<ServicePage>(&text).unwrap(), page);
    // A control character is written out where the object is read; the rest is the name.
    assert_eq!(page.items[0].name, "</script><b>\"\\\\u{7f}\u{1f600}");
}

#[tokio::test(start_paused = true)]
async fn fifty_who_ask_together_share_one_snapshot() {
    let (facts, mut asks, generation) = channel();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            if let Ask::Snapshot(reply) = ask {
                counted.fetch_add(1, Ordering::SeqCst);
                let _ = reply.send(Arc::new(Snapshot::new(NodeFacts::default())));
            }
        }
    });
    let all = || async {
        let asked = (0..50).map(|_| facts.snapshot());
        assert!(futures::future::join_all(asked).await.iter().all(Option::is_some));
        taken.load(Ordering::SeqCst)
    };
    assert_eq!(all().await, 1);
    assert_eq!(all().await, 1, "nothing has changed");
    generation.fetch_add(1, Ordering::SeqCst);
    assert_eq!(all().await, 2, "something has");
}

#[tokio::test(start_paused = true)]
async fn a_busy_loop_is_asked_in_vain_and_the_last_snapshot_told() {
    let (facts, mut asks, generation) = channel();
    let loops = tokio::spawn(async move {
        let Some(Ask::Snapshot(reply)) = asks.recv().await else { panic!("no question") };
        let _ = reply.send(Arc::new(Snapshot::new(NodeFacts { node: "n1".into(), ..NodeFacts::default() })));
        // Keeps what is asked, and never answers.
        (asks.recv().await, asks)
    });
    assert!(facts.snapshot().await.is_some());
    generation.fetch_add(1, Ordering::SeqCst);
    assert_eq!(facts.snapshot().await.map(|last| last.node.node.clone()).as_deref(), Some("n1"));
    assert!(facts.service(ObjectName::new("a", "b")).await.is_none());
    drop(loops.await.unwrap());
    let (facts, asks, _) = channel();
    drop(asks);
    assert!(facts.snapshot().await.is_none(), "the loop has ended");
}
