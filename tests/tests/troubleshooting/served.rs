//! The node of the page: the Service `default/web` at 10.96.0.10:80, and whoever looks at it.

use std::ops::{Deref, DerefMut};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::Duration;

use kubeferry_tests::binary;
use kubeferry_tests::client::{Connection, DEADLINE, until, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::served;
use serde_json::Value;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Served(served::Served);

impl Deref for Served {
    type Target = served::Served;

    fn deref(&self) -> &served::Served {
        &self.0
    }
}

impl DerefMut for Served {
    fn deref_mut(&mut self) -> &mut served::Served {
        &mut self.0
    }
}

impl Served {
    /// A node that serves these, with these flags more.
    pub fn start(datapath: Datapath, manifests: &str, flags: &[&str]) -> Self {
        Self(served::Served::start(datapath, manifests, flags).unwrap())
    }

    pub fn restart(&mut self, flags: &[&str]) {
        self.0.restart(flags).unwrap();
    }

    /// The answer of a path.
    pub fn get(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:10249{path}");
        let answer = self.node().run(|| kubeferry::status::get(&url, DEADLINE)).unwrap().unwrap();
        assert_eq!(answer.code, 200, "{path}: {}", answer.body);
        answer.body
    }

    pub fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.get(path)).unwrap()
    }

    /// Puts other objects there and waits until they are in force.
    pub fn change(&self, manifests: &str) {
        let newest = || self.json("/api/v1/history")["newest"].as_u64().unwrap();
        let before = newest();
        self.web.write(manifests).unwrap();
        until("the change to be in force", || (newest() > before).then_some(())).unwrap();
    }

    /// Opens so many connections from the pod that asks.
    pub fn open(&self, count: usize) -> Vec<Connection> {
        let open = |_| {
            let mut connection = Connection::open(self.web.client(), self.web.vip()).unwrap();
            connection.ask().unwrap();
            connection
        };
        (0..count).map(open).collect()
    }

    /// Waits until what has come by so far is counted: counters are looked at no more often than the proxy has time for.
    pub fn until_counted(&self) {
        let read = || self.json("/api/v1/node")["traffic"]["read"].clone();
        // The first may have begun before.
        for _ in 0..2 {
            let before = read();
            until_for(PATIENCE, "the counters to be read again", || (read() != before).then_some(())).unwrap();
        }
    }

    /// What a command line prints that an operator enters on the node.
    pub fn enter(&self, line: &str) -> String {
        enter(self.node(), line)
    }
}

/// The same on any node.
pub fn enter(node: &Netns, line: &str) -> String {
    let (text, succeeds) = entered(node, line);
    assert!(succeeds, "{line}: {text}");
    text
}

/// The same, and whether it succeeds.
pub fn entered(node: &Netns, line: &str) -> (String, bool) {
    let tools = tempfile::tempdir().unwrap();
    symlink(binary::path().unwrap(), tools.path().join("kubeferry")).unwrap();
    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
    let output = node.output(Command::new("sh").args(["-c", line]).env("PATH", path), "").unwrap();
    let [text, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (text + &errors, output.status.success())
}
