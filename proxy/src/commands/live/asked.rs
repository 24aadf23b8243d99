//! Which packets a command line asks to follow.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};

use crate::args::TraceArgs;
use crate::commands::trace;
use crate::live::filter::{Destination, Filter};
use crate::running::{RunningProxy, service_name};
use crate::state::convert::sloppy::parse_ip;

/// What is asked for; the running proxy says where a Service is. Blocks.
///
/// # Errors
/// It is not understood, the Service is not served, or the proxy does not answer.
pub fn filter(args: &TraceArgs, proxy: &RunningProxy) -> anyhow::Result<Filter> {
    let mut to = BTreeSet::new();
    if let Some(text) = &args.to {
        to.insert(destination(text)?);
    }
    if let Some(name) = &args.service {
        to = of_service(name, proxy)?;
    }
    let (from, from_port) = args.from.map_or((None, None), |(ip, port)| (Some(ip), port));
    Ok(Filter { from, from_port, to: to.into_iter().collect(), except: proxy.addresses()? })
}

/// A destination, an address alone, or a port alone.
fn destination(text: &str) -> anyhow::Result<Destination> {
    if let Some(ip) = parse_ip(text) {
        return Ok(Destination::address(ip));
    }
    match text.parse() {
        Ok(0) => bail!("--to 0: there is no such port"),
        Ok(port) => return Ok(Destination { protocol: None, ip: None, port: Some(port) }),
        Err(_) => {}
    }
    let (protocol, at) = trace::destination(text).with_context(|| {
        format!("--to {text}: with --live an address alone (10.96.0.10) or a port alone (80) will do, too")
    })?;
    Ok(Destination { protocol: Some(protocol), ip: Some(at.ip()), port: Some(at.port()) })
}

/// Where a Service is: its node ports, and every port of the addresses that are its own.
fn of_service(name: &str, proxy: &RunningProxy) -> anyhow::Result<BTreeSet<Destination>> {
    let (namespace, name) = service_name(name);
    let service = proxy.service(namespace, name)?;
    let service = service.with_context(|| format!("{namespace}/{name} is not served here"))?;
    let mut to = BTreeSet::new();
    for port in &service.ports {
        let protocol = Some(port.protocol.parse().map_err(anyhow::Error::msg)?);
        for frontend in &port.frontends {
            let at = match frontend.address.strip_prefix("*:") {
                Some(port) => Destination { protocol, ip: None, port: Some(port.parse()?) },
                // Ports that the Service has not as well: that is what is wrong, sometimes.
                None => Destination::address(frontend.address.parse::<SocketAddr>()?.ip()),
            };
            to.insert(at);
        }
    }
    ensure!(!to.is_empty(), "{namespace}/{name} has no address that packets could go to");
    Ok(to)
}
