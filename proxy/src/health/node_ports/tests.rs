use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::settings::{DatapathSettings, NodePortAddresses};
use crate::state::convert;
use crate::state::event::Event;
use crate::status::{self, Response};

/// A free port of the loopback.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A node whose node ports answer at 127.0.0.2 and ::1, as far as health checks are concerned.
fn node() -> NodeView {
    let mut view = NodeView::new(
        "here".into(),
        &DatapathSettings { node_port_addresses: NodePortAddresses::Cidrs(Vec::new()), ..Default::default() },
        None,
        &BTreeSet::new(),
    );
    let only = |ip: &str| NodePorts::Only([ip.parse().unwrap()].into());
    view.node_ports = [only("127.0.0.2"), only("::1")];
    view
}

struct Fixture {
    ports: HealthCheckPorts,
    state: state::State,
    metrics: Arc<Metrics>,
    health: Health,
}

impl Fixture {
    fn new(timeout: Duration) -> Self {
        let metrics = Arc::new(Metrics::new());
        let health = Health::new(timeout, false);
        let events = Events::to_log(metrics.clone());
        let ports = HealthCheckPorts::new(health.clone(), events, metrics.clone(), Family::BOTH.to_vec());
        Self { ports, state: state::State::default(), metrics, health }
    }

    fn service(&mut self, name: &str, port: u16, local: &[&str]) {
        self.service_of(name, "2026-01-01T00:00:00Z", port, local);
    }

    fn service_of(&mut self, name: &str, created: &str, port: u16, local: &[&str]) {
        let metadata = json!({"name": name, "namespace": "default", "creationTimestamp": created});
        let service = json!({"metadata": metadata, "spec": {"type": "LoadBalancer",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": port, "clusterIP": "10.96.0.1",
            "ports": [{"port": 80}]}});
        let service = convert::service(&serde_json::from_value(service).unwrap()).object.unwrap();
        self.state.apply(Event::Service(service));
        let endpoints: Vec<_> = local.iter().map(|ip| json!({"addresses": [ip], "nodeName": "here"})).collect();
        let slice = json!({"metadata": {"name": format!("{name}-1"), "namespace": "default",
            "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "", "port": 8080}], "endpoints": endpoints});
        let slice = convert::endpoint_slice(&serde_json::from_value(slice).unwrap()).object.unwrap();
        self.state.apply(Event::Slice(slice));
    }

    async fn sync(&mut self) {
        let changes = self.state.take_changes();
        self.ports.synced(&self.state, &node(), &changes.services).await;
    }
}

async fn ask_at(port: u16) -> Option<Response> {
    let url = format!("http://127.0.0.2:{port}/any/path");
    tokio::task::spawn_blocking(move || status::get(&url, Duration::from_secs(20))).await.unwrap().ok()
}

#[test]
fn the_body_is_kube_proxys_and_json() {
    let text = body(&ObjectName::new("ns", "web"), 3, false);
    assert_eq!(
        text,
        "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 3,\n\t\
         \"serviceProxyHealthy\": false\n}"
    );
    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        read,
        json!({"service": {"namespace": "ns", "name": "web"}, "localEndpoints": 3, "serviceProxyHealthy": false})
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_follow_the_services_and_count_what_is_here() {
    let (mut fixture, first, second) = (Fixture::new(Duration::from_secs(60)), free_port(), free_port());
    fixture.service("web", first, &["10.244.1.1", "10.244.1.2"]);
    assert!(ask_at(first).await.is_none(), "nothing is open before a sync");
    fixture.sync().await;
    let answer = ask_at(first).await.unwrap();
    assert_eq!((answer.code, answer.body), (200, body(&ObjectName::new("default", "web"), 2, true)));
    let has = |line: &str| answer.headers.iter().any(|header| header.eq_ignore_ascii_case(line));
    assert!(has("content-type: application/json") && has("x-content-type-options: nosniff"), "{:?}", answer.headers);
    assert!(has("x-load-balancing-endpoint-weight: 2"), "{:?}", answer.headers);
    fixture.service("web", second, &[]);
    fixture.sync().await;
    assert!(ask_at(first).await.is_none(), "another port closes the first");
    assert_eq!(ask_at(second).await.unwrap().code, 503, "no endpoint is here");
    fixture.service("web", 0, &[]);
    fixture.sync().await;
    assert!(ask_at(second).await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_goes_from_one_service_to_another_in_one_sync() {
    let (mut fixture, port) = (Fixture::new(Duration::from_secs(60)), free_port());
    fixture.service("old", port, &["10.244.1.1"]);
    fixture.sync().await;
    // A connection that stays open holds up nothing.
    let _idle = std::net::TcpStream::connect(("127.0.0.2", port)).unwrap();
    fixture.service("old", 0, &["10.244.1.1"]);
    fixture.service("a", port, &["10.244.1.1"]);
    fixture.sync().await;
    assert_eq!(ask_at(port).await.unwrap().body, body(&ObjectName::new("default", "a"), 1, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_port_is_tried_again_and_counted() {
    let mut fixture = Fixture::new(Duration::from_secs(60));
    let busy = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    fixture.service("web", port, &["10.244.1.1"]);
    fixture.sync().await;
    fixture.ports.retry(&node()).await;
    let text = fixture.metrics.text(crate::metrics::Format::Prometheus);
    assert!(text.contains("kubeferry_health_check_node_port_failures_total{ip_family=\"IPv4\"} 2"), "{text}");
    drop(busy);
    let deadline = Instant::now() + Duration::from_secs(20);
    while ask_at(port).await.is_none_or(|answer| answer.code != 200) {
        assert!(Instant::now() < deadline, "waited for the port after it was free");
        fixture.ports.retry(&node()).await;
    }
    let text = fixture.metrics.text(crate::metrics::Format::Prometheus);
    assert!(text.contains("kubeferry_health_check_node_ports{ip_family=\"IPv4\"} 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_node_ports_answer_nowhere_none_counts_as_open() {
    let mut fixture = Fixture::new(Duration::from_secs(60));
    fixture.service("web", free_port(), &["10.244.1.1"]);
    fixture.sync().await;
    let counted = |fixture: &Fixture| {
        let text = fixture.metrics.text(crate::metrics::Format::Prometheus);
        [0, 1].map(|open| text.contains(&format!("kubeferry_health_check_node_ports{{ip_family=\"IPv4\"}} {open}\n")))
    };
    assert_eq!(counted(&fixture), [false, true]);
    let mut nowhere = node();
    nowhere.node_ports = [NodePorts::Only(BTreeSet::new()), NodePorts::Only(BTreeSet::new())];
    fixture.ports.synced(&fixture.state, &nowhere, &BTreeSet::new()).await;
    assert_eq!(counted(&fixture), [true, false]);
}

#[test]
fn files_are_left_for_other_work() {
    for (files, room) in [(64, 4), (160, 10), (256, 32), (1024, 224), (1 << 20, 262_112)] {
        assert_eq!(room_of(files), room, "{files}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_is_no_room_for_all_the_older_services_have_it() {
    let mut fixture = Fixture::new(Duration::from_secs(60));
    fixture.ports.room = 2;
    let ports: Vec<_> = (0..3).map(|_| free_port()).collect();
    let failures = |fixture: &Fixture, many: u32| {
        let text = fixture.metrics.text(crate::metrics::Format::Prometheus);
        let line = format!("kubeferry_health_check_node_port_failures_total{{ip_family=\"IPv4\"}} {many}\n");
        assert!(text.contains(&line), "{text}");
    };
    fixture.service_of("a", "2026-01-03T00:00:00Z", ports[0], &["10.244.1.1"]);
    fixture.service_of("b", "2026-01-02T00:00:00Z", ports[1], &["10.244.1.1"]);
    fixture.sync().await;
    assert!(ask_at(ports[0]).await.is_some() && ask_at(ports[1]).await.is_some());
    fixture.service_of("c", "2026-01-01T00:00:00Z", ports[2], &["10.244.1.1"]);
    for _ in 0..2 {
        fixture.sync().await;
        fixture.ports.retry(&node()).await;
        assert!(ask_at(ports[0]).await.is_none(), "the newest gives way");
        assert!(ask_at(ports[1]).await.is_some() && ask_at(ports[2]).await.is_some());
        failures(&fixture, 1);
        // Something changes all the same.
        fixture.service_of("c", "2026-01-01T00:00:00Z", ports[2], &["10.244.1.1", "10.244.1.2"]);
    }
    fixture.service("b", 0, &[]);
    fixture.sync().await;
    assert!(ask_at(ports[0]).await.is_some(), "there is room again");
    failures(&fixture, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhealthy_proxy_is_said_to_be() {
    let (mut fixture, port) = (Fixture::new(Duration::ZERO), free_port());
    fixture.service("web", port, &["10.244.1.1"]);
    fixture.health.updated(&Family::BOTH);
    fixture.sync().await;
    assert_eq!(ask_at(port).await.unwrap().code, 200);
    fixture.health.queued(&[Family::V6]);
    let answer = ask_at(port).await.unwrap();
    assert_eq!((answer.code, answer.body), (503, body(&ObjectName::new("default", "web"), 1, false)));
}

#[tokio::test]
async fn wildcards_of_both_families_go_together() {
    let port = free_port();
    let _v4 = bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)).unwrap();
    let _v6 = bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)).unwrap();
}
