//! By hash: sh, dh and mh choose what the model says, for every single connection.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use kubeferry_tests::client::until;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Answer;
use kubeferry_tests::netns::output;
use serde_json::json;

use super::cluster::{Flow, Service, World, client, flows};

kubeferry_tests::on_both_datapaths! {
    sh_chooses_by_the_source_address,
    mh_chooses_by_the_source_address,
    sh_chooses_by_the_source_address_and_port,
    mh_chooses_by_the_source_address_and_port,
    dh_chooses_by_the_destination_address,
}

const ENDPOINTS: u8 = 7;
const WEIGHTS: [u16; 7] = [1, 3, 1, 2, 1, 1, 4];
const CHANGED: [u16; 7] = [2, 1, 1, 5, 1, 1, 1];

/// The endpoints that the model gives to connections.
fn expected(world: &World, flows: &[Flow]) -> Vec<SocketAddr> {
    let questions: String =
        flows.iter().map(|(from, to)| format!("{}\n", json!({"from": from, "to": format!("udp:{to}")}))).collect();
    let mut trace = world.source().offline("trace").unwrap();
    let answers = output(trace.args(["--stdin", "--output", "json"]), &questions).unwrap();
    assert!(answers.status.success(), "{}", String::from_utf8_lossy(&answers.stderr));
    let one = |line: &str| {
        let answer: Answer = serde_json::from_str(line).unwrap();
        assert_eq!(answer.endpoints.len(), 1, "{line}");
        answer.endpoints[0]
    };
    String::from_utf8_lossy(&answers.stdout).lines().map(one).collect()
}

/// Opens the connections and compares each with the model.
fn compare(world: &World, flows: &[Flow]) {
    assert!(flows.len() >= 1000, "{} flows", flows.len());
    let (reached, expected) = (world.connect(flows), expected(world, flows));
    assert_eq!(expected.len(), flows.len());
    for ((flow, reached), expected) in flows.iter().zip(&reached).zip(&expected) {
        assert_eq!(reached, expected, "{} to {}", flow.0, flow.1);
    }
    let seen: BTreeSet<_> = reached.into_iter().collect();
    assert_eq!(seen.len(), usize::from(ENDPOINTS), "all endpoints have connections");
}

fn by_source(
    datapath: &Datapath,
    scheduler: &'static str,
    hash_key: &str,
    flows: impl Fn(u16, bool, SocketAddr) -> Vec<Flow>,
) {
    let mut plain = Service::new("web", scheduler, ENDPOINTS);
    let mut weighted = Service::new("other", scheduler, ENDPOINTS).weighted(&WEIGHTS);
    for service in [&mut plain, &mut weighted] {
        service.annotations += &format!("\n    kubeferry.dev/hash-key: {hash_key}");
    }
    let world = World::start(datapath, &[plain.clone(), weighted.clone()]);
    for v6 in [false, true] {
        compare(&world, &flows(0, v6, plain.vip(v6)));
        compare(&world, &flows(0, v6, weighted.vip(v6)));
    }
    // Slots are positions: other weights put endpoints into other ones, and each into its own.
    weighted = weighted.weighted(&CHANGED);
    weighted.annotations += &format!("\n    kubeferry.dev/hash-key: {hash_key}");
    world.change(&[plain.clone(), weighted.clone()]);
    for v6 in [false, true] {
        let mut first = 1000;
        let in_force = || {
            first += 1;
            let few: Vec<_> = (1..=40)
                .flat_map(|number| super::cluster::flows(first, 1, client(number, v6), weighted.vip(v6)))
                .collect();
            (world.connect(&few) == expected(&world, &few)).then_some(())
        };
        until("the changed weights to be in force", in_force).unwrap();
        compare(&world, &flows(first + 1, v6, weighted.vip(v6)));
    }
}

fn by_address(datapath: &Datapath, scheduler: &'static str) {
    by_source(datapath, scheduler, "source-address", |first, v6, vip| {
        (1..=200).flat_map(|number| flows(first, 5, client(number, v6), vip)).collect()
    });
}

fn by_address_and_port(datapath: &Datapath, scheduler: &'static str) {
    by_source(datapath, scheduler, "source-address-and-port", |first, v6, vip| {
        (1..=10).flat_map(|number| flows(first, 100, client(number, v6), vip)).collect()
    });
}

fn sh_chooses_by_the_source_address(datapath: Datapath) {
    by_address(&datapath, "sh");
}

fn mh_chooses_by_the_source_address(datapath: Datapath) {
    by_address(&datapath, "mh");
}

fn sh_chooses_by_the_source_address_and_port(datapath: Datapath) {
    by_address_and_port(&datapath, "sh");
}

fn mh_chooses_by_the_source_address_and_port(datapath: Datapath) {
    by_address_and_port(&datapath, "mh");
}

fn dh_chooses_by_the_destination_address(datapath: Datapath) {
    let external = |number: u16, v6: bool| -> IpAddr {
        let text = if v6 { format!("2001:db8:7::{number:x}") } else { format!("198.51.100.{number}") };
        text.parse().unwrap()
    };
    // Weights are nothing to dh.
    let mut service = Service::new("web", "dh", ENDPOINTS).weighted(&WEIGHTS);
    let ips = (1..=200).flat_map(|number| [false, true].map(|v6| format!("'{}'", external(number, v6))));
    service.spec = format!("externalIPs: [{}]", ips.collect::<Vec<_>>().join(", "));
    let world = World::start(&datapath, &[service.clone()]);
    for v6 in [false, true] {
        let to = |number: u16| SocketAddr::new(external(number, v6), 80);
        let all: Vec<_> =
            (1..=200).flat_map(|number| flows(number * 5, 5, client(number as u8, v6), to(number))).collect();
        compare(&world, &all);
        let own: BTreeSet<_> = world.connect(&flows(2000, 50, client(1, v6), service.vip(v6))).into_iter().collect();
        assert_eq!(own.len(), 1, "one destination is one endpoint");
    }
}
