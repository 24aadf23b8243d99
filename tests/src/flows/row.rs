//! One row of a flow table, as an operator writes it:
//!
//! ```text
//! from 10.244.0.7             tcp 10.96.0.50:80    →  10.244.1.5:80 | 10.244.2.8:80
//! from 192.0.2.9              udp 172.18.0.2:30080 →  10.244.1.5:53 masquerade
//! from 10.244.1.5 iif cni0    tcp 10.96.0.50:80    →  10.244.1.5:80 hairpin
//! from 10.244.0.7             tcp 10.96.0.60:80    →  10.244.1.5:80 | 10.244.2.8:80 affinity
//! from 10.244.0.7             tcp 203.0.113.60:80  →  same masquerade
//! from 192.0.2.9              tcp 172.18.0.2:30081 →  reject
//! from 10.244.0.7:9001        tcp 10.96.0.70:80    →  10.244.1.5:80
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail, ensure};

use crate::packets::Protocol;

/// Source ports that rows may name: executors take theirs from others, and datapaths masquerade with others.
const OWN_PORTS: RangeInclusive<u16> = 1_024..=16_000;

/// A new connection and what must become of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Where the row is written, `flows.txt:12`, for messages.
    pub place: String,
    /// The source address.
    pub from: IpAddr,
    /// The source port, where the row says it.
    pub from_port: Option<u16>,
    /// The node's interface that the packet comes in by, where the row says it.
    pub iif: Option<String>,
    /// The transport.
    pub protocol: Protocol,
    /// The destination.
    pub to: SocketAddr,
    /// What must happen.
    pub expect: Expect,
}

/// The right-hand side of a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Each new connection reaches one of these, and each of these is reached.
    Endpoints {
        /// Where a connection may go, sorted.
        endpoints: Vec<SocketAddr>,
        /// Endpoints other than the source itself see another source than the sender's.
        masquerade: bool,
        /// A client stays with its first choice: not all are reached from one source.
        affinity: bool,
    },
    /// The endpoint that the last row with this source reached, in this step or an earlier one.
    Same {
        /// The endpoint sees another source than the sender's.
        masquerade: bool,
    },
    /// A TCP reset, or ICMP port unreachable.
    Reject,
    /// Silence.
    Drop,
    /// The proxy leaves the packet alone: it goes on to where its destination is.
    None,
}

impl Expect {
    /// Whether the endpoint must see another source than `from`: asked for, or the choice is the source itself (hairpin).
    pub fn masquerades(masquerade: bool, from: IpAddr, endpoint: SocketAddr) -> bool {
        masquerade || endpoint.ip() == from
    }
}

/// Reads the rows of a flow table. `name` is the file's, for messages.
///
/// # Errors
/// A line that is not a row, an empty line or a comment; the message has file and line.
pub fn parse(name: &str, text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            let place = format!("{name}:{}", number + 1);
            rows.push(parse_row(place.clone(), line).with_context(|| format!("{place}: {line}"))?);
        }
    }
    ensure!(!rows.is_empty(), "{name}: no rows");
    Ok(rows)
}

fn parse_row(place: String, line: &str) -> Result<Row> {
    let (flow, outcome) =
        line.split_once('→').or_else(|| line.split_once("->")).context("a row needs an arrow: `from … → …`")?;
    let words: Vec<_> = flow.split_whitespace().collect();
    let (from, iif, protocol, to) = match words[..] {
        ["from", from, protocol, to] => (from, None, protocol, to),
        ["from", from, "iif", iif, protocol, to] => (from, Some(iif.to_string()), protocol, to),
        _ => bail!("before the arrow stands `from IP[:PORT] [iif INTERFACE] PROTOCOL IP:PORT`"),
    };
    let (from, from_port) = source(from)?;
    let to = socket(to)?;
    ensure!(from.is_ipv4() == to.is_ipv4(), "{from} and {to} are not of one family");
    let protocol = protocol.parse().map_err(anyhow::Error::msg)?;
    let expect = parse_outcome(from, outcome)?;
    if from_port.is_some() {
        // One connection: more from this port would be the same one.
        let one = matches!(&expect, Expect::Endpoints { endpoints, affinity: false, .. } if endpoints.len() == 1);
        ensure!(one, "from a port there is one connection, which goes to one endpoint");
    }
    Ok(Row { place, from, from_port, iif, protocol, to, expect })
}

fn parse_outcome(from: IpAddr, outcome: &str) -> Result<Expect> {
    let words: Vec<_> = outcome.split_whitespace().filter(|word| *word != "|").collect();
    let is_word = |word: &str| ["masquerade", "hairpin", "affinity"].contains(&word);
    let count = words.iter().take_while(|word| !is_word(word)).count();
    let (targets, flags) = words.split_at(count);
    for flag in flags {
        ensure!(is_word(flag), "{flag:?}: after the endpoints stand only `masquerade`, `hairpin` and `affinity`");
    }
    let has = |word: &str| flags.contains(&word);
    match targets {
        ["reject"] if flags.is_empty() => Ok(Expect::Reject),
        ["drop"] if flags.is_empty() => Ok(Expect::Drop),
        ["none"] if flags.is_empty() => Ok(Expect::None),
        ["same"] if !has("hairpin") && !has("affinity") => Ok(Expect::Same { masquerade: has("masquerade") }),
        ["reject" | "drop" | "none" | "same", ..] => bail!("{outcome:?}: `{}` stands alone", targets[0]),
        [] => bail!("after the arrow stand endpoints, `same`, `reject`, `drop` or `none`"),
        targets => {
            let mut endpoints = targets.iter().map(|target| socket(target)).collect::<Result<Vec<_>>>()?;
            endpoints.sort();
            ensure!(endpoints.windows(2).all(|pair| pair[0] != pair[1]), "an endpoint stands twice");
            let itself = endpoints.iter().any(|endpoint| endpoint.ip() == from);
            ensure!(
                itself == has("hairpin"),
                "`hairpin` stands exactly where the source is one of the endpoints: that choice is masqueraded"
            );
            Ok(Expect::Endpoints { endpoints, masquerade: has("masquerade"), affinity: has("affinity") })
        }
    }
}

/// A source, with or without a port.
fn source(text: &str) -> Result<(IpAddr, Option<u16>)> {
    if let Ok(ip) = text.parse() {
        return Ok((ip, None));
    }
    let from: SocketAddr = text.parse().with_context(|| format!("{text:?} is no IP address"))?;
    ensure!(
        OWN_PORTS.contains(&from.port()),
        "{text}: rows may name the ports {OWN_PORTS:?}, the others are the harness's"
    );
    Ok((from.ip(), Some(from.port())))
}

fn socket(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("{text:?} is no address and port: 10.0.0.1:80 or [2001:db8::1]:80"))
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from_port {
            Some(port) => write!(f, "from {}", SocketAddr::new(self.from, port))?,
            None => write!(f, "from {}", self.from)?,
        }
        if let Some(iif) = &self.iif {
            write!(f, " iif {iif}")?;
        }
        write!(f, " {} {} → {}", self.protocol, self.to, self.expect)?;
        match &self.expect {
            Expect::Endpoints { endpoints, .. } if endpoints.iter().any(|endpoint| endpoint.ip() == self.from) => {
                f.write_str(" hairpin")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |flag: bool, word: &'static str| if flag { word } else { "" };
        match self {
            Self::Endpoints { endpoints, masquerade, affinity } => {
                let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                write!(f, "{}{}", endpoints.join(" | "), word(*masquerade, " masquerade"))?;
                f.write_str(word(*affinity, " affinity"))
            }
            Self::Same { masquerade } => write!(f, "same{}", word(*masquerade, " masquerade")),
            Self::Reject => f.write_str("reject"),
            Self::Drop => f.write_str("drop"),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_as_they_are_shown() {
        let text = "\
from 10.244.0.7 tcp 10.96.0.50:80 → 10.244.1.5:80 | 10.244.2.8:80
from 192.0.2.9 udp 172.18.0.2:30080 → 10.244.1.5:53 masquerade
from 10.244.1.5 iif cni0 tcp 10.96.0.50:80 → 10.244.1.5:80 | 10.244.1.6:80 hairpin
from 2001:db8::7 sctp [2001:db8:1::50]:80 → reject
from 10.244.0.7 tcp 10.96.0.50:80 → 10.244.1.5:80 | 10.244.2.8:80 affinity
from 10.244.0.7 tcp 10.96.0.51:80 → same masquerade
from 10.244.0.7 tcp 10.96.0.50:81 → drop
from 10.244.0.7 tcp 10.96.0.50:82 → none
from 10.244.0.7:9001 tcp 10.96.0.50:80 → 10.244.1.5:80
from [2001:db8::7]:9001 tcp [2001:db8:1::50]:80 → [2001:db8:2::5]:80 masquerade";
        let rows = parse("flows.txt", text).unwrap();
        let shown: Vec<_> = rows.iter().map(ToString::to_string).collect();
        assert_eq!(shown.join("\n"), text);
        assert_eq!(rows[2].place, "flows.txt:3");
    }

    #[test]
    fn a_fault_is_named_with_file_and_line() {
        for (line, fault) in [
            ("from 10.0.0.1 tcp 10.0.0.2:80", "needs an arrow"),
            ("from 10.0.0.1 10.0.0.2:80 -> none", "before the arrow stands"),
            ("from 10.0.0.x tcp 10.0.0.2:80 -> none", "no IP address"),
            ("from 10.0.0.1 tcp 10.0.0.2 -> none", "no address and port"),
            ("from 10.0.0.1:20001 tcp 10.0.0.2:80 -> 10.0.0.3:80", "rows may name the ports"),
            ("from 10.0.0.1:9001 tcp 10.0.0.2:80 -> 10.0.0.3:80 | 10.0.0.4:80", "goes to one endpoint"),
            ("from 10.0.0.1:9001 tcp 10.0.0.2:80 -> same", "goes to one endpoint"),
            ("from 10.0.0.1 icmp 10.0.0.2:80 -> none", "unknown protocol"),
            ("from 10.0.0.1 tcp [::1]:80 -> none", "not of one family"),
            ("from 10.0.0.1 tcp 10.0.0.2:80 ->", "after the arrow stand"),
            ("from 10.0.0.1 tcp 10.0.0.2:80 -> drop masquerade", "stands alone"),
            ("from 10.0.0.1 tcp 10.0.0.2:80 -> 10.0.0.3:80 masquerade now", "after the endpoints stand only"),
            ("from 10.0.0.1 tcp 10.0.0.2:80 -> 10.0.0.1:80", "`hairpin` stands exactly"),
            ("from 10.0.0.1 tcp 10.0.0.2:80 -> 10.0.0.3:80 hairpin", "`hairpin` stands exactly"),
            ("from 10.0.0.1 tcp 10.0.0.2:80 -> 10.0.0.3:80 | 10.0.0.3:80", "stands twice"),
        ] {
            let error = format!("{:#}", parse("flows.txt", &format!("# a comment\n\n{line} # why")).unwrap_err());
            assert!(error.starts_with("flows.txt:3: ") && error.contains(fault), "{line}: {error}");
        }
    }
}
