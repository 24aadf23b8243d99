//! How connections spread lately: what each endpoint of a Service got between looks of ours. The share of all of them says little
//! of an endpoint that came later than others.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::data::Data;
use crate::facts::{PortFacts, ServiceFacts};

/// Back to the look that is compared with.
const SPAN: Duration = Duration::from_secs(60);
/// Between two looks that are remembered.
const STEP: Duration = Duration::from_secs(5);

/// What the endpoints of a port got between two looks.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Spread {
    /// Between the looks.
    pub over: Duration,
    /// All connections of these endpoints.
    pub connections: u64,
    got: HashMap<String, u64>,
}

impl Spread {
    /// The part that an endpoint got, 0 to 1; `None`: nobody got any.
    pub fn share(&self, address: &str) -> Option<f64> {
        let got = *self.got.get(address)?;
        (self.connections > 0).then(|| got as f64 / self.connections as f64)
    }
}

/// Connections of each endpoint, by port; those that are counted.
type Counts = HashMap<String, HashMap<String, Option<u64>>>;

/// The looks at one Service.
#[derive(Debug, Default)]
pub struct Lately {
    service: Option<(String, String)>,
    looks: VecDeque<(Instant, Counts)>,
}

impl Lately {
    /// Takes in what was seen at a moment, and adds to it how connections spread lately.
    pub fn note(&mut self, at: Instant, data: &mut Data) {
        let Some(Some(facts)) = &data.service else {
            return *self = Self::default();
        };
        let (service, now) = (Some((facts.namespace.clone(), facts.name.clone())), counts(facts));
        let begins = self.service != service || self.looks.back().is_some_and(|(_, last)| fewer(last, &now));
        if begins {
            *self = Self { service, looks: VecDeque::new() };
        }
        while self.looks.front().is_some_and(|(then, _)| at.saturating_duration_since(*then) > SPAN + STEP) {
            self.looks.pop_front();
        }
        let (then, base) = self.looks.front().map_or((at, &now), |(then, base)| (*then, base));
        let over = at.saturating_duration_since(then);
        data.lately = facts.ports.iter().map(|port| spread(base.get(&key(port)), port, over)).collect();
        if self.looks.back().is_none_or(|(last, _)| at.saturating_duration_since(*last) >= STEP) {
            self.looks.push_back((at, now));
        }
    }
}

/// What tells a port of a Service from its others.
fn key(port: &PortFacts) -> String {
    format!("{}/{}/{}", port.name, port.protocol, port.family)
}

fn counts(facts: &ServiceFacts) -> Counts {
    let of = |port: &PortFacts| port.endpoints.iter().map(|one| (one.address.clone(), one.connections)).collect();
    facts.ports.iter().map(|port| (key(port), of(port))).collect()
}

/// Whether somebody has fewer than before: it was begun anew.
fn fewer(before: &Counts, now: &Counts) -> bool {
    now.iter().any(|(port, endpoints)| {
        let before = before.get(port);
        endpoints.iter().any(|(address, count)| {
            let had = before.and_then(|before| *before.get(address)?);
            count.zip(had).is_some_and(|(count, had)| count < had)
        })
    })
}

fn spread(before: Option<&HashMap<String, Option<u64>>>, port: &PortFacts, over: Duration) -> Spread {
    let got = port.endpoints.iter().filter_map(|endpoint| {
        let count = endpoint.connections?;
        // Who was not there before had none; of whom nobody counted before, nothing is known.
        let had = match before.map(|before| before.get(&endpoint.address)) {
            Some(None) => 0,
            Some(Some(Some(had))) => *had,
            Some(Some(None)) | None => count,
        };
        Some((endpoint.address.clone(), count.saturating_sub(had)))
    });
    let got: HashMap<String, u64> = got.collect();
    Spread { over, connections: got.values().sum(), got }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::facts::NodeFacts;

    fn data(connections: &[Option<u64>]) -> Data {
        let endpoints: Vec<_> = connections
            .iter()
            .enumerate()
            .map(|(at, count)| json!({"address": format!("10.0.0.{at}:80"), "connections": count}))
            .collect();
        let service = json!({
            "namespace": "default", "name": "web", "type": "ClusterIP", "health": {"state": "ok"},
            "policies": crate::facts::Policies::default(), "sourceRanges": [], "truncated": false, "ignored": [],
            "ports": [{
                "name": "http", "protocol": "tcp", "family": "IPv4", "scheduler": "random", "counts": {},
                "frontends": [], "endpoints": endpoints,
            }],
        });
        let service = Some(serde_json::from_value(service).unwrap());
        Data { node: NodeFacts::default(), list: None, service: Some(service), lately: Vec::new() }
    }

    /// What each endpoint got lately, in hundredths, after looks at so many seconds.
    fn shares(looks: &[(u64, &[Option<u64>])]) -> (u64, Vec<Option<u64>>) {
        let (mut lately, start) = (Lately::default(), Instant::now());
        let mut last = (0, Vec::new());
        for (at, connections) in looks {
            let mut data = data(connections);
            lately.note(start + Duration::from_secs(*at), &mut data);
            let spread = &data.lately[0];
            let share =
                |at: usize| spread.share(&format!("10.0.0.{at}:80")).map(|share| (share * 100.0).round() as u64);
            last = (spread.over.as_secs(), (0..connections.len()).map(share).collect());
        }
        last
    }

    #[test]
    fn an_endpoint_that_came_later_has_its_share_of_what_came_since() {
        let before: &[_] = &[Some(500), Some(500)];
        assert_eq!(shares(&[(0, before)]), (0, vec![None, None]), "one look tells nothing");
        let after: &[_] = &[Some(533), Some(522), Some(35)];
        assert_eq!(shares(&[(0, before), (2, after)]), (2, vec![Some(37), Some(24), Some(39)]));
    }

    #[test]
    fn what_is_long_ago_counts_no_more_and_neither_what_began_anew() {
        let looks: &[(u64, &[_])] =
            &[(0, &[Some(0), Some(0)]), (30, &[Some(100), Some(0)]), (70, &[Some(150), Some(50)])];
        assert_eq!(shares(looks), (40, vec![Some(50), Some(50)]));
        assert_eq!(shares(&[(0, &[Some(9)]), (2, &[Some(3)])]), (0, vec![None]));
        assert_eq!(shares(&[(0, &[None]), (2, &[Some(3)])]), (2, vec![None]), "nobody counted before");
    }
}
