//! The rules: what `kubeferry plan` prints is what nft loads and what `kubeferry run --once` puts into the kernel, and a
//! second run changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Findings, Source};
use crate::netns::{Netns, output};
use crate::world::World;

/// Plans, runs and compares, in the node of `world`, which holds what the steps before left (`first`: nothing).
pub(super) fn run(source: &Source, world: &World, first: bool) -> Result<Findings> {
    let mut findings = Findings::new();
    let planned = planned(source)?;
    let synced = synced(source, world)?;
    let again = synced.is_ok().then(|| self::synced(source, world)).transpose()?;
    match (&planned, &synced) {
        (Ok(planned), Ok(synced)) => findings.extend(difference(planned, synced, first)),
        (planned, synced) => {
            findings.extend(planned.as_ref().err().map(|says| ("kubeferry plan --output nft".into(), says.clone())));
            findings.extend(synced.as_ref().err().map(|says| ("kubeferry run --once".into(), says.clone())));
        }
    }
    match (&synced, &again) {
        (Ok(once), Some(Ok(twice))) if once != twice => {
            let says = format!("{} handles or rows differ", once.symmetric_difference(twice).count());
            findings.push(("a second kubeferry run --once, which has nothing to change".into(), says));
        }
        (_, Some(Err(says))) => findings.push(("a second kubeferry run --once".into(), says.clone())),
        _ => {}
    }
    Ok(findings)
}

/// The table's content, an entry a line: chains, rules, sets, elements.
type Content = BTreeSet<String>;

/// What a command did, or what it said when it failed.
type Attempt<T> = Result<T, String>;

fn planned(source: &Source) -> Result<Attempt<Content>> {
    let plan = match succeed(output(source.offline("plan")?.args(["--output", "nft"]), "")?) {
        Ok(plan) => plan,
        Err(says) => return Ok(Err(says)),
    };
    let fresh = Netns::new("plan")?;
    match succeed(fresh.output(Command::new("nft").args(["-f", "-"]), &plan)?) {
        Ok(_) => content(&fresh).map(Ok),
        Err(says) => Ok(Err(format!("nft -f refuses it:\n{says}"))),
    }
}

fn synced(source: &Source, world: &World) -> Result<Attempt<Content>> {
    match succeed(world.node.output(source.command("run")?.arg("--once"), "")?) {
        Ok(_) => content(&world.node).map(Ok),
        Err(says) => Ok(Err(says)),
    }
}

fn succeed(output: std::process::Output) -> Attempt<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
    if output.status.success() {
        Ok(text(&output.stdout) + "\n")
    } else {
        Err(format!("{}:\n{}", output.status, text(&output.stderr)))
    }
}

/// Lists our table. What packets write (elements of dynamic sets, counters, clocks) is left out; handles stay, as field
/// `handle` at the end of an entry after a tab.
fn content(namespace: &Netns) -> Result<Content> {
    let listed: Value = serde_json::from_str(&namespace.nft(&["-j", "list", "table", "inet", "kubeferry"], "")?)?;
    let mut content = Content::new();
    let mut rules: HashMap<String, usize> = HashMap::new();
    for object in listed["nftables"].as_array().context("no list of objects")? {
        let Some((kind, body)) = object.as_object().and_then(|object| object.iter().next()) else { continue };
        // The seal tells what the kernel made of the skeleton: a plan cannot know it.
        let is_seal = object["chain"]["name"].as_str().is_some_and(|name| name.starts_with("sealed-"));
        if kind == "metainfo" || is_seal {
            continue;
        }
        let mut body = body.clone();
        let fields = body.as_object_mut().context("an object without fields")?;
        let handle = fields.remove("handle").unwrap_or_default();
        let elements = fields.remove("elem").unwrap_or_default();
        // nft 1.0.6 does not say "dynamic" in JSON; the sets that packets write are these.
        let dynamic = fields.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with("affinity"));
        let name = format!("{} {}", kind, fields.get("name").and_then(Value::as_str).unwrap_or_default());
        if kind == "rule" {
            // Rules of a chain stand in order.
            let number = rules.entry(fields["chain"].to_string()).or_default();
            *number += 1;
            fields.insert("number".into(), (*number).into());
        }
        strip_clocks(&mut body);
        content.insert(format!("{kind} {body}\t{handle}"));
        for mut element in elements.as_array().cloned().unwrap_or_default().into_iter().filter(|_| !dynamic) {
            strip_clocks(&mut element);
            content.insert(format!("element of {name} {element}"));
        }
    }
    Ok(content)
}

fn strip_clocks(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for clock in ["expires", "packets", "bytes", "used"] {
                fields.remove(clock);
            }
            fields.values_mut().for_each(strip_clocks);
        }
        Value::Array(values) => values.iter_mut().for_each(strip_clocks),
        _ => {}
    }
}

/// An element of an endpoint map without its place among the slots of its list: with most schedulers an endpoint keeps the
/// slot it has, so after a change the order is another than that of a fresh plan. The last part of the key is the slot; the Local list
/// begins at 2^24.
fn without_slot(entry: &str) -> String {
    let parsed = entry
        .strip_prefix("element of map ")
        .and_then(|rest| rest.split_once(' '))
        .filter(|(map, _)| map.contains("endpoints") || map.starts_with("turns"))
        .and_then(|(map, element)| Some((map, serde_json::from_str::<Value>(element).ok()?)));
    let Some((map, mut element)) = parsed else { return entry.to_string() };
    let slot = element[0]["concat"].as_array_mut().and_then(Vec::pop).and_then(|slot| slot.as_u64());
    let list = if slot.is_some_and(|slot| slot < 1 << 24) { "cluster" } else { "local" };
    format!("element of map {map} {list} {element}")
}

/// Where plan and kernel differ. Chains that an earlier step needed may stay.
fn difference(planned: &Content, synced: &Content, first: bool) -> Option<(String, String)> {
    let without_handle = |content: &Content| -> Content {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        content
            .iter()
            .map(|line| line.rsplit_once('\t').map_or(line.as_str(), |(entry, _)| entry))
            .map(|entry| if first { entry.to_string() } else { without_slot(entry) })
            // By its weight an endpoint may have several slots.
            .for_each(|entry| *counts.entry(entry).or_default() += 1);
        let counted = |(entry, count)| if count == 1 { entry } else { format!("{entry}, {count} times") };
        counts.into_iter().map(counted).collect()
    };
    let (planned, synced) = (without_handle(planned), without_handle(synced));
    let may_stay = |line: &&String| !first && (line.starts_with("chain ") || line.starts_with("rule "));
    let missing = planned.difference(&synced).map(|line| format!("- {line}"));
    let extra = synced.difference(&planned).filter(|line| !may_stay(line)).map(|line| format!("+ {line}"));
    let lines: Vec<_> = missing.chain(extra).collect();
    if lines.is_empty() {
        return None;
    }
    let shown = lines.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    let what = "the kernel after kubeferry run --once beside kubeferry plan".to_string();
    Some((what, format!("{} entries differ (- planned, + in the kernel):\n{shown}", lines.len())))
}
