//! Journeys out of events: those of one packet belong together, from the hook that it comes to first to the last.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::event::{Event, Verdict};
use super::tap;
use crate::backend::nftables::skeleton::TABLE;
use crate::live::journey::{End, Journey, Step, Way};
use crate::live::packet::Ends;

/// When nothing more is heard of a packet, it has gone.
const SILENCE: Duration = Duration::from_millis(500);
/// `LOOPBACK_IFINDEX`: the same in every network namespace.
const LOOPBACK: u32 = 1;
/// Packets under way at a time; what comes beyond is passed over.
const MOST: usize = 1024;

/// Packets that are under way.
#[derive(Debug)]
pub struct Assembler {
    table: String,
    open: BTreeMap<u32, Open>,
}

#[derive(Debug)]
struct Open {
    came: Ends,
    iif: Option<u32>,
    steps: Vec<Step>,
    last: Instant,
}

impl Assembler {
    /// For what a tap of this table hears.
    pub fn new(table: String) -> Self {
        Self { table, open: BTreeMap::new() }
    }

    /// Takes one event in, and gives the journey that it ends, if it does. `name` gives an interface's name.
    pub fn take(&mut self, event: Event, now: Instant, name: impl Fn(u32) -> String) -> Option<Journey> {
        let ours = event.table == self.table;
        if !self.open.contains_key(&event.id) {
            // The middle of a way is no beginning: only the first event of a hook has the packet itself.
            let is_before = tap::BEFORE.iter().any(|(chain, _)| *chain == event.chain);
            let is_first = (ours || event.table == TABLE) && is_before || ours && event.chain == "follow";
            // What comes by the loopback interface was followed as it left.
            let came = event.ends.filter(|_| is_first && event.iif != Some(LOOPBACK));
            if self.open.len() >= MOST {
                return None;
            }
            let open = Open { came: came?, iif: event.iif, steps: Vec::new(), last: now };
            self.open.insert(event.id, open);
        }
        let open = self.open.get_mut(&event.id)?;
        open.last = now;
        if ours {
            let end = tap::AFTER.iter().any(|(chain, _)| *chain == event.chain);
            let ends = event.ends.filter(|_| end)?;
            let out = event.oif.map(&name).filter(|_| event.chain == "postrouting");
            let way = out.map_or(Way::Here, Way::Out);
            return self.close(event.id, End::Went { ends, way }, name);
        }
        open.steps.push(step(&event));
        if event.verdict != Verdict::Drop {
            return None;
        }
        let end = match (event.table.as_str(), event.chain.as_str()) {
            (TABLE, "refuse") => End::Refused,
            (TABLE, _) => End::Dropped,
            (table, chain) => End::Stopped {
                by: match event.rule {
                    Some(handle) => format!("{table}/{chain}, rule {handle}"),
                    None => format!("the policy of {table}/{chain}"),
                },
            },
        };
        self.close(event.id, end, name)
    }

    /// Gives up those of which nothing is heard any more.
    pub fn expire(&mut self, now: Instant, name: impl Fn(u32) -> String) -> Vec<Journey> {
        let silent = |open: &Open| now.saturating_duration_since(open.last) >= SILENCE;
        let ids: Vec<_> = self.open.iter().filter(|(_, open)| silent(open)).map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.close(id, End::Unseen, &name)).collect()
    }

    fn close(&mut self, id: u32, end: End, name: impl Fn(u32) -> String) -> Option<Journey> {
        let Open { came, iif, steps, .. } = self.open.remove(&id)?;
        Some(Journey { came, iif: iif.map(name), steps, end })
    }
}

fn step(event: &Event) -> Step {
    let decision = match &event.verdict {
        Verdict::Drop => "drop".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Continue => "next rule".to_owned(),
        Verdict::Return => "back".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Other(number) => format!("verdict {number}"),
    };
    let reason = (event.table == TABLE).then(|| reason(event)).flatten();
    let rule = match event.rule {
        Some(handle) if event.table != TABLE => format!(" rule {handle}"),
        None if event.verdict != Verdict::Return => " policy".to_owned(),
        _ => String::new(),
    };
    Step { place: format!("{}/{}{rule}", event.table, event.chain), decision, reason: reason.map(str::to_owned) }
}

/// What a step of our own table means.
fn reason(event: &Event) -> Option<&'static str> {
    Some(match (event.chain.as_str(), &event.verdict) {
        // By the row, behind source ranges, or where the policy is asked.
        (_, Verdict::Goto(chain)) if chain == "refuse" => "no endpoint, or no such port of a ClusterIP",
        (_, Verdict::Goto(chain)) if chain == "discard" => "no endpoint that the policy allows",
        ("services4" | "services6", Verdict::Goto(chain)) if chain.starts_with("ranged") => {
            "source ranges are asked first"
        }
        ("services4" | "services6", Verdict::Goto(_)) => "the row of this destination",
        ("services4" | "services6", Verdict::Drop) => "an address of a ServiceCIDR that nobody has",
        ("refuse", Verdict::Drop) => "a reset or an ICMP error was sent",
        ("ranged4" | "ranged6", Verdict::Drop) => "outside of loadBalancerSourceRanges",
        ("ranged4" | "ranged6", Verdict::Goto(_)) => "inside loadBalancerSourceRanges",
        ("postrouting", Verdict::Accept) if event.rule.is_some() => "masquerade",
        ("postrouting" | "input", Verdict::Jump(_)) => "the client is remembered, if the service asks for it",
        (chain, Verdict::Accept) if chain.starts_with("v4-") || chain.starts_with("v6-") => "an endpoint is drawn",
        (chain, Verdict::Continue) if chain.contains("-external-") || chain.contains("-internal-") => {
            "marked for masquerading"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::objects::Protocol;

    fn ends(to: &str) -> Ends {
        Ends { protocol: Protocol::Tcp, from: "10.244.1.7:40000".parse().unwrap(), to: to.parse().unwrap() }
    }

    fn event(table: &str, chain: &str, verdict: Verdict, ends: Option<Ends>) -> Event {
        let (iif, oif) = (Some(2), (chain == "postrouting").then_some(3));
        Event { id: 7, table: table.into(), chain: chain.into(), rule: Some(1), verdict, ends, iif, oif }
    }

    fn name(index: u32) -> String {
        format!("if{index}")
    }

    #[test]
    fn a_packet_is_followed_from_its_first_hook_to_the_last() {
        let mut assembler = Assembler::new("tap".into());
        let now = Instant::now();
        let came = ends("10.96.0.50:80");
        let mut take = |event| assembler.take(event, now, name);
        assert_eq!(take(event("kubeferry", "services4", Verdict::Continue, None)), None, "the middle is no beginning");
        assert_eq!(take(event("kubeferry", "prerouting", Verdict::Goto("services4".into()), Some(came))), None);
        assert_eq!(take(event("kubeferry", "services4", Verdict::Goto("v4-x".into()), None)), None);
        assert_eq!(take(event("kubeferry", "v4-x", Verdict::Accept, None)), None);
        let went = ends("10.244.2.1:8080");
        let journey = take(event("tap", "postrouting", Verdict::Accept, Some(went))).unwrap();
        assert_eq!(journey.end, End::Went { ends: went, way: Way::Out("if3".into()) });
        assert_eq!((journey.came, journey.iif.as_deref(), journey.steps.len()), (came, Some("if2"), 3));
        let text = journey.to_string();
        assert!(text.contains("kubeferry/services4   goto v4-x (the row of this destination)"), "{text}");
        assert!(
            text.ends_with("went out by if3: tcp 10.244.1.7:40000 → 10.244.2.1:8080 (destination rewritten)"),
            "{text}"
        );
    }

    #[test]
    fn why_is_told_wherever_it_is_decided() {
        for (chain, to, why) in [
            ("services4", "discard", "no endpoint that the policy allows"),
            ("v4-external-local-cluster-random-1-or-discard", "discard", "no endpoint that the policy allows"),
            ("services6", "refuse", "no endpoint, or no such port of a ClusterIP"),
            ("ranged4", "refuse", "no endpoint, or no such port of a ClusterIP"),
            ("ranged4", "v4-random-1", "inside loadBalancerSourceRanges"),
        ] {
            let step = step(&event("kubeferry", chain, Verdict::Goto(to.into()), None));
            assert_eq!(step.reason.as_deref(), Some(why), "{chain} {to}");
        }
    }

    #[test]
    fn who_stopped_a_packet_is_named_and_one_that_vanishes_is_given_up() {
        let now = Instant::now();
        for (table, chain, end) in [
            ("kubeferry", "refuse", End::Refused),
            ("kubeferry", "discard", End::Dropped),
            ("filter", "FORWARD", End::Stopped { by: "filter/FORWARD, rule 1".into() }),
        ] {
            let mut assembler = Assembler::new("tap".into());
            let first =
                event("kubeferry", "prerouting", Verdict::Goto("services4".into()), Some(ends("10.96.0.50:80")));
            assert_eq!(assembler.take(first.clone(), now, name), None);
            let journey = assembler.take(event(table, chain, Verdict::Drop, None), now, name).unwrap();
            assert_eq!(journey.end, end);
            assert_eq!(assembler.take(first, now, name), None);
            assert_eq!(assembler.expire(now, name), []);
            assert_eq!(assembler.expire(now + SILENCE, name)[0].end, End::Unseen);
        }
    }
}
