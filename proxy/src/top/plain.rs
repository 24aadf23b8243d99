//! The same as plain text: for a file, a pipe, or a reader of screens.

use std::fmt::Write;

use super::data::Data;
use super::lately::Spread;
use super::list::texts;
use super::view::View;
use super::words::{came, counted, order_name, parts, percent, port, promised, state};
use crate::facts::{PortFacts, ServiceFacts, ServicePage};

/// Lines.
pub fn text(view: &View, data: &Data) -> String {
    let mut out = parts(data).join("\n") + "\n";
    if let Some(page) = &data.list {
        list(&mut out, view, page);
    }
    match &data.service {
        Some(Some(facts)) => service(&mut out, facts, &data.lately),
        Some(None) => out.push_str("\nthis Service is not served here\n"),
        None => {}
    }
    out
}

// Writing to a String cannot fail.

fn list(out: &mut String, view: &View, page: &ServicePage) {
    let more = if page.found > page.items.len() { format!(", the first {}", page.items.len()) } else { String::new() };
    let _ = writeln!(out, "{} of {} Services by {}{more}\n", page.found, page.total, order_name(view.sort));
    let heads = ["SERVICE", "HEALTH", "READY", "CONN/S", "CONNECTIONS", "ACTIVE", "SCHEDULER"];
    let rows = page.items.iter().map(texts);
    columns(out, heads, rows);
}

fn service(out: &mut String, facts: &ServiceFacts, lately: &[Spread]) {
    let nothing = Spread::default();
    let reason = facts.health.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let state = facts.health.state.as_str();
    let _ = writeln!(out, "\n{}/{} {} {state}{reason}", facts.namespace, facts.name, facts.kind);
    let policies = &facts.policies;
    let affinity = policies.affinity_seconds.map(|time| format!(", clients kept {time} s")).unwrap_or_default();
    let _ = writeln!(out, "traffic policy: internal {}, external {}{affinity}", policies.internal, policies.external);
    for (at, one) in facts.ports.iter().enumerate() {
        let spread = lately.get(at).unwrap_or(&nothing);
        let _ = writeln!(out, "\n{}, {}, {} ready{}", port(one), one.scheduler, one.counts.ready, came(one, spread));
        endpoints(out, one, spread);
    }
}

fn endpoints(out: &mut String, port: &PortFacts, spread: &Spread) {
    let heads = ["ENDPOINT", "NODE", "STATE", "WEIGHT", "LATELY", "OVERALL", "PROMISED", "CONNECTIONS", "ACTIVE"];
    let rows = port.endpoints.iter().map(|endpoint| {
        [
            endpoint.address.clone(),
            endpoint.node.clone().unwrap_or_else(|| "-".to_owned()),
            state(endpoint).to_owned(),
            endpoint.weight.to_string(),
            percent(spread.share(&endpoint.address)),
            percent(endpoint.share),
            promised(endpoint),
            counted(endpoint.connections),
            counted(endpoint.active),
        ]
    });
    columns(out, heads, rows);
}

/// Rows with their columns below each other.
fn columns<const N: usize>(out: &mut String, heads: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..N).map(width).collect();
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(text, width)| format!("{text:<width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
}
