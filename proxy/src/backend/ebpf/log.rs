//! What the programs write about their decisions (`--bpf-log-level`): from their ring buffer to our log.
//!
//! The level is a constant of the programs as they are loaded, so each level has programs of its own. Those that write are
//! loaded anew by each start: their ring buffer is then this process's, and nobody has to look for it. Programs whose process
//! is gone fill it and go on without writing.

use std::borrow::Cow;
use std::fmt;
use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{SCTP, TCP, UDP};
use log::{Level, Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::error::EbpfError;
use super::load::chain;
use crate::settings::BpfLogLevel;

/// The programs' constant.
pub const LEVEL: &str = aya_log::LEVEL;
/// Their ring buffer.
pub const MAP: &str = "AYA_LOGS";

/// Bytes of the ring buffer: as few as the kernel has where nothing is written; some 2,000 lines, beyond which they are
/// lost, else.
pub fn bytes(level: BpfLogLevel) -> u32 {
    if level == BpfLogLevel::Off { 4_096 } else { 1 << 20 }
}

/// Lines of programs that were just loaded.
pub struct Lines(EbpfLogger<Ours>);

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the programs' lines")
    }
}

impl Lines {
    /// The lines of this object's programs.
    ///
    /// # Errors
    /// The object has no ring buffer, or it cannot be mapped.
    pub fn of(object: &mut Ebpf) -> Result<Self, EbpfError> {
        let failed = |error| EbpfError::Load { what: format!("the map {MAP}"), why: chain(&error) };
        EbpfLogger::init_with_logger(object, Ours).map(Self).map_err(failed)
    }

    /// Has them in our log, from now until the runtime ends; on a thread of its own, for they may be many.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn follow(self, runtime: Handle) -> io::Result<()> {
        let run = move || {
            if let Err(error) = runtime.block_on(self.read()) {
                tracing::warn!(%error, "the programs' lines are not read");
            }
        };
        std::thread::Builder::new().name("bpf-log".to_owned()).spawn(run).map(drop)
    }

    async fn read(self) -> io::Result<()> {
        // SAFETY: the reader owns the ring buffer's descriptor, and never another.
        #[allow(unsafe_code)]
        let mut lines = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        // The runtime's end is no fault.
        while let Ok(mut ready) = lines.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
        Ok(())
    }
}

/// Our log, as aya's reader knows one.
struct Ours;

impl Log for Ours {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().as_str().map_or_else(|| record.args().to_string().into(), Cow::Borrowed);
        let line = line(&text);
        match record.level() {
            Level::Error => tracing::error!(target: "kubeferry::bpf", "{line}"),
            Level::Warn => tracing::warn!(target: "kubeferry::bpf", "{line}"),
            Level::Info => tracing::info!(target: "kubeferry::bpf", "{line}"),
            Level::Debug => tracing::debug!(target: "kubeferry::bpf", "{line}"),
            Level::Trace => tracing::trace!(target: "kubeferry::bpf", "{line}"),
        }
    }

    fn flush(&self) {}
}

/// The line for people: `tcp 10.244.1.7:40000 to 10.96.0.10:80: dropped (source_range)`. The programs' own has numbers for
/// protocol, at the beginning, and for the reason, at the end, and IPv4 in IPv6's form.
pub(crate) fn line(text: &str) -> String {
    let (protocol, rest) = text.split_once(' ').unwrap_or(("", text));
    let protocol = match protocol.parse() {
        Ok(TCP) => "tcp",
        Ok(UDP) => "udp",
        Ok(SCTP) => "sctp",
        _ => protocol,
    };
    let (rest, end) = match rest.rsplit_once(": ") {
        Some((rest, end)) => (rest, format!(": {}", outcome(end))),
        None => (rest, String::new()),
    };
    format!("{protocol} {}{}", addresses(rest), addresses(&end))
}

/// What follows the last colon: `endpoint …`, `stopped` with a [`Counter`]'s number, or what needs no change.
fn outcome(text: &str) -> String {
    if let Some(endpoint) = text.strip_suffix(" masquerade 0") {
        return endpoint.to_owned();
    }
    if let Some(endpoint) = text.strip_suffix(" masquerade 1") {
        return format!("{endpoint}, masqueraded");
    }
    let reason = text.strip_prefix("stopped ").and_then(|number| Counter::ALL.get(number.parse::<usize>().ok()?));
    match reason {
        Some((counter @ (Counter::Refused | Counter::UndefinedPort), name)) => match counter {
            Counter::Refused => "refused".to_owned(),
            _ => format!("refused ({name})"),
        },
        Some((_, name)) => format!("dropped ({name})"),
        None => text.to_owned(),
    }
}

/// IPv4 addresses in their own form.
fn addresses(text: &str) -> String {
    let mut parts = text.split("[::ffff:");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain += &part.replacen(']', "", 1);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_people() {
        let no_range = Counter::ALL.iter().position(|(counter, _)| *counter == Counter::SourceRange).unwrap();
        let no_port = Counter::ALL.iter().position(|(counter, _)| *counter == Counter::UndefinedPort).unwrap();
        for (text, wanted) in [
            (
                "6 [::ffff:10.0.0.1]:9 to [::ffff:10.96.0.1]:80: endpoint [::ffff:10.244.1.1]:8080 masquerade 0",
                "tcp 10.0.0.1:9 to 10.96.0.1:80: endpoint 10.244.1.1:8080",
            ),
            (
                "17 [fd00::1]:9 to [fd00::2]:80: endpoint [fd00::3]:53 masquerade 1",
                "udp [fd00::1]:9 to [fd00::2]:80: endpoint [fd00::3]:53, masqueraded",
            ),
            (
                &format!("6 [::ffff:10.0.0.1]:9 to [::ffff:10.96.0.1]:80: stopped {no_range}"),
                "tcp 10.0.0.1:9 to 10.96.0.1:80: dropped (source_range)",
            ),
            (
                &format!("132 [fd00::1]:9 to [fd00::2]:80: stopped {no_port}"),
                "sctp [fd00::1]:9 to [fd00::2]:80: refused (undefined_port)",
            ),
            ("6 socket 1a to [::ffff:10.96.0.1]:80: left as it is", "tcp socket 1a to 10.96.0.1:80: left as it is"),
            ("whatever", " whatever"),
        ] {
            assert_eq!(line(text), wanted);
        }
    }
}
