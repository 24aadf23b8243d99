//! Cases from a file of flows that kube-proxy's own tests state (`conformance/README.md`), turned into flow-table cases.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::flows::{Case, Expect, Node, Row, Step, UPLINK, with_node};

/// Reads every case of a file.
///
/// # Errors
/// The file is not of this shape; the message has the case and the flow.
pub fn read(path: &Path) -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: Value = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    let cases = file["cases"].as_array().context("no list `cases`")?;
    ensure!(!cases.is_empty(), "{}: no cases", path.display());
    cases.iter().map(|value| case(value).with_context(|| format!("case {}", value["name"]))).collect()
}

fn case(value: &Value) -> Result<Case> {
    let name = text(value, "name")?;
    let node = node(&value["node"]).context("node")?;
    let states = match value["steps"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![value],
    };
    let steps = states.into_iter().map(|state| step(name, &node, &value["node"], state)).collect::<Result<_>>()?;
    Ok(Case { name: name.to_string(), node, steps })
}

fn node(value: &Value) -> Result<Node> {
    let mut fields = Map::new();
    fields.insert("name".into(), value["name"].clone());
    let mut addresses = Map::new();
    for (interface, held) in value["interfaces"].as_object().context("no `interfaces`")? {
        let held: Vec<_> = strings(held).map(|address| address.split('/').next().unwrap_or(address)).collect();
        if interface != "lo" {
            addresses.insert(interface.clone(), json!(held));
        }
    }
    ensure!(addresses.contains_key(UPLINK), "no addresses on {UPLINK}");
    fields.insert("addresses".into(), addresses.into());
    fields.insert("primary".into(), json!([value["primaryIP"]]));
    if let Some(cidrs) = value["detectLocal"]["clusterCIDR"].as_str() {
        fields.insert("cluster-cidr".into(), json!(cidrs.split(',').collect::<Vec<_>>()));
    }
    fields.insert("masquerade-all".into(), json!(value["masqueradeAll"].as_bool().unwrap_or(false)));
    fields.insert("nodeport-addresses".into(), json!(strings(&value["nodePortAddresses"]).collect::<Vec<_>>()));
    if let Some(zone) = value["topologyLabels"]["topology.kubernetes.io/zone"].as_str() {
        fields.insert("zone".into(), json!(zone));
    }
    let mark = value["masqueradeMark"]
        .as_str()
        .map_or(Ok(0x4000), |mark| u32::from_str_radix(mark.trim_start_matches("0x"), 16))?;
    if mark != 0x4000 {
        fields.insert("config".into(), json!({"nftables": {"masqueradeBit": mark.trailing_zeros()}}));
    }
    Ok(serde_json::from_value(fields.into())?)
}

fn step(case: &str, node: &Node, given: &Value, state: &Value) -> Result<Step> {
    let list = |key: &str| state[key].as_array().cloned().unwrap_or_default();
    let mut items = [list("services"), list("endpointslices")].concat();
    let cidrs: Vec<_> = strings(&given["serviceCIDRs"]).collect();
    if !cidrs.is_empty() {
        items.push(json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": cidrs},
        }));
    }
    let manifests = items.iter().map(|item| format!("---\n{item}\n")).collect::<String>();
    let rows = state["flows"].as_array().context("no `flows`")?.iter();
    let rows =
        rows.map(|flow| row(case, flow).with_context(|| format!("flow {}", flow["name"]))).collect::<Result<_>>()?;
    Ok(Step { manifests: with_node(node, &manifests)?, rows })
}

fn row(case: &str, flow: &Value) -> Result<Row> {
    // A flow may hold otherwise in another mode of kube-proxy; ours is nftables.
    let here = if flow["inMode"]["nftables"].is_object() { &flow["inMode"]["nftables"] } else { flow };
    let from = text(flow, "sourceIP")?.parse()?;
    let port = flow["destPort"].as_u64().context("no `destPort`")?;
    let to = (text(flow, "destIP")?.parse::<std::net::IpAddr>()?, u16::try_from(port)?).into();
    let protocol = text(flow, "protocol")?.parse().map_err(anyhow::Error::msg)?;
    let expect = match (here["expect"]["endpoints"].as_array(), here["expect"]["verdict"].as_str()) {
        (Some(_), None) => {
            let parsed = strings(&here["expect"]["endpoints"]).map(str::parse);
            let mut endpoints: Vec<std::net::SocketAddr> = parsed.collect::<Result<_, _>>()?;
            endpoints.sort();
            endpoints.dedup();
            // A row with the source as its only endpoint speaks of the hairpin, which is masqueraded in any case.
            let only_hairpin = endpoints.iter().all(|endpoint| endpoint.ip() == from);
            let masquerade = here["masquerade"].as_bool().context("no `masquerade`")?;
            Expect::Endpoints { endpoints, masquerade: masquerade && !only_hairpin, affinity: false }
        }
        (None, Some("reject")) => Expect::Reject,
        (None, Some("drop")) => Expect::Drop,
        (None, Some("none")) => Expect::None,
        _ => bail!("unknown expectation {}", here["expect"]),
    };
    let place = format!("{case}: {}", text(flow, "name")?);
    Ok(Row { place, from, from_port: None, iif: None, protocol, to, expect })
}

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("no `{key}`"))
}

fn strings(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}
