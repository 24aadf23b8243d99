//! The status as tables for people.

use std::fmt::Write;

use jiff::{SignedDuration, Timestamp};

use super::Status;

/// Lines for a terminal; `now` is what ages are counted to.
pub fn print(status: &Status, now: Timestamp) -> String {
    let mut out = String::new();
    let health = status.problem().unwrap_or_else(|| "healthy".to_owned());
    let mut facts = vec![("health", health)];
    if !status.node_eligible {
        facts.push((
            "node",
            "gets no new traffic from load balancers: unknown, being deleted, or to be deleted".to_owned(),
        ));
    }
    if let Some(started) = status.started {
        facts.push(("started", format!("{} ago", age(started, now))));
    }
    if let Some(sync) = &status.last_sync {
        let kind = if sync.full { "full" } else { "partial" };
        let result = if sync.error.is_some() { "failed" } else { "ok" };
        let took = seconds(sync.took);
        let written = plural(sync.rows_written as u64, "row", "rows");
        facts.push(("last sync", format!("{} ago, {result}, {kind}, {written} written in {took}", age(sync.at, now))));
    }
    let failures = plural(status.failures, "failure", "failures");
    facts.push((
        "syncs",
        format!("{}, {failures}, {} waiting", status.syncs, plural(status.pending as u64, "change", "changes")),
    ));
    facts.push(("drift", drift(status, now)));
    let rows: Vec<String> = status.rows.iter().filter(|(_, n)| **n > 0).map(|(map, n)| format!("{map} {n}")).collect();
    facts.push(("rows", if rows.is_empty() { "none".to_owned() } else { rows.join(", ") }));
    facts.extend(status.datapath.iter().map(|(name, text)| (name.as_str(), text.clone())));
    let settings: Vec<String> = status.settings.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !settings.is_empty() {
        facts.push(("settings", settings.join(" ")));
    }
    // Writing to a String cannot fail.
    let _ = writeln!(out, "kubeferry {} on node {}, {}\n", status.version, status.node, status.backend);
    for (name, text) in facts {
        let _ = writeln!(out, "{name:<10}{text}");
    }
    services(&mut out, status);
    endpoints(&mut out, status);
    if !status.ignored.is_empty() {
        out.push_str("\nLeft out:\n");
        for ignored in &status.ignored {
            let _ = writeln!(out, "  {}: {}", ignored.what, ignored.why);
        }
        let more = status.ignored_total.saturating_sub(status.ignored.len());
        if more > 0 {
            let _ = writeln!(
                out,
                "  and {more} more: the log has them, and /api/v1/services/NAMESPACE/NAME those of a Service"
            );
        }
    }
    out
}

fn drift(status: &Status, now: Timestamp) -> String {
    let drift = &status.drift;
    let mut text = match drift.last_repair {
        Some(last) => {
            let times = plural(drift.repairs, "repair", "repairs");
            format!("{times} of {}, the last {} ago", plural(drift.rows, "row", "rows"), age(last, now))
        }
        None if drift.unrepaired > 0 => "none repaired".to_owned(),
        None => "none found".to_owned(),
    };
    if drift.unrepaired > 0 {
        let rows = plural(drift.unrepaired as u64, "row differs", "rows differ");
        let _ = write!(text, "; {rows} and cannot be repaired");
    }
    if let Some(checked) = drift.last_check {
        let _ = write!(text, "; looked {} ago", age(checked, now));
    }
    text
}

fn services(out: &mut String, status: &Status) {
    if status.services.is_empty() {
        out.push_str("\nNo Services.\n");
        return;
    }
    let mut table = vec![["SERVICE", "TYPE", "PORT", "READY", "HERE", "SCHEDULER", "FRONTENDS"].map(str::to_owned)];
    for service in &status.services {
        for (index, port) in service.ports.iter().enumerate() {
            let first = |text: &String| if index == 0 { text.clone() } else { String::new() };
            let name =
                if port.name.is_empty() { port.protocol.clone() } else { format!("{} {}", port.name, port.protocol) };
            table.push([
                first(&service.name),
                first(&service.kind),
                name,
                port.ready.to_string(),
                port.local.to_string(),
                port.scheduler.clone(),
                port.frontends.join(" "),
            ]);
        }
    }
    columns(out, &table);
}

/// Endpoints in the table, at most.
const MOST_ENDPOINTS: usize = 50;

/// The endpoints that got connections, those with the most active first.
fn endpoints(out: &mut String, status: &Status) {
    let ports = status.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    let mut all: Vec<_> = ports
        .flat_map(|(service, port)| port.endpoints.iter().map(move |endpoint| (service, port, endpoint)))
        .collect();
    if all.is_empty() {
        return;
    }
    all.sort_by_key(|(.., endpoint)| std::cmp::Reverse((endpoint.active, endpoint.connections)));
    let mut table = vec![["ENDPOINT", "ACTIVE", "CONNECTIONS", "SHARE", "SCHEDULER", "SERVICE"].map(str::to_owned)];
    for (service, port, endpoint) in all.iter().take(MOST_ENDPOINTS) {
        let name = if port.name.is_empty() { String::new() } else { format!(":{}", port.name) };
        table.push([
            endpoint.address.clone(),
            if status.counts_active { endpoint.active.to_string() } else { "-".to_owned() },
            endpoint.connections.to_string(),
            format!("{:.1} %", endpoint.share * 100.0),
            port.scheduler.clone(),
            format!("{}{name} {}", service.name, port.protocol),
        ]);
    }
    columns(out, &table);
    if all.len() > MOST_ENDPOINTS {
        let _ = writeln!(out, "and {} more endpoints: --output json", all.len() - MOST_ENDPOINTS);
    }
}

/// A table; all columns but the last are as wide as their longest text.
fn columns<const N: usize>(out: &mut String, table: &[[String; N]]) {
    out.push('\n');
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N - 1).map(width).collect();
    for row in table {
        let mut line = String::new();
        for (text, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{text:<width$}  ");
        }
        line.push_str(&row[N - 1]);
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

fn plural(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// The largest two units: `3s`, `2m5s`, `4h2m`, `3d4h`.
fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).max(SignedDuration::ZERO).as_secs();
    let two = |large: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{large}{unit}") } else { format!("{large}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..=59 => format!("{seconds}s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds / 60 % 60, "m"),
        _ => two(seconds / 86_400, "d", seconds / 3_600 % 24, "h"),
    }
}

fn seconds(seconds: f64) -> String {
    if seconds < 1.0 { format!("{:.1}ms", seconds * 1_000.0) } else { format!("{seconds:.2}s") }
}
