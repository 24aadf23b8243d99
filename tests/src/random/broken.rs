//! Objects that cannot be decoded. Their names are nobody else's: what is in force of an object that breaks depends on what it was
//! before, and the kernel's rows would, too.

use serde_json::{Value, json};

use super::pools::FAMILIES;
use super::rng::Rng;
use super::{service, slice};

/// Values of a kind that no field of ours has.
fn wrong(rng: &mut Rng) -> Value {
    rng.pick(&[json!("all\n\"} ; flush ruleset #"), json!(7.5), json!([[]]), json!([null]), json!(true)]).clone()
}

/// One more of them: a Service or a slice that would be one of the others', but for one field.
pub(super) fn object(rng: &mut Rng, number: usize, of: usize) -> Value {
    let (mut object, fields) = if rng.chance(50) {
        (service::service(rng, of), [["spec", "ports"], ["spec", "clusterIPs"], ["metadata", "annotations"]])
    } else {
        let family = rng.pick(&FAMILIES);
        (slice::slice(rng, of, family, 0), [["", "endpoints"], ["", "ports"], ["metadata", "labels"]])
    };
    object["metadata"]["name"] = json!(format!("{BROKEN}{number}"));
    let [part, field] = *rng.pick(&fields);
    let wrong = wrong(rng);
    if part.is_empty() {
        object[field] = wrong;
    } else {
        object[part][field] = wrong;
    }
    object
}

/// What their names begin with.
const BROKEN: &str = "broken-";

/// Whether an object is one of them.
pub(super) fn is_one(object: &Value) -> bool {
    object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(BROKEN))
}
