//! Packets that come while the kernel changes over from one transaction to the next.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::backend::nftables::tests::cluster::{service, slice, view};
use crate::backend::nftables::tests::with_kernel;
use crate::desired::node_view::{NodePorts, NodeView};
use crate::desired::{Desired, Touched};
use crate::netns::run;
use crate::scheduler::Scheduler;
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{Family, ObjectName, Scheduling, Service};

/// Of a hundred changes one or two meet a packet where they can.
const CHANGES: usize = 450;
const ENDPOINTS: [&str; 3] = ["10.244.0.1", "10.244.0.2", "10.244.0.3"];

/// Counts who leaves with a Service's address.
const WATCH: &str = "
table inet watch {
  counter missed {}
  chain output { type filter hook output priority 0; ip daddr 10.96.0.0/16 counter name missed; }
}
";

fn missed() -> usize {
    let listed = run("nft", &["list", "counter", "inet", "watch", "missed"], "");
    let number = listed.split_once("packets ").and_then(|(_, rest)| rest.split(' ').next());
    number.unwrap().parse().unwrap()
}

/// Ends who asks, also where the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What became of packets that were sent.
#[derive(Default)]
struct Asked {
    sent: AtomicUsize,
    refused: AtomicUsize,
}

impl Asked {
    /// Asks by a new socket each time, until the end. None has the address and port of another: connection tracking knows none of them.
    fn ask(&self, service: &Service, end: &AtomicBool) {
        let address = *service.load_balancer_ips.first().unwrap_or(&service.cluster_ips[0]);
        for number in 0_u32.. {
            if end.load(Ordering::Relaxed) {
                return;
            }
            let [port, a, b, c] = number.to_be_bytes();
            let from = SocketAddr::from(([11, a, b, c], 2000 + u16::from(port)));
            let socket = UdpSocket::bind(from).unwrap();
            // What is refused or dropped is told to who sends it (EPERM).
            let is_sent = socket.send_to(b"x", (address, 53)).is_ok();
            if is_sent { &self.sent } else { &self.refused }.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn endpoints(count: usize) -> Event {
    Event::Slice(slice("web", Family::V4, &ENDPOINTS[..count]))
}

/// Changes a Service with three endpoints while it is asked all the time: nobody is refused. Gives how many left untranslated.
fn missed_while(service: &Service, change: impl Fn(usize) -> Event + Sync) -> usize {
    with_kernel(|mut reconciler| {
        for arguments in [
            "address add 192.168.0.2/32 dev lo",
            "route add local 11.0.0.0/8 dev lo",
            "route add local 10.244.0.0/16 dev lo",
            "route add 10.96.0.0/16 dev lo",
        ] {
            run("ip", &arguments.split(' ').collect::<Vec<_>>(), "");
        }
        // Entries of connection tracking are not to fill its table.
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "1").unwrap();
        run("nft", &["-f", "-"], WATCH);
        let _listener = UdpSocket::bind("0.0.0.0:5353").unwrap();
        let mut state = State::default();
        [Event::Service(service.clone()), endpoints(3)].into_iter().for_each(|event| state.apply(event));
        // The question whether it is for a node port takes longest so, between the two for a ClusterIP.
        let view = || NodeView { node_ports: [NodePorts::All, NodePorts::All], ..view(&[]) };
        let mut desired = Desired::of(&state, view());
        state.take_changes();
        reconciler.sync(&desired, Touched::default()).unwrap();
        let (end, asked) = (AtomicBool::new(false), Asked::default());
        std::thread::scope(|scope| {
            scope.spawn(|| asked.ask(service, &end));
            let _ends = Ends(&end);
            for number in 0..CHANGES {
                state.apply(change(number));
                let changes = state.take_changes();
                let touched = desired.update(&state, &changes, view());
                assert!(!reconciler.sync(&desired, touched).unwrap().full);
                if number % 10 == 9 {
                    assert_eq!(reconciler.check(&desired).unwrap(), None, "nobody else writes");
                }
            }
        });
        let (sent, refused, missed) = (asked.sent.into_inner(), asked.refused.into_inner(), missed());
        println!("{sent} packets sent, {refused} refused, {missed} missed, {CHANGES} changes");
        assert!(sent > CHANGES);
        assert_eq!(refused, 0);
        missed
    })
}

#[test]
fn a_row_that_others_lead_to_goes_after_them() {
    assert_eq!(missed_while(&service("web", &["10.96.0.1"]), |number| endpoints([1, 2, 3][number % 3])), 0);
}

#[test]
fn a_chain_is_there_before_a_row_goes_to_it() {
    let scheduling = Some(Box::new(Scheduling { scheduler: Some(Scheduler::Rr), ..Scheduling::default() }));
    let turn = Service { scheduling, ..service("web", &["10.96.0.1"]) };
    assert_eq!(missed_while(&turn, |number| endpoints([1, 2, 3][number % 3])), 0);
}

#[test]
fn an_address_that_comes_with_its_ports_is_not_refused() {
    let web = service("web", &["10.96.0.1"]);
    let missed = missed_while(&web, |number| match number % 2 {
        0 => Event::ServiceGone(ObjectName::new("default", "web")),
        _ => Event::Service(web.clone()),
    });
    assert!(missed > 0, "while it is away");
}

#[test]
fn source_ranges_are_there_before_they_are_asked_for() {
    let balanced = Service { load_balancer_ips: vec!["10.96.0.9".parse().unwrap()], ..service("web", &["10.96.0.1"]) };
    let ranged = Service { source_ranges: vec!["11.0.0.0/8".parse().unwrap()], ..balanced.clone() };
    let missed = missed_while(&balanced, |number| {
        Event::Service(if number % 2 == 0 { ranged.clone() } else { balanced.clone() })
    });
    assert_eq!(missed, 0);
}
