//! The answer of whoever has the proxy's port, for the fuzzer.

use jiff::Timestamp;

use super::client::parse;
use super::print;
use crate::facts::{NodeFacts, ServiceFacts};
use crate::running;

/// Reads an answer as the status and as other documents; what is shown of it.
pub(crate) fn shown(bytes: &[u8]) -> Vec<String> {
    let Some(answer) = parse(bytes) else { return vec![] };
    // Other commands ask for these; they show fields of it.
    let node = running::read::<NodeFacts>(&answer.body, 300).map(|node| serde_json::to_string(&node));
    let service = running::read::<ServiceFacts>(&answer.body, 300).map(|service| serde_json::to_string(&service));
    let others = [node, service].into_iter().flatten().flatten();
    let status = match answer.status_document("http://127.0.0.1:10249/status") {
        Ok(status) => {
            let now = Timestamp::from_second(1_800_000_000).unwrap_or_default();
            vec![print(&status, now), format!("{:?}", status.problem())]
        }
        Err(error) => vec![error.to_string()],
    };
    status.into_iter().chain(others).collect()
}
