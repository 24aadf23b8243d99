//! Questions to a proxy in a network namespace.

use std::time::Duration;

use kubeferry::status::{Response, get};
use kubeferry_tests::netns::Netns;
use serde_json::Value;

/// The answer of a path at the metrics address.
pub fn ask(node: &Netns, path: &str) -> Response {
    node.run(|| get(&format!("http://127.0.0.1:10249{path}"), Duration::from_secs(30)).unwrap()).unwrap()
}

/// The JSON of a path; `None` while nobody serves there.
pub fn try_json(node: &Netns, path: &str) -> Option<Value> {
    let asked = || get(&format!("http://127.0.0.1:10249{path}"), Duration::from_secs(30));
    let response = node.run(asked).unwrap().ok().filter(|response| response.code == 200)?;
    Some(serde_json::from_str(&response.body).unwrap())
}

/// The same, which has to be there.
pub fn json(node: &Netns, path: &str) -> Value {
    try_json(node, path).unwrap_or_else(|| panic!("{path}: {:?}", ask(node, path)))
}
