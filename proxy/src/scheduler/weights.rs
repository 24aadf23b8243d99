//! The weights that a Service gives its endpoints: annotation `kubeferry.dev/weights`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use crate::state::convert::sloppy::parse_ip;
use crate::state::objects::{PodName, SliceEndpoint};

/// Weights by what an endpoint is told by. The most specific counts: its address, then its Pod, its Node, its zone.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Weights {
    addresses: BTreeMap<IpAddr, u16>,
    pods: BTreeMap<PodName, u16>,
    nodes: BTreeMap<Box<str>, u16>,
    zones: BTreeMap<Box<str>, u16>,
}

impl Weights {
    /// The weight of an endpoint, 1 where nothing is said. With 0 it gets no new connections.
    pub fn of(&self, endpoint: &SliceEndpoint) -> u16 {
        let pod = || self.pods.get(endpoint.pod.as_ref()?);
        let node = || self.nodes.get(endpoint.node.as_deref()?);
        let zone = || self.zones.get(endpoint.zone.as_deref()?);
        self.addresses.get(&endpoint.ip).or_else(pod).or_else(node).or_else(zone).copied().unwrap_or(1)
    }
}

impl FromStr for Weights {
    type Err = String;

    /// `KEY=WEIGHT` with commas. The error names the entry that is wrong and says what is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut weights = Self::default();
        for entry in text.split(',').map(str::trim) {
            let wrong = |why: &str| {
                let entry: String = entry.chars().take(80).collect();
                format!("{entry:?} {why}")
            };
            let (key, value) =
                entry.split_once('=').map(|(key, value)| (key.trim(), value.trim())).ok_or_else(|| {
                    wrong("is no weight: write KEY=WEIGHT, with commas, such as zone/eu-1a=3,node/n7=0,10.244.1.5=2")
                })?;
            let digits = value.bytes().all(|byte| byte.is_ascii_digit());
            let weight = value.parse().ok().filter(|_| digits);
            let weight = weight.ok_or_else(|| wrong("has no weight: a whole number from 0 to 65535 is allowed"))?;
            let before = match (key.split_once('/'), parse_ip(key)) {
                (Some(("pod", name)), _) if is_name(name) => weights.pods.insert(PodName::of(name), weight),
                (Some(("node", name)), _) if is_name(name) => weights.nodes.insert(name.into(), weight),
                (Some(("zone", name)), _) if is_name(name) => weights.zones.insert(name.into(), weight),
                (None, Some(ip)) => weights.addresses.insert(ip, weight),
                _ => return Err(wrong("names no endpoint: use an IP address, pod/NAME, node/NAME or zone/NAME")),
            };
            if before.is_some() {
                return Err(wrong("is there twice"));
            }
        }
        Ok(weights)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(ip: &str, pod: &str, node: &str, zone: &str) -> SliceEndpoint {
        let word = |word: &str| Some(word).filter(|word| !word.is_empty()).map(Into::into);
        SliceEndpoint {
            ip: ip.parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            node: word(node),
            zone: word(zone),
            pod: Some(pod).filter(|pod| !pod.is_empty()).map(PodName::of),
            hints: None,
        }
    }

    #[test]
    fn the_most_specific_weight_counts() {
        let text = "zone/eu-1a=3, node/n7=0,pod/web-1 = 5,10.244.1.5=65535,fd00::1=7";
        let weights: Weights = text.parse().unwrap();
        let of = |ip, pod, node, zone| weights.of(&endpoint(ip, pod, node, zone));
        assert_eq!(of("10.244.1.5", "web-1", "n7", "eu-1a"), 65_535);
        assert_eq!(of("fd00::1", "", "", ""), 7);
        assert_eq!(of("10.244.1.6", "web-1", "n7", "eu-1a"), 5);
        assert_eq!(of("10.244.1.6", "web-2", "n7", "eu-1a"), 0);
        assert_eq!(of("10.244.1.6", "web-2", "n8", "eu-1a"), 3);
        assert_eq!(of("10.244.1.6", "web-2", "n8", "eu-1b"), 1);
        assert_eq!(of("10.244.1.6", "", "", ""), 1);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_allowed() {
        for (text, part) in [
            ("", "write KEY=WEIGHT"),
            ("zone/a=1,", "write KEY=WEIGHT"),
            ("zone/a", "write KEY=WEIGHT"),
            ("zone/a=-1", "0 to 65535"),
            ("zone/a=+1", "0 to 65535"),
            ("zone/a=65536", "0 to 65535"),
            ("zone/a=", "0 to 65535"),
            ("zone/=1", "pod/NAME, node/NAME or zone/NAME"),
            ("host/a=1", "pod/NAME, node/NAME or zone/NAME"),
            ("web-1=1", "use an IP address"),
            ("10.0.0.0/8=1", "use an IP address"),
            ("node/n=1,node/n=2", "\"node/n=2\" is there twice"),
        ] {
            let why = text.parse::<Weights>().unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
    }
}
