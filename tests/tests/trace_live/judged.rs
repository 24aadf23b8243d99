//! What is held to the model, and what is not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use serde_json::{Value, json};

use crate::served::{MANIFESTS, Served};
use crate::{shout, spoil};

/// For longer than packets are not judged after a write.
const UNJUDGED: Duration = Duration::from_millis(2500);

/// A Service `web` that keeps its clients and hashes them otherwise.
fn sticky(endpoints: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: default, annotations: {{kubeferry.dev/scheduler: sh}}}}
spec:
  clusterIP: 10.96.0.10
  sessionAffinity: ClientIP
  ports: [{{name: tcp, port: 80}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-4, namespace: default, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: tcp, port: 8080}}]
endpoints: [{endpoints}]
"
    )
}

/// The endpoints that the model names once there are so many, and were for long enough to be judged by.
fn settled(served: &Served, number: usize) -> Vec<String> {
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    let mut since = None;
    let told = || {
        let told = served.told("tcp:10.96.0.10:80")?;
        let all = names(&told["endpoints"]).len() + names(&told["also"]).len();
        let since = since.get_or_insert_with(Instant::now);
        if all != number {
            *since = Instant::now();
        }
        (all == number && since.elapsed() > UNJUDGED).then(|| names(&told["endpoints"]))
    };
    until("the rows to be those of some time", told).unwrap()
}

pub fn client_that_is_known_keeps_its_endpoint(datapath: Datapath) {
    let served = Served::on(datapath);
    let both = "{addresses: [10.244.1.1], nodeName: worker-1}, {addresses: [10.244.1.2], nodeName: worker-1}";
    served.web.write(&sticky(both)).unwrap();
    let hashed = settled(&served, 2);
    assert_eq!(hashed.len(), 1, "the hash says one: {hashed:?}");
    let (other, ip) = match hashed[0].as_str() {
        "10.244.1.1:8080" => ("10.244.1.2:8080", "10.244.1.2"),
        _ => ("10.244.1.1:8080", "10.244.1.1"),
    };
    served.web.write(&sticky(&format!("{{addresses: [{ip}], nodeName: worker-1}}"))).unwrap();
    until("the other to be alone", || (served.told("tcp:10.96.0.10:80")?["endpoints"] == json!([other])).then_some(()))
        .unwrap();
    served.connect(80);
    served.web.write(&sticky(both)).unwrap();
    settled(&served, 2);
    let follower = served.follow(&["--service", "web"]);
    let (from, to) = served.connect(80);
    let line = follower.line(Some(from), to).unwrap();
    assert_eq!((&line["wentTo"], &line["agrees"]), (&json!(other), &json!(true)), "{line:#}");
    assert_eq!((&line["model"]["endpoints"], &line["model"]["also"]), (&json!(hashed), &json!([other])), "{line:#}");
}

/// The objects, with another endpoint for the other Service.
fn with_other(number: u8) -> String {
    format!(
        "{MANIFESTS}---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: other-4, namespace: default, labels: {{kubernetes.io/service-name: other}}}}
addressType: IPv4
ports: [{{name: tcp, port: 8080}}]
endpoints: [{{addresses: [10.244.9.{number}], nodeName: worker-2}}]
"
    )
}

pub fn changes_of_other_services_silence_nothing(datapath: Datapath) {
    let served = Served::on(datapath);
    served.web.write(&with_other(1)).unwrap();
    settled(&served, 1);
    let mut command = served.trace(&["--service", "web", "--for", "6s"]);
    let over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        let output = scope.spawn(|| {
            let output = served.node().output(&mut command, "");
            over.store(true, Ordering::Release);
            output.unwrap()
        });
        let mut number = 1;
        while !over.load(Ordering::Acquire) {
            number = if number == 1 { 2 } else { 1 };
            served.web.write(&with_other(number)).unwrap();
            spoil(&served);
            drop(Connection::attempt(served.web.client(), served.web.vip()));
            std::thread::sleep(Duration::from_millis(100));
        }
        output.join().unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(shout(&served)), "{text}");
}

pub fn changes_of_the_service_are_counted(datapath: Datapath) {
    let served = Served::on(datapath);
    let mut follower = served.follow(&["--service", "web", "--count", "3"]);
    for number in 1..=3 {
        let before = served.told("tcp:10.96.0.10:80").unwrap()["changed"].clone();
        let more = format!("{{name: more, port: 9{number}}}, {{name: udp, protocol: UDP, port: 80}}");
        served.web.write(&MANIFESTS.replace("{name: udp, protocol: UDP, port: 80}", &more)).unwrap();
        let is_written = || {
            let told = served.told("tcp:10.96.0.10:80")?;
            (told["changed"].is_string() && told["changed"] != before).then_some(())
        };
        until("the rows to be written", is_written).unwrap();
        spoil(&served);
        drop(Connection::attempt(served.web.client(), served.web.vip()));
    }
    let status = until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
    let lines = follower.lines();
    assert!(status.success(), "{lines:#?}");
    let open = lines.iter().filter(|line| line["agrees"].is_null()).count();
    let summary = format!("3 connections followed, 0 not as the model says, {open} not judged");
    assert!(open > 0 && follower.complaints().contains(&summary), "{}\n{lines:#?}", follower.complaints());
}
