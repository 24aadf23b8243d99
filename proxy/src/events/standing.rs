//! What is wrong at the moment, as Events: one for each object and reason.

use std::collections::{BTreeMap, BTreeSet};

use super::{Notice, Reason, Regarding};
use crate::backend::Backend;
use crate::proxy::Proxy;
use crate::state::convert::annotations::is_fallback;
use crate::state::event::Kind;
use crate::state::objects::{Ignored, ObjectName};

/// Something that the proxy does not do at the moment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The object.
    pub regarding: Regarding,
    /// In one word.
    pub reason: Reason,
    /// The object or the part of it, as the log has it.
    pub what: String,
    /// What is wrong, and what to do about it.
    pub why: String,
}

impl Fault {
    /// As the Event says it, which names the object but not the part of it.
    fn note(&self) -> String {
        match self.reason {
            Reason::FrontendLeftOut => {
                let frontend = self.what.strip_prefix("frontend ").unwrap_or(&self.what);
                format!("{frontend} is not served: {}", self.why)
            }
            Reason::DatapathLimited => format!("{}: {}", self.what, self.why),
            _ => self.why.clone(),
        }
    }
}

/// Everything that the proxy does not do at the moment, and why: one Event for each object and reason.
pub fn standing<B: Backend>(proxy: &Proxy<B>) -> Vec<Notice> {
    let mut standing = Standing::default();
    each_fault(proxy, &mut |fault| standing.add(fault));
    standing.notices()
}

/// The same, one by one.
pub fn each_fault<B: Backend>(proxy: &Proxy<B>, each: &mut dyn FnMut(Fault)) {
    let mut give = |regarding: Regarding, reason, what: String, why: String| {
        each(Fault { regarding, reason, what, why });
    };
    for (kind, name, faults) in proxy.state().faults_by_object() {
        // The API server takes no Event about a name that it would not have; the Node's tells of it.
        let is_named = name.is_proper(matches!(kind, Kind::Service | Kind::EndpointSlice)) || kind == Kind::Manifest;
        let regarding = match kind {
            Kind::Node => Regarding::Node,
            _ if is_named => Regarding::Object(kind, name.clone()),
            _ => Regarding::Node,
        };
        for fault in faults {
            let why = if is_named { fault.why.clone() } else { fault.to_string() };
            give(regarding.clone(), reason_of(fault), fault.what.clone(), why);
        }
    }
    for (service, faults) in proxy.desired().unscheduled_by_service() {
        for fault in faults {
            give(service_of(service), reason_of(fault), fault.what.clone(), fault.why.clone());
        }
    }
    for (service, conflict) in proxy.desired().lost_claims() {
        give(service_of(&service), Reason::FrontendContested, conflict.what, conflict.why);
    }
    let left_out = proxy.backend().left_out();
    for (frontend, why) in &left_out {
        let regarding = match proxy.desired().holder(frontend) {
            Some(claim) => service_of(&claim.target.name.service),
            None => Regarding::Node,
        };
        give(regarding, Reason::FrontendLeftOut, format!("frontend {frontend}"), why.clone());
    }
    // What else the backend leaves out is about the node; its frontends have been told.
    let frontends: BTreeSet<String> = left_out.keys().map(|frontend| format!("frontend {frontend}")).collect();
    for other in proxy.backend().refused().into_iter().chain(proxy.limits()) {
        if !frontends.contains(&other.what) {
            give(Regarding::Node, Reason::DatapathLimited, other.what, other.why);
        }
    }
}

/// How many Services ask for a scheduler that they do not get.
pub(crate) fn fallbacks<B: Backend>(proxy: &Proxy<B>) -> usize {
    let of_objects = proxy
        .state()
        .faults_by_object()
        .filter(|(kind, _, faults)| *kind == Kind::Service && faults.iter().any(is_fallback));
    let of_datapath = proxy.desired().unscheduled_by_service().filter(|(_, faults)| faults.iter().any(is_fallback));
    // Who asks for what is no scheduler asks for none that the datapath could refuse: nobody counts twice.
    of_objects.count() + of_datapath.count()
}

fn service_of(name: &ObjectName) -> Regarding {
    Regarding::Object(Kind::Service, name.clone())
}

fn reason_of(fault: &Ignored) -> Reason {
    if is_fallback(fault) { Reason::SchedulerFallback } else { Reason::Ignored }
}

#[derive(Default)]
struct Standing(BTreeMap<(Regarding, Reason), String>);

impl Standing {
    fn add(&mut self, fault: Fault) {
        let one = fault.note();
        let note = self.0.entry((fault.regarding, fault.reason)).or_default();
        if !note.is_empty() {
            note.push_str("; ");
        }
        note.push_str(&one);
    }

    fn notices(self) -> Vec<Notice> {
        self.0.into_iter().map(|((regarding, reason), note)| Notice::new(regarding, reason, note)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;
    use crate::args::{CommonArgs, ServeArgs};
    use crate::backend::Report;
    use crate::conntrack::{Cleaned, UdpService};
    use crate::desired::target::Frontend;
    use crate::desired::{Desired, Touched};
    use crate::settings::Settings;
    use crate::state::convert;
    use crate::state::event::Event;

    /// A datapath that has no room for these frontends.
    #[derive(Default)]
    struct Full {
        left_out: BTreeMap<Frontend, String>,
        rows: BTreeMap<&'static str, usize>,
    }

    impl Backend for Full {
        type Error = std::convert::Infallible;

        fn name(&self) -> &'static str {
            "full"
        }

        fn sync(&mut self, _: &Desired, _: Touched) -> Result<Report, Self::Error> {
            Ok(Report::default())
        }

        fn check(&mut self, _: &Desired) -> Result<Option<Report>, Self::Error> {
            Ok(None)
        }

        fn rows(&self) -> &BTreeMap<&'static str, usize> {
            &self.rows
        }

        fn refused(&self) -> Vec<Ignored> {
            let frontends = self
                .left_out
                .iter()
                .map(|(frontend, why)| Ignored { what: format!("frontend {frontend}"), why: why.clone() });
            let device = Ignored { what: "device eth9".into(), why: "cannot be attached to".into() };
            frontends.chain([device]).collect()
        }

        fn left_out(&self) -> BTreeMap<Frontend, String> {
            self.left_out.clone()
        }

        fn clean_udp(&mut self, _: &[UdpService]) -> Result<Cleaned, Self::Error> {
            Ok(Cleaned::default())
        }
    }

    fn proxy(backend: Full, services: &[Value]) -> Proxy<Full> {
        let settings = Settings::checked(&CommonArgs::default(), &ServeArgs::default(), None, "n1").unwrap().0;
        let mut proxy = Proxy::new(settings, backend, BTreeSet::new());
        for service in services {
            let converted = convert::service(&serde_json::from_value(service.clone()).unwrap());
            let service = converted.object.unwrap();
            let (kind, name, faults) = (Kind::Service, service.name.clone(), converted.faults);
            proxy.apply(Event::Service(service));
            proxy.apply(Event::Ignored { kind, name, faults });
        }
        proxy.sync().unwrap();
        proxy
    }

    fn service(name: &str, ip: &str, scheduler: &str, protocols: &[&str]) -> Value {
        let port =
            |(at, protocol): (usize, &&str)| json!({"name": format!("p{at}"), "port": 80 + at, "protocol": protocol});
        let ports: Vec<_> = protocols.iter().enumerate().map(port).collect();
        json!({"metadata": {"name": name, "namespace": "default", "annotations": {"kubeferry.dev/scheduler": scheduler}},
            "spec": {"clusterIP": ip, "ports": ports}})
    }

    #[test]
    fn a_service_that_finds_no_room_is_told_and_the_node_of_the_rest() {
        let frontend = Frontend::Address { ip: [10, 96, 0, 1].into(), protocol: "tcp".parse().unwrap(), port: 80 };
        let backend = Full { left_out: [(frontend, "the map is full".to_owned())].into(), ..Full::default() };
        let proxy = proxy(backend, &[service("web", "10.96.0.1", "rr", &["TCP"])]);
        let web = Regarding::Object(Kind::Service, ObjectName::new("default", "web"));
        let left_out = "tcp:10.96.0.1:80 is not served: the map is full";
        assert_eq!(
            standing(&proxy),
            [
                Notice::new(Regarding::Node, Reason::DatapathLimited, "device eth9: cannot be attached to"),
                Notice::new(web, Reason::FrontendLeftOut, left_out),
            ]
        );
        assert_eq!(fallbacks(&proxy), 0);
    }

    #[test]
    fn faults_of_one_reason_are_one_notice_and_fallbacks_another() {
        let services = [
            service("web", "10.96.0.1", "roundrobin", &["QUIC", "TCP", "DCCP"]),
            service("least", "10.96.0.2", "lc", &["TCP"]),
        ];
        let proxy = proxy(Full::default(), &services);
        let told: Vec<_> = standing(&proxy).into_iter().filter(|notice| notice.regarding != Regarding::Node).collect();
        let of = |reason| told.iter().filter(|notice| notice.reason == reason).collect::<Vec<_>>();
        let ignored = of(Reason::Ignored);
        assert_eq!(ignored.len(), 1, "{told:?}");
        assert!(ignored[0].note.contains("QUIC") && ignored[0].note.contains("; ") && ignored[0].note.contains("DCCP"));
        let notes: Vec<_> = of(Reason::SchedulerFallback).iter().map(|notice| notice.note.clone()).collect();
        assert!(notes.len() == 2 && notes[0].contains("lc asks") && notes[1].contains("roundrobin"), "{notes:?}");
        assert_eq!(fallbacks(&proxy), 2);
    }
}
