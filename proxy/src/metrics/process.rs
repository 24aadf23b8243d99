//! The usual `process_` metrics, read from `/proc/self` at each scrape.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks a second of the times in `/proc/self/stat`: the kernel's USER_HZ, which is 100 on every architecture we build for.
const TICKS: f64 = 100.0;

/// Reads `/proc/self`; what cannot be read is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        if let Some((cpu, started)) = times() {
            let cpu = ConstCounter::new(cpu);
            let help = "CPU time used, user and system";
            cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, cpu.metric_type())?)?;
            gauge(&mut encoder, "process_start_time_seconds", "When the process started", started)?;
        }
        if let Some((resident, virtual_size)) = memory() {
            gauge(&mut encoder, "process_resident_memory_bytes", "Resident memory", resident)?;
            gauge(&mut encoder, "process_virtual_memory_bytes", "Virtual memory", virtual_size)?;
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", open.count() as f64)?;
        }
        for (limit, name, help) in [
            ("Max open files", "process_max_fds", "Most file descriptors that may be open"),
            ("Max address space", "process_virtual_memory_max_bytes", "Most virtual memory that may be had"),
        ] {
            if let Some(most) = soft_limit(limit) {
                gauge(&mut encoder, name, help, most)?;
            }
        }
        if let Some((received, sent)) = network() {
            for (bytes, name, help) in [
                (received, "process_network_receive_bytes", "Bytes that the network namespace received"),
                (sent, "process_network_transmit_bytes", "Bytes that the network namespace sent"),
            ] {
                let bytes = ConstCounter::new(bytes);
                bytes.encode(encoder.encode_descriptor(name, help, None, bytes.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn gauge(encoder: &mut DescriptorEncoder, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
    let value = ConstGauge::new(value);
    value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
}

/// CPU seconds used, and the start as seconds since 1970.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name in parentheses, which may hold anything; utime is the 14th field, starttime the 22nd.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index - 3)?.parse::<f64>().ok();
    let boot = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(((number(14)? + number(15)?) / TICKS, boot + number(22)? / TICKS))
}

/// Resident and virtual memory in bytes.
fn memory() -> Option<(f64, f64)> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok().map(|kib| kib * 1024.0)
    };
    Some((bytes("VmRSS:")?, bytes("VmSize:")?))
}

/// The soft limit of this name as a number; the greatest there is where there is none, as in Go's.
fn soft_limit(name: &str) -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        number => number.parse().ok(),
    }
}

/// Bytes received and sent by all interfaces of our network namespace, as client_golang counts them.
fn network() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/self/net/dev").ok()?;
    let fields = text.lines().filter_map(|line| line.split_once(':')).map(|(_, fields)| fields.split_whitespace());
    let mut sum = (0.0, 0.0);
    for mut fields in fields {
        sum.0 += fields.next()?.parse::<f64>().ok()?;
        sum.1 += fields.nth(7)?.parse::<f64>().ok()?;
    }
    Some(sum)
}
