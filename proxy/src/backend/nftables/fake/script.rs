//! Scripts in nft's language, as far as we write them.

use std::sync::Arc;

use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::maps::MAPS;
use crate::backend::nftables::rows::{Key, Part, Value};
use crate::desired::target::Frontend;
use crate::state::objects::{Family, Protocol};

use super::Table;

/// Reads a script as `text::whole` and `text::replacement` write it.
pub(super) fn parse(script: &str) -> Table {
    let (mut table, mut chain, mut map) = (Table::default(), None::<Arc<str>>, None::<String>);
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(rest) = line.strip_prefix("comment \"") {
            table.comment = Some(rest.trim_end_matches('"').to_owned());
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            table.chains.insert(name.into(), Vec::new());
            chain = Some(name.into());
        } else if let Some((name, rest)) =
            line.strip_prefix("map ").or(line.strip_prefix("set ")).and_then(|rest| rest.split_once(" {"))
        {
            table.sets.insert(name.into(), rest.to_owned());
        } else if let Some(rest) = line.strip_prefix("add element inet kubeferry ") {
            map = rest.strip_suffix(" {").map(str::to_owned);
        } else if line == "}" {
            (chain, map) = (None, None);
        } else if let Some(map) = &map {
            let row = line.trim_end_matches(',');
            let (key, value) = parse_row(map, row).unwrap_or_else(|| panic!("{map}: {row:?} is no row"));
            table.rows.insert(key, value);
        } else if let (Some(chain), true) = (&chain, line.starts_with("type ")) {
            table.hooks.insert(chain.clone(), line.to_owned());
        } else if let Some(chain) = &chain {
            table.chains.entry(chain.clone()).or_default().push(line.to_owned());
        }
    }
    table
}

/// Reads a row as `maps::row_text` writes it.
pub(in crate::backend::nftables) fn parse_row(map: &str, text: &str) -> Option<(Key, Value)> {
    let (index, family) = MAPS
        .iter()
        .enumerate()
        .find_map(|(index, maps)| Some((index, Family::BOTH[maps.iter().position(|name| *name == map)?])))?;
    let (key, value) = text.split_once(" : ").map_or((text, None), |(key, value)| (key, Some(value)));
    let value = match value.map(|value| value.split_once(' ').unwrap_or((value, ""))) {
        None => Value::Present,
        Some(("goto" | "jump", chain)) => Value::Chain(chain.into()),
        Some((ip, port)) => {
            Value::Endpoint((ip.parse::<std::net::IpAddr>().ok()?, port.strip_prefix(". ")?.parse().ok()?).into())
        }
    };
    let parts: Vec<&str> = key.split(" . ").collect();
    let address = |parts: &[&str]| -> Option<Frontend> {
        let protocol: Protocol = parts.get(1)?.parse().ok()?;
        Some(Frontend::Address { ip: parts[0].parse().ok()?, protocol, port: parts.get(2)?.parse().ok()? })
    };
    let node_port = |parts: &[&str]| -> Option<Frontend> {
        let protocol: Protocol = parts[0].parse().ok()?;
        Some(Frontend::NodePort { family, protocol, port: parts.get(1)?.parse().ok()? })
    };
    let key = match index {
        0 => Key::Of(address(&parts)?, Part::Verdict),
        1 => Key::Of(node_port(&parts)?, Part::Verdict),
        2 => Key::Of(address(&parts)?, Part::Endpoint(parts.get(3)?.parse().ok()?)),
        3 => Key::Of(node_port(&parts)?, Part::Endpoint(parts.get(2)?.parse().ok()?)),
        4 => Key::Of(address(&parts)?, Part::Ranged),
        5 => Key::Of(address(&parts)?, Part::SourceRange(parts.get(3)?.parse().ok()?)),
        6 => Key::Of(address(&parts)?, Part::Remember),
        7 => Key::Of(node_port(&parts)?, Part::Remember),
        8 => Key::Hairpin(parts[0].parse().ok().filter(|_| parts.get(1) == Some(&parts[0]))?),
        9 => Key::ClusterIp(parts[0].parse().ok()?),
        10 => Key::ServiceCidr(parts[0].parse().ok()?),
        12 => {
            let number = |index: usize| parts.get(index)?.parse::<u32>().ok();
            let identity = u64::from(number(1)?) << 32 | u64::from(number(2)?);
            Key::Turn(Turn { family, protocol: parts[0].parse().ok()?, identity }, number(3)?)
        }
        _ => Key::NodePortAddress(parts[0].parse().ok()?),
    };
    Some((key, value))
}
