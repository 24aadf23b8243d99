//! Maps that are too small for everybody: the older Service has room before the younger, whatever changes when, and what was left
//! out comes back as soon as there is room.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fmt::Write as _;
use std::time::Duration;

use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{Connection, Running, until};
use kubeferry_tests::web::{MANIFESTS, Web};
use serde_json::Value;

/// The Service of [`MANIFESTS`], which is the oldest, with its endpoints up to this one.
fn web(endpoints: usize) -> String {
    let old = MANIFESTS.replace(
        "metadata: {name: web, namespace: default}",
        "metadata: {name: web, namespace: default, creationTimestamp: \"2020-01-01T00:00:00Z\"}",
    );
    let all = ", {addresses: [10.244.1.2], nodeName: worker-1}]";
    assert!(old.contains("2020") && old.contains(all));
    if endpoints == 1 { old.replace(all, "]") } else { old }
}

/// A Service of this year with so many endpoints, that is so many slots.
fn hog(number: usize, endpoints: usize) -> String {
    let mut list = String::new();
    (0..endpoints).for_each(|last| write!(list, "{{addresses: [10.245.{number}.{}]}}, ", last + 1).unwrap());
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: hog{number}, namespace: default, \
         creationTimestamp: \"2026-01-0{number}T00:00:00Z\"}}\nspec:\n  clusterIP: 10.96.1.{number}\n  \
         ports: [{{name: p, port: 80}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: hog{number}-1, namespace: default, labels: {{kubernetes.io/service-name: hog{number}}}}}\n\
         addressType: IPv4\nports: [{{name: p, port: 80}}]\nendpoints: [{list}]\n"
    )
}

struct Full {
    web: Web,
    places: Places,
}

impl Full {
    fn start(&self) -> Running {
        let mut command = self.web.source.command("run").unwrap();
        self.places.apply(&mut command).args(["--map-sizes", "slots=64"]);
        Running::start_command(&mut command, &self.web.hosts.node).unwrap()
    }

    fn json(&self, path: &str) -> Option<Value> {
        let url = format!("http://127.0.0.1:10249{path}");
        let asked = || kubeferry::status::get(&url, Duration::from_secs(30));
        let answer = self.web.hosts.node.run(asked).unwrap().ok()?;
        serde_json::from_str(&answer.body).ok()
    }

    /// Puts these objects there and waits until exactly these of them are left out.
    fn put(&self, manifests: &[String], left_out: &[&str]) {
        self.web.write(&manifests.concat()).unwrap();
        self.until_left_out(left_out);
    }

    fn until_left_out(&self, expected: &[&str]) {
        let mut last = String::new();
        let told = || {
            let status = self.json("/status")?;
            last = status["ignored"].to_string();
            let known = |name: &&str| {
                status["services"].as_array().unwrap().iter().any(|one| one["name"] == format!("default/{name}"))
            };
            let out: Vec<&str> = ["web", "hog1", "hog2", "hog3"]
                .into_iter()
                .filter(|name| last.contains(&format!("default/{name}")) && last.contains("is full"))
                .collect();
            (out == expected && expected.iter().all(known)).then_some(())
        };
        until(&format!("{expected:?} to be left out"), told).unwrap_or_else(|error| panic!("{error}: {last}"));
    }
}

#[test]
fn the_older_service_has_room_before_the_younger() {
    let full = Full { web: Web::build().unwrap(), places: Places::new().unwrap() };
    full.web.write(&web(2)).unwrap();
    let running = full.start();
    drop(full.web.until_served().unwrap());
    // 4 of 64 slots are taken, and these leave four free. Lists lie in one piece: the numbers here fit whatever gaps there are.
    full.put(&[web(2), hog(1, 12), hog(2, 12), hog(3, 32)], &[]);
    full.web
        .under_load(|| {
            // Old and new lists lie side by side while one changes.
            full.put(&[web(1), hog(1, 16), hog(2, 16), hog(3, 32)], &["hog3"]);
            full.put(&[web(2), hog(1, 16), hog(2, 16), hog(3, 32)], &["hog3"]);
            full.put(&[web(1), hog(1, 16), hog(2, 16), hog(3, 32)], &["hog3"]);
        })
        .unwrap();
    assert!(running.stop().unwrap().success());
    // A start finds maps that are full of others.
    let running = full.start();
    full.until_left_out(&["hog3"]);
    full.web.under_load(|| full.put(&[web(2), hog(1, 14), hog(2, 50), hog(3, 1)], &["hog2"])).unwrap();
    // Nothing but the room changes for who was left out.
    full.put(&[web(2), hog(2, 14), hog(3, 1)], &[]);
    assert!(running.stop().unwrap().success());
    Connection::open(full.web.client(), full.web.vip()).unwrap().ask().unwrap();
}
