//! Addresses and CIDRs as kube-proxy reads them: leading zeros are decimal (`172.30.0.041` is 172.30.0.41), an IPv4-mapped IPv6
//! address is the IPv4 address, and blanks around the text are refused. Source: `netutils.ParseIPSloppy`, `ParseCIDRSloppy`.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Reads an address; `None` where the text is none.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') { parse_v6(text).map(|ip| ip.to_canonical()) } else { parse_v4(text).map(IpAddr::V4) }
}

/// Reads a CIDR, with its host bits masked away; `None` where the text is none. An IPv4-mapped range (`::ffff:10.0.0.0/104`)
/// is the IPv4 range.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let length = decimal(length, 128)?;
    if !address.contains(':') {
        return Some(IpNet::V4(Ipv4Net::new(parse_v4(address)?, u8::try_from(length).ok()?).ok()?.trunc()));
    }
    let IpAddr::V6(ip) = parse_v6(address)? else { return None };
    let length = u8::try_from(length).ok()?;
    match ip.to_ipv4_mapped() {
        Some(ip) => Some(IpNet::V4(Ipv4Net::new(ip, length.checked_sub(96)?).ok()?.trunc())),
        None => Some(IpNet::V6(Ipv6Net::new(ip, length).ok()?.trunc())),
    }
}

/// `IP:PORT`, IPv6 in brackets, with addresses as [`parse_ip`] reads them.
pub fn parse_socket(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip = match ip.strip_prefix('[') {
        Some(ip) => ip.strip_suffix(']').filter(|ip| ip.contains(':'))?,
        None => Some(ip).filter(|ip| !ip.contains(':'))?,
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    Some(SocketAddr::new(parse_ip(ip)?, port.parse().ok().filter(|_| digits)?))
}

/// `IP`, or `IP:PORT`, as [`parse_socket`] reads it.
pub fn parse_source(text: &str) -> Option<(IpAddr, Option<u16>)> {
    let whole = parse_ip(text).map(|ip| (ip, None));
    whole.or_else(|| parse_socket(text).map(|socket| (socket.ip(), Some(socket.port()))))
}

/// A number of decimal digits only, at most `limit`; leading zeros mean nothing.
fn decimal(text: &str, limit: u32) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    if digits.is_empty() {
        return Some(0);
    }
    digits.parse().ok().filter(|value| *value <= limit)
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(decimal(parts.next()?, 255)?).ok()?;
    }
    parts.next().is_none().then_some(Ipv4Addr::from(octets))
}

/// Every group loses its leading zeros and a dotted tail is read as above; the rest is the standard parser's.
fn parse_v6(text: &str) -> Option<IpAddr> {
    let groups: Option<Vec<Cow<'_, str>>> = text.split(':').map(plain_group).collect();
    groups?.join(":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

fn plain_group(group: &str) -> Option<Cow<'_, str>> {
    if group.contains('.') {
        return Some(Cow::Owned(parse_v4(group)?.to_string()));
    }
    let plain = group.trim_start_matches('0');
    Some(Cow::Borrowed(if plain.is_empty() && !group.is_empty() { "0" } else { plain }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> Option<String> {
        parse_ip(text).map(|ip| ip.to_string())
    }

    fn cidr(text: &str) -> Option<String> {
        parse_cidr(text).map(|net| net.to_string())
    }

    #[test]
    fn leading_zeros_are_decimal() {
        assert_eq!(ip("172.30.0.041").as_deref(), Some("172.30.0.41"));
        assert_eq!(ip("1.2.3.004").as_deref(), Some("1.2.3.4"));
        assert_eq!(ip("010.000.0.1").as_deref(), Some("10.0.0.1"));
        assert_eq!(ip("fd00:00010::0001").as_deref(), Some("fd00:10::1"));
        assert_eq!(cidr("203.0.113.000/025").as_deref(), Some("203.0.113.0/25"));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        assert_eq!(ip("::ffff:10.0.0.01").as_deref(), Some("10.0.0.1"));
        assert_eq!(cidr("::ffff:10.1.2.3/104").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(cidr("::ffff:10.1.2.3/64"), None);
    }

    #[test]
    fn host_bits_are_masked() {
        assert_eq!(cidr("192.168.0.77/24").as_deref(), Some("192.168.0.0/24"));
        assert_eq!(cidr("fd00::1/0").as_deref(), Some("::/0"));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "1.2.3",
            "1.2.3.4.5",
            "256.1.1.1",
            "1.2.3.+4",
            "a.b.c.d",
            "1..2.3",
            "fe80::1%eth0",
            "::1::",
            ":",
            "12345::",
            "0x1.2.3.4",
            "1.2.3.4/24",
            "4294967297.1.1.1",
            "[::1]",
            " 10.0.0.1",
            "10.0.0.1\t",
            " ::1",
        ] {
            assert_eq!(ip(text), None, "{text:?}");
        }
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/", "/8", "fd00::/129", "10.0.0.0/8/8"] {
            assert_eq!(cidr(text), None, "{text:?}");
        }
        for text in [" 10.0.0.0/8", "10.0.0.0/8 ", "10.0.0.0 /8", "10.0.0.0/ 8", "\tfd00::/8", "fd00::/8\n"] {
            assert_eq!(cidr(text), None, "{text:?}");
        }
    }
}
