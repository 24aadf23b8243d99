//! What became of a packet, beside the model's answer.

use super::journey::{End, Journey, Way};
use super::packet::Ends;
use crate::facts::TraceFacts;

/// How the two go together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// The packet went where the model sends it.
    Agrees,
    /// It did not.
    Differs(String),
    /// What was seen does not say.
    Open(&'static str),
}

/// Compares. The packet is the first of a connection.
pub fn judge(journey: &Journey, told: &TraceFacts) -> Judgement {
    let differs = |text: String| Judgement::Differs(text);
    match (&journey.end, told.outcome.as_str()) {
        (End::Unseen, _) => Judgement::Open("the packet was not seen to its end"),
        (End::Stopped { .. }, _) => Judgement::Open("somebody else's rules have stopped the packet"),
        (End::Refused, "reject") | (End::Dropped, "drop") => Judgement::Agrees,
        (End::Went { ends, .. }, "none") if ends.to == journey.came.to => Judgement::Agrees,
        (End::Went { ends, way }, "endpoints") if goes_to(told, ends) => {
            let rewritten = ends.from.ip() != journey.came.from.ip();
            match (rewritten, masquerades(told, &journey.came, ends)) {
                // A socket that is translated before it has a source.
                _ if !journey.came.has_source() => Judgement::Agrees,
                (true, Some(false)) => {
                    differs(format!("the source is kept by the model, and became {}", ends.from.ip()))
                }
                // The node's own address may be what it is rewritten to, and what a process here gets passes no hook that rewrites it.
                (false, Some(true)) if journey.iif.is_some() && *way != Way::Here => {
                    differs("the source is masqueraded by the model, and was kept".to_owned())
                }
                _ => Judgement::Agrees,
            }
        }
        (End::Went { ends, .. }, _) => differs(format!("the packet went to {}", ends.to)),
        (End::Refused, _) => differs("the packet was refused".to_owned()),
        (End::Dropped, _) => differs("the packet was dropped".to_owned()),
    }
}

/// Whether it may go there.
fn goes_to(told: &TraceFacts, ends: &Ends) -> bool {
    let to = ends.to.to_string();
    told.endpoints.contains(&to) || told.also.contains(&to)
}

/// Whether the source of what goes there is rewritten; `None`: the model does not say.
fn masquerades(told: &TraceFacts, came: &Ends, went: &Ends) -> Option<bool> {
    if went.to.ip() == came.from.ip() {
        return Some(true);
    }
    // Of a single endpoint that is the source itself it says so for that reason alone.
    let only_itself = told.hairpin.is_some() && told.endpoints.len() == 1;
    told.masquerade.filter(|_| !only_itself)
}

/// The model's answer in a few words.
pub fn short(told: &TraceFacts) -> String {
    if told.outcome != "endpoints" {
        return told.outcome.clone();
    }
    let source = match &told.hairpin {
        _ if told.masquerade.is_none() => return told.endpoints.join(" | "),
        _ if told.masquerade == Some(true) => ", masqueraded".to_owned(),
        Some(hairpin) => format!(", masqueraded if {hairpin}"),
        None => ", source kept".to_owned(),
    };
    let known = match told.also.is_empty() {
        true => String::new(),
        false => format!(", or of a known client {}", told.also.join(" | ")),
    };
    told.endpoints.join(" | ") + &known + &source
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::state::objects::Protocol;

    fn ends(from: &str, to: &str) -> Ends {
        Ends { protocol: Protocol::Tcp, from: from.parse().unwrap(), to: to.parse().unwrap() }
    }

    fn journey(end: End) -> Journey {
        let came = ends("10.244.1.7:40000", "10.96.0.50:80");
        Journey { came, iif: Some("pods".to_owned()), steps: Vec::new(), end }
    }

    fn told(outcome: &str, endpoint: &str, masquerade: bool, hairpin: bool) -> TraceFacts {
        serde_json::from_value(json!({
            "outcome": outcome,
            "endpoints": [endpoint],
            "masquerade": masquerade,
            "hairpin": hairpin.then_some(endpoint),
            "service": "default/web:http",
            "why": [],
        }))
        .unwrap()
    }

    #[test]
    fn what_was_seen_is_held_to_what_was_told() {
        let endpoint = "10.244.2.1:8080";
        let kept = told("endpoints", endpoint, false, false);
        let rewritten = told("endpoints", endpoint, true, false);
        let hairpin = told("endpoints", "10.244.1.7:8080", false, true);
        let [reject, drop, none] = ["reject", "drop", "none"].map(|outcome| told(outcome, "", false, false));
        let went = |from, to| End::Went { ends: ends(from, to), way: Way::Out("eth0".to_owned()) };
        let right = went("10.244.1.7:40000", "10.244.2.1:8080");
        let here = End::Went { ends: ends("10.244.1.7:40000", "10.244.2.1:8080"), way: Way::Here };
        let masqueraded = went("192.0.2.1:1234", "10.244.2.1:8080");
        let as_it_came = went("10.244.1.7:40000", "10.96.0.50:80");
        for (end, told, agrees) in [
            (&right, &kept, true),
            (&right, &rewritten, false),
            (&here, &rewritten, true),
            (&masqueraded, &rewritten, true),
            (&masqueraded, &kept, false),
            (&went("10.244.1.7:40000", "10.244.2.9:8080"), &kept, false),
            (&went("192.0.2.1:1", "10.244.1.7:8080"), &hairpin, true),
            (&went("10.244.1.7:1", "10.244.1.7:8080"), &hairpin, false),
            (&as_it_came, &none, true),
            (&as_it_came, &kept, false),
            (&right, &none, false),
            (&End::Refused, &reject, true),
            (&End::Refused, &drop, false),
            (&End::Dropped, &drop, true),
            (&End::Dropped, &kept, false),
        ] {
            let judgement = judge(&journey(end.clone()), told);
            assert_eq!(judgement == Judgement::Agrees, agrees, "{end:?} {told:?} {judgement:?}");
        }
        assert!(matches!(judge(&journey(End::Unseen), &kept), Judgement::Open(_)));
    }

    #[test]
    fn a_known_client_may_keep_its_endpoint() {
        let went = |to| End::Went { ends: ends("10.244.1.7:40000", to), way: Way::Out("eth0".to_owned()) };
        let also = vec!["10.244.2.2:8080".to_owned()];
        let hashed = TraceFacts { also: also.clone(), ..told("endpoints", "10.244.2.1:8080", false, false) };
        let itself = TraceFacts { also, ..told("endpoints", "10.244.1.7:8080", true, true) };
        for (told, to, agrees) in [
            (&hashed, "10.244.2.1:8080", true),
            (&hashed, "10.244.2.2:8080", true),
            (&hashed, "10.244.2.3:8080", false),
            (&itself, "10.244.2.2:8080", true),
            (&itself, "10.244.1.7:8080", false),
        ] {
            assert_eq!(judge(&journey(went(to)), told) == Judgement::Agrees, agrees, "{to} {told:?}");
        }
        assert_eq!(short(&hashed), "10.244.2.1:8080, or of a known client 10.244.2.2:8080, source kept");
    }

    #[test]
    fn of_a_source_that_is_not_known_nothing_is_said() {
        let mut socket = journey(End::Refused);
        socket.came = ends("[::]:0", "10.96.0.50:80");
        socket.end = End::Went { ends: ends("[::]:0", "10.244.2.1:8080"), way: Way::On };
        let told = TraceFacts { masquerade: None, ..told("endpoints", "10.244.2.1:8080", false, false) };
        assert_eq!((judge(&socket, &told), short(&told).as_str()), (Judgement::Agrees, "10.244.2.1:8080"));
    }
}
