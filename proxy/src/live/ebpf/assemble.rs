//! Journeys out of the programs' events.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::live::LiveEvent;
use kubeferry_ebpf_common::stats::Counter;

use crate::live::journey::{End, Journey, Step, Way};
use crate::live::packet::Ends;
use crate::state::objects::Protocol;

/// When a packet has not left by then, it is not seen again.
const SILENCE: Duration = Duration::from_millis(500);
/// Packets under way at a time; the oldest is given up for one more.
const MOST: usize = 1024;

/// Packets that are expected to leave.
#[derive(Debug, Default)]
pub struct Assembler {
    open: Vec<Open>,
}

#[derive(Debug)]
struct Open {
    number: u32,
    journey: Journey,
    since: Instant,
}

impl Assembler {
    /// Takes one event in, and gives the journey that ends with it. `name` gives an interface's name.
    pub fn take(&mut self, event: &LiveEvent, now: Instant, name: impl Fn(u32) -> String) -> Option<Journey> {
        let before =
            self.open.iter().position(|open| open.number == event.number).map(|at| self.open.remove(at).journey);
        let device = (event.device != 0).then(|| name(event.device));
        let other = SocketAddr::new(IpAddr::from(event.address), u16::from_be(event.port));
        let seen = ends(event)?;
        let step = |decision, reason| step(event, device.as_deref(), decision, reason);
        if event.kind == LiveEvent::LEFT {
            let mut journey = before?;
            journey.steps.push(match other == seen.from {
                true => step("leaves".to_owned(), None),
                false => step(format!("source {other}"), Some("masquerade".to_owned())),
            });
            let way = device.map_or(Way::On, Way::Out);
            // A port that another connection of the client has is rewritten where the endpoint is chosen.
            journey.end = End::Went { ends: Ends { from: other, ..seen }, way };
            return Some(journey);
        }
        let stopped = || why(Counter::ALL.get(event.detail as usize).copied());
        let (decision, reason, end, leaves) = match event.kind {
            LiveEvent::CHOSEN => {
                let masquerade = event.detail & LiveEvent::MASQUERADE != 0;
                let way = match event.detail & LiveEvent::HERE != 0 {
                    true => Some(Way::Here),
                    false if event.place == LiveEvent::AT_SOCKET => Some(Way::On),
                    false => None,
                };
                let reason = masquerade.then(|| "its source is rewritten where it leaves".to_owned());
                let ends = Ends { to: other, ..seen };
                let leaves = way.is_none();
                (format!("endpoint {other}"), reason, way.map_or(End::Unseen, |way| End::Went { ends, way }), leaves)
            }
            LiveEvent::REFUSED => ("refuse".to_owned(), Some(stopped()), End::Refused, false),
            LiveEvent::DROPPED => ("drop".to_owned(), Some(stopped()), End::Dropped, false),
            LiveEvent::NOT_OURS => {
                let leaves = event.place != LiveEvent::AT_EGRESS;
                let way = match &device {
                    Some(device) if !leaves => Way::Out(device.clone()),
                    _ => Way::On,
                };
                ("pass".to_owned(), Some("no Service's".to_owned()), End::Went { ends: seen, way }, leaves)
            }
            _ => return None,
        };
        let step = step(decision, reason);
        let mut journey = match before {
            // It was stopped on its way out.
            Some(before) => before,
            None => {
                let iif = device.filter(|_| matches!(event.place, LiveEvent::AT_INGRESS | LiveEvent::AT_XDP));
                Journey { came: seen, iif, steps: Vec::new(), end: End::Unseen }
            }
        };
        journey.steps.push(step);
        journey.end = end;
        if !leaves {
            return Some(journey);
        }
        let given_up = (self.open.len() >= MOST).then(|| self.open.remove(0).journey);
        self.open.push(Open { number: event.number, journey, since: now });
        given_up
    }

    /// Gives up those that have not left.
    pub fn expire(&mut self, now: Instant) -> Vec<Journey> {
        let is_old = |open: &mut Open| now.saturating_duration_since(open.since) >= SILENCE;
        self.open.extract_if(.., is_old).map(|open| open.journey).collect()
    }
}

fn ends(event: &LiveEvent) -> Option<Ends> {
    let protocol = match event.key.protocol {
        kubeferry_ebpf_common::TCP => Protocol::Tcp,
        kubeferry_ebpf_common::UDP => Protocol::Udp,
        kubeferry_ebpf_common::SCTP => Protocol::Sctp,
        _ => return None,
    };
    let to = SocketAddr::new(IpAddr::from(event.key.destination), u16::from_be(event.key.destination_port));
    let from = SocketAddr::new(IpAddr::from(event.key.source), u16::from_be(event.key.source_port));
    Some(Ends { protocol, from, to })
}

fn step(event: &LiveEvent, device: Option<&str>, decision: String, reason: Option<String>) -> Step {
    let hook = match event.place {
        LiveEvent::AT_SOCKET => "socket",
        LiveEvent::AT_INGRESS => "TC ingress",
        LiveEvent::AT_EGRESS => "TC egress",
        LiveEvent::AT_XDP => "XDP",
        _ => "?",
    };
    let place = device.map_or_else(|| hook.to_owned(), |device| format!("{hook} {device}"));
    Step { place, decision, reason }
}

/// Why a packet was stopped.
fn why(counter: Option<(Counter, &str)>) -> String {
    let Some((counter, name)) = counter else { return "for a reason that this version does not know".to_owned() };
    match counter {
        Counter::Refused => "no usable endpoint anywhere",
        Counter::UndefinedPort => "a ClusterIP without this port",
        Counter::NoLocalEndpoint => "no endpoint that the policy allows",
        Counter::SourceRange => "outside of loadBalancerSourceRanges",
        Counter::Unallocated => "an address of a ServiceCIDR that nobody has",
        Counter::NoMasqueradePort => "no free port to masquerade with, or no address on the way out",
        Counter::FlowTable => "the connection could not be written to the map flows",
        Counter::Unreachable => "the node has no route to the endpoint",
        Counter::Moving => "connections are being moved to maps of other sizes",
        Counter::Forged => "the source is not an address of whoever sent it",
        Counter::Connected | Counter::SocketConnected | Counter::Fragment | Counter::Rewrite | Counter::IcmpError => {
            name
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use kubeferry_ebpf_common::{Address, FlowKey};

    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn event(kind: u8, place: u8, detail: u32) -> LiveEvent {
        let key = FlowKey {
            source: address("192.0.2.9"),
            destination: address("172.18.0.2"),
            source_port: 40000u16.to_be(),
            destination_port: 30080u16.to_be(),
            protocol: 6,
            hook: FlowKey::IN,
            reserved: 0,
        };
        let (address, port) = (address("10.244.2.1"), 8080u16.to_be());
        LiveEvent { key, address, port, kind, place, device: 2, detail, number: 7 }
    }

    /// The packet of the event leaves.
    fn left(source: (&str, u16)) -> LiveEvent {
        let mut left = event(LiveEvent::LEFT, LiveEvent::AT_EGRESS, 0);
        (left.key.destination, left.key.destination_port) = (address("10.244.2.1"), 8080u16.to_be());
        (left.address, left.port) = (address(source.0), source.1.to_be());
        left
    }

    fn name(index: u32) -> String {
        format!("if{index}")
    }

    #[test]
    fn a_packet_is_whole_when_it_has_left() {
        let mut assembler = Assembler::default();
        let now = Instant::now();
        let chosen = event(LiveEvent::CHOSEN, LiveEvent::AT_INGRESS, LiveEvent::MASQUERADE);
        assert_eq!(assembler.take(&chosen, now, name), None);
        let text = assembler.take(&left(("172.18.0.2", 50000)), now, name).unwrap().to_string();
        let went = "went out by if2: tcp 172.18.0.2:50000 → 10.244.2.1:8080 (destination and source rewritten)";
        assert!(text.contains("TC ingress if2  endpoint 10.244.2.1:8080 (its source is rewritten"), "{text}");
        assert!(text.ends_with(went), "{text}");
        assert_eq!(assembler.take(&left(("172.18.0.2", 50000)), now, name), None, "nobody waits for it");
        assert_eq!(assembler.take(&event(LiveEvent::CHOSEN, LiveEvent::AT_XDP, 0), now, name), None);
        let kept = assembler.take(&left(("192.0.2.9", 40000)), now, name).unwrap();
        assert_eq!(kept.steps[1].decision, "leaves");
        assert!(kept.end_text().ends_with("(destination rewritten)"), "{}", kept.end_text());
        assembler.take(&chosen, now, name);
        assert_eq!(assembler.expire(now), []);
        assert_eq!(assembler.expire(now + SILENCE)[0].end, End::Unseen);
    }

    #[test]
    fn what_is_dropped_on_its_way_out_is_the_same_packet() {
        let mut assembler = Assembler::default();
        let now = Instant::now();
        assembler.take(&event(LiveEvent::CHOSEN, LiveEvent::AT_INGRESS, LiveEvent::MASQUERADE), now, name);
        let dropped = LiveEvent {
            kind: LiveEvent::DROPPED,
            detail: Counter::NoMasqueradePort as u32,
            ..left(("192.0.2.9", 40000))
        };
        let journey = assembler.take(&dropped, now, name).unwrap();
        assert_eq!((journey.steps.len(), journey.end), (2, End::Dropped));
        assert_eq!(journey.came.to.to_string(), "172.18.0.2:30080");
    }

    #[test]
    fn what_is_decided_at_once_is_told_at_once() {
        let mut assembler = Assembler::default();
        let mut take = |event| assembler.take(&event, Instant::now(), name).unwrap();
        let here = take(event(LiveEvent::CHOSEN, LiveEvent::AT_INGRESS, LiveEvent::HERE));
        assert!(matches!(here.end, End::Went { ends, way: Way::Here } if ends.to.to_string() == "10.244.2.1:8080"));
        let range = take(event(LiveEvent::DROPPED, LiveEvent::AT_INGRESS, Counter::SourceRange as u32));
        assert_eq!(range.end, End::Dropped);
        assert_eq!(range.steps[0].reason.as_deref(), Some("outside of loadBalancerSourceRanges"));
        assert_eq!(take(event(LiveEvent::REFUSED, LiveEvent::AT_EGRESS, Counter::Refused as u32)).end, End::Refused);
        let own = take(event(LiveEvent::NOT_OURS, LiveEvent::AT_EGRESS, 0));
        assert_eq!(own.end_text(), "went out by if2: tcp 192.0.2.9:40000 → 172.18.0.2:30080 (as it came)");
        let mut socket = event(LiveEvent::CHOSEN, LiveEvent::AT_SOCKET, 0);
        (socket.key.source, socket.key.source_port, socket.device) = (Address::ZERO, 0, 0);
        let socket = take(socket);
        assert!(socket.to_string().starts_with("tcp a socket here → 172.18.0.2:30080\n"), "{socket}");
        assert_eq!(socket.end_text(), "went on: tcp a socket here → 10.244.2.1:8080 (destination rewritten)");
    }

    #[test]
    fn what_is_nobodys_goes_on_if_it_is_not_seen_to_leave() {
        let mut assembler = Assembler::default();
        let now = Instant::now();
        assert_eq!(assembler.take(&event(LiveEvent::NOT_OURS, LiveEvent::AT_INGRESS, 0), now, name), None);
        assert!(matches!(assembler.expire(now + SILENCE)[0].end, End::Went { way: Way::On, .. }));
    }
}
