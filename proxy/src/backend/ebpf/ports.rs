//! Whether the ports of masqueraded connections are ours alone. Pure.

use std::collections::BTreeSet;

/// The ports of `masquerade` (first, last) that the node's own sockets take by themselves: `local` is
/// `net.ipv4.ip_local_port_range`, `reserved` is `ip_local_reserved_ports`. First and last of the overlap.
pub fn overlap(masquerade: (u16, u16), local: &str, reserved: &str) -> Option<(u16, u16)> {
    let mut bounds = local.split_whitespace().filter_map(|port| port.parse::<u16>().ok());
    let (low, high) = (bounds.next()?, bounds.next()?);
    let reserved: Vec<(u16, u16)> = reserved.split(',').filter_map(range).collect();
    let is_reserved = |port: &u16| reserved.iter().any(|(first, last)| (first..=last).contains(&port));
    let mut taken = (masquerade.0.max(low)..=masquerade.1.min(high)).filter(|port| !is_reserved(port));
    let first = taken.next()?;
    Some((first, taken.next_back().unwrap_or(first)))
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.trim().split_once('-').unwrap_or((text.trim(), text.trim()));
    Some((first.parse().ok()?, last.parse().ok()?))
}

/// The node ports among the ports of `masquerade`, as text: the first three.
pub fn node_ports(masquerade: (u16, u16), node_ports: &BTreeSet<u16>) -> Option<String> {
    let inside: Vec<u16> = node_ports.range(masquerade.0..=masquerade.1).copied().collect();
    let mut text = inside.iter().take(3).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if inside.len() > 3 {
        text += &format!(" and {} more", inside.len() - 3);
    }
    (!inside.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_with_the_nodes_own_ports_is_found() {
        assert_eq!(overlap((16_384, 29_999), "32768\t60999\n", ""), None);
        assert_eq!(overlap((16_384, 40_000), "32768\t60999\n", "\n"), Some((32_768, 40_000)));
        assert_eq!(overlap((16_384, 40_000), "32768 60999", "32768-40000\n"), None);
        assert_eq!(overlap((16_384, 40_000), "32768 60999", "32768-39999,50000"), Some((40_000, 40_000)));
        assert_eq!(overlap((1, 65_535), "1024 65535", "2000"), Some((1_024, 65_535)));
    }

    #[test]
    fn node_ports_inside_are_named() {
        let ports = BTreeSet::from([80, 20_000, 20_001, 20_002, 20_003, 30_080]);
        assert_eq!(node_ports((16_384, 29_999), &ports).unwrap(), "20000, 20001, 20002 and 1 more");
        assert_eq!(node_ports((16_384, 19_999), &ports), None);
    }
}
