//! What each program costs a packet, without the kernel around it: BPF_PROG_TEST_RUN calls the pinned program with a packet
//! of ours, again and again, and tells the mean time.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context as _, bail};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, TestRunResult, Xdp};
use aya_obj::programs::XdpAttachType;
use kubeferry_ebpf_common::flow::TICK;
use kubeferry_ebpf_common::{Address, Flow, FlowKey, TCP};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::super::generate::PORT;
use crate::datapath::Datapath;
use crate::netns::Namespace;
use crate::pins;

/// The client of all packets, a pod.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
/// Nobody's address, and no service's.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// Ports of the client's connections.
const FIRST_PORT: u16 = 20_000;
/// TC_ACT_UNSPEC: the packet goes on.
const GOES_ON: u32 = u32::MAX;
/// XDP_PASS: the stack gets it.
const PASSED: u32 = 2;
/// XDP_REDIRECT: out of another interface.
const SENT: u32 = 4;
/// Hops that a packet may make.
const HOPS: u8 = 255;
// linux/tcp.h
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// At most so many single runs, each from a port of its own.
const SINGLE: u32 = 20_000;

/// Rows as words, as everywhere in xtask.
type KeyWords = [u32; size_of::<FlowKey>() / 4];
type FlowWords = [u32; size_of::<Flow>() / 4];

/// The mean time of a program, in nanoseconds.
#[derive(Clone, Serialize, Debug)]
pub struct Cost {
    /// The program, and what it was given.
    pub what: &'static str,
    /// One packet again and again: everything is in the caches.
    pub repeated: Option<f64>,
    /// A system call for each packet, which costs what was in the caches, and the clock's own time.
    pub single: Option<f64>,
}

/// Measures what is attached to a node. `service` is the address of one with endpoints.
///
/// # Errors
/// A program did not do with its packet what was meant.
pub fn measure(node: &Namespace, datapath: &Datapath, service: Ipv4Addr, runs: u32) -> anyhow::Result<Vec<Cost>> {
    let Datapath::Ebpf(places) = datapath else { bail!("no programs with nftables") };
    let folder = pins::folder(places.bpffs(), "programs")?.context("no programs are pinned")?;
    let maps = pins::folder(places.bpffs(), "maps")?.context("no maps are pinned")?;
    // Interfaces are looked for in the caller's namespace.
    node.enter(|| in_node(&folder, &maps, service, runs))?
}

/// The mean time of `tc_ingress` for the first packet of a connection to this service, each from another port; a system call
/// for each.
///
/// # Errors
/// As [`measure`].
pub fn first_packet(node: &Namespace, datapath: &Datapath, service: Ipv4Addr, runs: u32) -> anyhow::Result<f64> {
    let Datapath::Ebpf(places) = datapath else { bail!("no programs with nftables") };
    let folder = pins::folder(places.bpffs(), "programs")?.context("no programs are pinned")?;
    node.enter(|| {
        let ingress = SchedClassifier::from_pin(folder.join("tc_ingress")).context("program tc_ingress")?;
        first_packets(&ingress, interface("pod")?, service, runs.min(SINGLE))
    })?
}

fn first_packets(ingress: &SchedClassifier, device: u32, service: Ipv4Addr, runs: u32) -> anyhow::Result<f64> {
    average((FIRST_PORT..).take(runs as usize).map(|port| {
        let (time, after) = run(ingress, &packet(port, service, PORT, SYN), device, 1)?;
        if destination(&after) == Some(service) {
            bail!("tc_ingress did not translate a new connection");
        }
        Ok(time)
    }))
}

fn in_node(folder: &Path, maps: &Path, service: Ipv4Addr, runs: u32) -> anyhow::Result<Vec<Cost>> {
    let open = |name: &str| SchedClassifier::from_pin(folder.join(name)).with_context(|| format!("program {name}"));
    let (ingress, egress) = (open("tc_ingress")?, open("tc_egress")?);
    let (pod, uplink) = (interface("pod")?, interface("eth0")?);
    let singles = runs.min(SINGLE);
    let ports = || (FIRST_PORT..).take(singles as usize);

    let away = packet(FIRST_PORT, ELSEWHERE, 8080, ACK);
    let mut costs = Vec::new();
    for (what, program, device) in [("tc_ingress, not ours", &ingress, pod), ("tc_egress, not ours", &egress, uplink)] {
        let (mean, _) = run(program, &away, device, runs)?;
        let single = ports().map(|port| Ok(run(program, &packet(port, ELSEWHERE, 8080, ACK), device, 1)?.0));
        costs.push(Cost { what, repeated: Some(mean), single: Some(average(single)?) });
    }

    // A packet that was translated is the next run's packet: there and back again.
    let (one, other) = ((Ipv4Addr::new(10, 128, 0, 1), 80), (Ipv4Addr::new(10, 128, 0, 2), 8080));
    let mut flows: HashMap<MapData, KeyWords, FlowWords> =
        HashMap::try_from(Map::LruHashMap(MapData::from_pin(maps.join("flows")).context("map flows")?))?;
    for (from, to) in [(one, other), (other, one)] {
        flows.insert(key(FIRST_PORT, from), flow(to), 0).context("writing a flow")?;
    }
    let established = packet(FIRST_PORT, one.0, one.1, ACK);
    let (_, after) = run(&ingress, &established, pod, 1)?;
    if destination(&after) != Some(other.0) {
        bail!("tc_ingress did not translate a packet of a known connection");
    }
    let (mean, _) = run(&ingress, &established, pod, runs)?;
    let single = ports().map(|_| Ok(run(&ingress, &established, pod, 1)?.0));
    costs.push(Cost { what: "tc_ingress, known connection", repeated: Some(mean), single: Some(average(single)?) });
    costs.extend(at_xdp(folder, &away, &established, runs)?);
    for (from, _) in [(one, other), (other, one)] {
        flows.remove(&key(FIRST_PORT, from)).context("deleting a flow")?;
    }

    let single = first_packets(&ingress, pod, service, singles)?;
    costs.push(Cost { what: "tc_ingress, new connection", repeated: None, single: Some(single) });
    Ok(costs)
}

/// The program of uplinks, which asks the routes, too, and carries what is addressed to the uplink itself: what it has sent on is addressed
/// to the next hop, so that the same frame cannot be sent on again.
fn at_xdp(folder: &Path, away: &[u8], established: &[u8], runs: u32) -> anyhow::Result<Vec<Cost>> {
    let program = Xdp::from_pin(folder.join("xdp_uplink"), XdpAttachType::Interface).context("program xdp_uplink")?;
    let uplink = interface("out")?;
    let address = link_address("out")?;
    let [away, established] = [away, established].map(|frame| [&address[..], &frame[address.len()..]].concat());
    let run = |frame: &[u8], verdict: u32, runs: u32| {
        // struct xdp_md up to `rx_queue_index`.
        let context = [0, frame.len() as u32, 0, uplink, 0].map(u32::to_ne_bytes).concat();
        Ok(test_run(|options| program.test_run(options), frame, &context, verdict, runs)?.0)
    };
    let mean = run(&away, PASSED, runs)?;
    let single = (0..runs.min(SINGLE)).map(|_| run(&away, PASSED, 1));
    let mut costs = vec![Cost { what: "xdp_uplink, not ours", repeated: Some(mean), single: Some(average(single)?) }];
    let single = (0..runs.min(SINGLE)).map(|_| run(&established, SENT, 1));
    let what = "xdp_uplink, known connection, sent on";
    costs.push(Cost { what, repeated: None, single: Some(average(single)?) });
    Ok(costs)
}

fn average(times: impl Iterator<Item = anyhow::Result<f64>>) -> anyhow::Result<f64> {
    let times: Vec<f64> = times.collect::<Result<_, _>>()?;
    Ok(times.iter().sum::<f64>() / times.len() as f64)
}

/// Runs a program so many times on a packet that is at a device. The mean time, and what became of the packet.
fn run(program: &SchedClassifier, packet: &[u8], device: u32, runs: u32) -> anyhow::Result<(f64, Vec<u8>)> {
    // struct __sk_buff up to `ifindex`, which is the last word.
    let mut context = [0; 44];
    context[40..].copy_from_slice(&device.to_ne_bytes());
    test_run(|options| program.test_run(options), packet, &context, GOES_ON, runs)
}

fn test_run(
    program: impl FnOnce(TestRunOptions<'_>) -> Result<TestRunResult, ProgramError>,
    packet: &[u8],
    context: &[u8],
    verdict: u32,
    runs: u32,
) -> anyhow::Result<(f64, Vec<u8>)> {
    let mut after = vec![0; packet.len() + 64];
    let result = program(TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut after),
        ctx_in: Some(context),
        repeat: runs,
        ..TestRunOptions::new()
    })
    .context("BPF_PROG_TEST_RUN")?;
    if result.return_value != verdict {
        let was = result.return_value.cast_signed();
        bail!("the program's verdict is {was}, not {}", verdict.cast_signed());
    }
    after.truncate(result.data_size_out as usize);
    Ok((result.duration.as_secs_f64() * 1e9, after))
}

/// What ip(8) says of an interface. Not /sys: that shows the namespace in which it was mounted.
fn shown(name: &str) -> anyhow::Result<String> {
    crate::step::output(std::process::Command::new("ip").args(["-o", "link", "show", "dev", name]))
}

fn link_address(name: &str) -> anyhow::Result<[u8; 6]> {
    let text = shown(name)?;
    let octet = |octet| u8::from_str_radix(octet, 16).ok();
    let address = text.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
    let octets: Option<Vec<u8>> = address.and_then(|address| address.split(':').map(octet).collect());
    octets.and_then(|octets| octets.try_into().ok()).with_context(|| format!("no address of interface {name}: {text}"))
}

fn interface(name: &str) -> anyhow::Result<u32> {
    let text = shown(name)?;
    text.split(':').next().and_then(|index| index.trim().parse().ok()).with_context(|| format!("interface {name}"))
}

/// An Ethernet frame with a TCP segment of the client, its sums right.
pub(super) fn packet(port: u16, to: Ipv4Addr, to_port: u16, flags: u8) -> Vec<u8> {
    let mut tcp = [port.to_be_bytes(), to_port.to_be_bytes()].concat();
    tcp.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = [CLIENT.octets(), to.octets()].concat();
    pseudo.extend([0, TCP, 0, tcp.len() as u8]);
    pseudo.extend(&tcp);
    let sum = checksum(&pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0, 0, 20 + tcp.len() as u8, 0, 1, 0x40, 0, HOPS, TCP, 0, 0];
    ip.extend(CLIENT.octets());
    ip.extend(to.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2; 12];
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(tcp);
    frame
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The destination of an IPv4 packet in an Ethernet frame.
fn destination(frame: &[u8]) -> Option<Ipv4Addr> {
    let octets: [u8; 4] = frame.get(30..34)?.try_into().ok()?;
    Some(octets.into())
}

/// The client's connection to a service, forward-in: see [`FlowKey`].
fn key(port: u16, (to, to_port): (Ipv4Addr, u16)) -> KeyWords {
    let [a, b, c, d] = Address::from(IpAddr::from(CLIENT)).words;
    let [e, f, g, h] = Address::from(IpAddr::from(to)).words;
    [a, b, c, d, e, f, g, h, halves(port.to_be(), to_port.to_be()), u32::from_ne_bytes([TCP, FlowKey::IN, 0, 0])]
}

fn flow((to, port): (Ipv4Addr, u16)) -> FlowWords {
    let [a, b, c, d] = Address::from(IpAddr::from(to)).words;
    let now = clock_gettime(ClockId::Monotonic);
    let now = (now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()) >> TICK;
    [a, b, c, d, halves(port.to_be(), Flow::FORWARD | Flow::SEEN), now as u32, 0, 0, 0, 0]
}

/// Two 16-bit fields side by side.
fn halves(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_one() {
        let frame = packet(20_000, ELSEWHERE, 8080, SYN);
        assert_eq!(frame.len(), 54);
        assert_eq!(destination(&frame), Some(ELSEWHERE));
        // A sum over what holds its own sum is none.
        assert_eq!(checksum(&frame[14..34]), 0);
    }
}
