//! Where rows were written a moment ago: a packet of then may have met others than the model knows now.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};

use crate::desired::Touched;
use crate::desired::target::Frontend;
use crate::desired::trace::Flow;
use crate::state::objects::Family;

/// For how long it is remembered.
const KEPT: SignedDuration = SignedDuration::from_secs(10);
/// Frontends and addresses that are remembered one by one; where more are written, all are taken to be.
const MOST: usize = 20_000;

/// When rows were written, by what they are for.
#[derive(Debug, Default)]
pub struct Written {
    all: Option<Timestamp>,
    frontends: BTreeMap<Frontend, Timestamp>,
    cluster_ips: BTreeMap<IpAddr, Timestamp>,
}

impl Written {
    /// Rows of these were written; `all`: maybe of others, too.
    pub fn note(&mut self, touched: Touched, all: bool, now: Timestamp) {
        let is_young = |at: &Timestamp| now.duration_since(*at) < KEPT;
        self.frontends.retain(|_, at| is_young(at));
        self.cluster_ips.retain(|_, at| is_young(at));
        let is_many = self.frontends.len() + touched.frontends.len() > MOST;
        if all || touched.node || is_many || self.cluster_ips.len() + touched.cluster_ips.len() > MOST {
            *self = Self { all: Some(now), ..Self::default() };
            return;
        }
        self.frontends.extend(touched.frontends.into_iter().map(|frontend| (frontend, now)));
        self.cluster_ips.extend(touched.cluster_ips.into_iter().map(|ip| (ip, now)));
    }

    /// When rows that say where this goes were last written; `None`: that is long ago.
    pub fn when(&self, flow: &Flow, now: Timestamp) -> Option<Timestamp> {
        let frontends = frontends(flow).into_iter().filter_map(|frontend| self.frontends.get(&frontend));
        let last = frontends.chain(self.cluster_ips.get(&flow.to.ip())).chain(&self.all).max()?;
        (now.duration_since(*last) < KEPT).then_some(*last)
    }

    /// Whether any of these are rows that say where this goes.
    pub fn concerns(touched: &Touched, flow: &Flow) -> bool {
        touched.node
            || touched.cluster_ips.contains(&flow.to.ip())
            || frontends(flow).iter().any(|frontend| touched.frontends.contains(frontend))
    }
}

/// What of a Service a packet may have met.
fn frontends(flow: &Flow) -> [Frontend; 2] {
    let (ip, protocol, port) = (flow.to.ip(), flow.protocol, flow.to.port());
    [Frontend::Address { ip, protocol, port }, Frontend::NodePort { family: Family::of(ip), protocol, port }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::objects::Protocol;

    fn flow(to: &str) -> Flow {
        let from = "10.244.1.7".parse().unwrap();
        Flow { from, from_port: None, iif: None, protocol: Protocol::Tcp, to: to.parse().unwrap() }
    }

    fn touched(frontend: Frontend, ip: &str) -> Touched {
        let ips = [ip.parse().unwrap()].into();
        Touched { frontends: [frontend].into(), cluster_ips: ips, ..Touched::default() }
    }

    #[test]
    fn only_what_was_written_is_remembered_and_not_for_long() {
        let [web, _] = frontends(&flow("10.96.0.1:80"));
        let [_, node_port] = frontends(&flow("172.18.0.2:30080"));
        let now = Timestamp::UNIX_EPOCH;
        let mut written = Written::default();
        written.note(touched(web, "10.96.0.1"), false, now);
        let later = now + SignedDuration::from_secs(3);
        written.note(touched(node_port, "10.96.0.2"), false, later);
        let when = |to: &str| written.when(&flow(to), later);
        assert_eq!((when("10.96.0.1:80"), when("10.96.0.2:1"), when("10.96.0.3:80")), (Some(now), Some(later), None));
        assert_eq!((when("10.96.0.1:81"), when("172.18.0.9:30080")), (Some(now), Some(later)));
        assert_eq!(written.when(&flow("10.96.0.1:80"), now + KEPT), None);
        assert!(Written::concerns(&touched(web, "10.96.0.9"), &flow("10.96.0.1:80")));
        assert!(!Written::concerns(&touched(web, "10.96.0.9"), &flow("10.96.0.2:80")));
        written.note(Touched { node: true, ..Touched::default() }, false, later);
        assert_eq!(written.when(&flow("10.96.0.3:80"), later), Some(later));
    }
}
