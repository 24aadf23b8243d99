//! Rows as lines and as JSON for people and programs: `kubeferry plan`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::{Address, Config, Frontend as Row, FrontendKey, Prefix, RangeKey, Slot};
use serde_json::{Value, json};

use super::diff::Writes;
use super::rows::{self, Fixed, Range, ServiceRows, Wanted, frontend_of};
use crate::desired::Desired;
use crate::scheduler::Scheduler;
use crate::scheduler::slots::slots;
use crate::state::objects::Ignored;

const FRONTEND: [(u32, &str); 5] = [
    (Row::REFUSE, "refuse"),
    (Row::EXTERNAL, "external"),
    (Row::LOCAL, "local"),
    (Row::RANGED, "ranged"),
    (Row::NESTED, "nested"),
];
const ADDRESS: [(u32, &str); 3] =
    [(address_is::HELD, "held"), (address_is::NODE_PORTS, "node-ports"), (address_is::CLUSTER_IP, "cluster-ip")];
const CONFIG: [(u32, &str); 9] = [
    (Config::MASQUERADE_ALL, "masquerade-all"),
    (Config::DETECTOR4, "detector-ipv4"),
    (Config::DETECTOR6, "detector-ipv6"),
    (Config::BY_DEVICE, "pods-by-device"),
    (Config::ALL_NODE_PORTS4, "node-ports-everywhere-ipv4"),
    (Config::ALL_NODE_PORTS6, "node-ports-everywhere-ipv6"),
    (Config::PODS_AT_CONNECT, "pods-at-connect"),
    (Config::ALL_AT_CONNECT, "all-at-connect"),
    (Config::ESTABLISHED_ELSEWHERE, "established-elsewhere"),
];

/// How slots are drawn, by number.
const DRAW: [&str; 8] =
    ["random", "turn", "source", "source-and-port", "destination", "least", "shortest", "never-queue"];

fn drawn(how: u32) -> String {
    format!(" draw {}", DRAW.get(how as usize).copied().unwrap_or("?"))
}

/// What the tables of each service port with scheduler `mh` cost: its name, and rows of `slots` for its lists.
pub fn maglev(desired: &Desired) -> impl Iterator<Item = (String, usize)> {
    let tables = desired.targets().filter(|(_, target, _)| target.schedule.scheduler == Scheduler::Mh);
    tables.map(|(_, target, _)| {
        let endpoints = &target.endpoints;
        let lists = [(&endpoints.cluster, &endpoints.cluster_weights), (&endpoints.local, &endpoints.local_weights)];
        let rows = lists.map(|(list, weights)| slots(&target.schedule, list, weights).len()).iter().sum();
        (format!("{} ({} {})", target.name, target.name.protocol, target.family.as_str()), rows)
    })
}

/// Every row as lines.
pub fn lines(desired: &Desired, fixed: &Fixed) -> String {
    let wanted = Wanted::all(desired);
    let costs: String = maglev(desired).map(|(name, rows)| format!("# mh: {name}: {rows} rows of slots\n")).collect();
    let mut out = costs + &config_line(&rows::config(desired, fixed).0);
    for (number, service) in &wanted.services {
        // Writing to a String cannot fail.
        let name = wanted.names.get(number).map_or("", String::as_str);
        let _ = writeln!(out, "service {number:016x} {name}{}", drawn(service.draw));
        for (key, row) in wanted.frontends.iter().filter_map(|(key, row)| Some((key, row.as_ref()?))) {
            if row.service == *number {
                let affinity = if row.affinity > 0 { format!(" affinity {} s", row.affinity) } else { String::new() };
                let _ = writeln!(out, "  frontend {}{}{affinity}", frontend(key), words(row.flags, &FRONTEND));
            }
        }
        for (name, list) in ["cluster", "local"].into_iter().zip(&service.lists) {
            let slots: Vec<String> = list.iter().map(slot).collect();
            let _ = writeln!(out, "  {name} {}", if slots.is_empty() { "-".to_owned() } else { slots.join(" ") });
        }
        let ranges: Vec<String> = service.ranges.iter().map(range).collect();
        if !ranges.is_empty() {
            let _ = writeln!(out, "  source ranges {}", ranges.join(" "));
        }
    }
    for (address, bits) in rows::addresses(desired) {
        let _ = writeln!(out, "address {}{}", IpAddr::from(address), words(bits, &ADDRESS));
    }
    out
}

/// What is wanted and has no place, as comments.
pub fn left_out(all: &[Ignored]) -> String {
    all.iter().map(|one| format!("# left out: {}: {}\n", one.what, one.why)).collect()
}

/// Every row as one JSON document; `left_out` are those of them that have no place.
pub fn document(desired: &Desired, fixed: &Fixed, left_out: &[Ignored]) -> Value {
    let wanted = Wanted::all(desired);
    let (config, _) = rows::config(desired, fixed);
    let frontends = |number: u64| -> Vec<Value> {
        let of = wanted.frontends.iter().filter_map(|(key, row)| Some((key, row.as_ref()?)));
        of.filter(|(_, row)| row.service == number)
            .map(|(key, row)| json!({ "frontend": frontend(key), "flags": list(row.flags, &FRONTEND), "affinity": row.affinity }))
            .collect()
    };
    let service = |(number, service): (&u64, &ServiceRows)| {
        let [cluster, local] = [0, 1].map(|n: usize| service.lists[n].iter().map(slot).collect::<Vec<_>>());
        json!({
            "number": format!("{number:016x}"),
            "name": wanted.names.get(number),
            "draw": DRAW.get(service.draw as usize),
            "frontends": frontends(*number),
            "cluster": cluster,
            "local": local,
            "sourceRanges": service.ranges.iter().map(range).collect::<Vec<_>>(),
        })
    };
    let address = |(address, bits): (Address, u32)| (IpAddr::from(address).to_string(), list(bits, &ADDRESS));
    json!({
        "config": {
            "flags": list(config.flags, &CONFIG),
            "pods": config.pods.iter().filter_map(prefix).collect::<Vec<_>>(),
            "serviceCIDRs": cidrs(&config),
            "masqueradePorts": [fixed.masquerade_ports.0, fixed.masquerade_ports.1],
        },
        "maglev": maglev(desired).map(|(name, rows)| json!({ "service": name, "rows": rows })).collect::<Vec<_>>(),
        "leftOut": left_out.iter().map(|one| json!({ "what": one.what, "why": one.why })).collect::<Vec<_>>(),
        "services": wanted.services.iter().map(service).collect::<Vec<_>>(),
        "addresses": rows::addresses(desired).into_iter().map(address).collect::<BTreeMap<_, _>>(),
    })
}

/// What a sync would write, a line for each row.
pub fn changes(writes: &Writes) -> String {
    let mut out = String::new();
    let mut line = |sign: char, text: String| {
        let _ = writeln!(out, "{sign} {text}");
    };
    let addresses = writes.less_addresses.iter().chain(&writes.addresses);
    addresses.for_each(|(address, bits)| match bits {
        0 => line('-', format!("address {}", IpAddr::from(*address))),
        bits => line('+', format!("address {}{}", IpAddr::from(*address), words(*bits, &ADDRESS))),
    });
    writes.slots.iter().for_each(|(number, one)| line('+', format!("slot {number} {}", slot(one))));
    writes.gone_ranges.iter().for_each(|one| line('-', format!("source range {}", range(one))));
    writes.ranges.iter().for_each(|one| line('+', format!("source range {}", range(one))));
    writes.gone_members.iter().for_each(|key| line('-', format!("member {}", end(key.address, key.port))));
    writes.members.keys().for_each(|key| line('+', format!("member {}", end(key.address, key.port))));
    writes.gone_frontends.iter().for_each(|key| line('-', format!("frontend {}", frontend(key))));
    for (key, row) in &writes.frontends {
        let lists = [("cluster", row.cluster_first, row.cluster_count), ("local", row.local_first, row.local_count)];
        let lists = lists.map(|(name, first, count)| format!(" {name} {count} from slot {first}")).concat();
        let draw = drawn(row.draw);
        line('+', format!("frontend {}{}{lists}{draw}", frontend(key), words(row.flags, &FRONTEND)));
    }
    if let Some(config) = &writes.config {
        line('+', config_line(config).trim_end().to_owned());
    }
    out
}

fn config_line(config: &Config) -> String {
    let pods: Vec<String> = config.pods.iter().filter_map(prefix).collect();
    let (first, ports) = (config.masquerade_first, config.masquerade_ports);
    format!(
        "config{} pods {} service CIDRs {} masquerade ports {first}-{} node's own frontends {}\n",
        words(config.flags, &CONFIG),
        if pods.is_empty() { "-".to_owned() } else { pods.join(",") },
        if config.service_cidr_count == 0 { "-".to_owned() } else { cidrs(config).join(",") },
        u32::from(first) + u32::from(ports).saturating_sub(1),
        match config.own_ports {
            0 => "-".to_owned(),
            ports => format!("{}-{}", config.own_first, u32::from(config.own_first) + u32::from(ports) - 1),
        }
    )
}

fn cidrs(config: &Config) -> Vec<String> {
    config.service_cidrs.iter().take(config.service_cidr_count as usize).filter_map(prefix).collect()
}

/// `address/length`; `None` for the empty range.
fn prefix(prefix: &Prefix) -> Option<String> {
    if *prefix == Prefix::EMPTY {
        return None;
    }
    let ones: u32 = prefix.mask.words.iter().map(|word| word.count_ones()).sum();
    let ip = IpAddr::from(prefix.address);
    Some(format!("{ip}/{}", if ip.is_ipv4() && ones >= 96 { ones - 96 } else { ones }))
}

fn range(range: &Range) -> String {
    let ip = IpAddr::from(range.key.address);
    let family_bits = if ip.is_ipv4() { 96 } else { 0 };
    format!("{ip}/{}", range.length.saturating_sub(RangeKey::SERVICE_BITS + family_bits))
}

fn slot(slot: &Slot) -> String {
    let host = if slot.flags & Slot::HOST != 0 { "(host)" } else { "" };
    let weight = if slot.weight > 0 { format!("={}", slot.weight) } else { String::new() };
    format!("{}{host}{weight}", end(slot.address, slot.port))
}

fn end(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be(port))
}

fn frontend(key: &FrontendKey) -> String {
    frontend_of(key).map_or_else(|| format!("{key:?}"), |frontend| frontend.to_string())
}

fn list(bits: u32, names: &[(u32, &'static str)]) -> Vec<&'static str> {
    names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

fn words(bits: u32, names: &[(u32, &'static str)]) -> String {
    list(bits, names).iter().map(|name| format!(" {name}")).collect()
}
