//! TCP clients that begin while rows are missing: the kernel sends their first packet again and again, and the first that meets the
//! rows that are back opens the connection.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::small::{ENDPOINT, Small};

/// The node has a way to its external addresses, at the end of which nobody answers.
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  clusterIP: 10.96.0.10
  externalIPs: [198.51.100.7, '2001:db8:7::7']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: tcp, port: 80}]
";
const EXTERNAL: [&str; 2] = ["198.51.100.7:80", "[2001:db8:7::7]:80"];
/// After this time the first packet is sent again, at the earliest.
const AGAIN: Duration = Duration::from_millis(900);

kubeferry_tests::on_both_datapaths! {
    one_that_begins_while_rows_are_missing_connects_when_they_are_back,
}

/// A connection of each family, and how long they took to open.
fn connect(cluster: &Small) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for to in EXTERNAL.map(|to| to.parse::<SocketAddr>().unwrap()) {
            scope.spawn(move || {
                let opened = Connection::open(cluster.client(), to);
                let mut connection = opened.unwrap_or_else(|error| panic!("connecting to {to}: {error}"));
                assert_eq!(connection.ask().unwrap().0, "web1");
            });
        }
    });
    began.elapsed()
}

fn one_that_begins_while_rows_are_missing_connects_when_they_are_back(datapath: Datapath) {
    let cluster = Small::start(datapath, &format!("{SERVICE}{ENDPOINT}")).unwrap();
    let to = EXTERNAL[0].parse().unwrap();
    until("the first connection through the Service", || Connection::attempt(cluster.client(), to)).unwrap();
    let lost = || {
        cluster.lose_frontends().unwrap();
        // Those who came too late, as all is repaired already, are no case.
        (connect(&cluster) > AGAIN).then_some(())
    };
    until("a connection that begins while rows are missing", lost).unwrap();
}
