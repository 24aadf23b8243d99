//! What the running proxy tells about itself.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;

use crate::netns::Namespace;

/// The text of `/metrics`.
pub fn scrape(namespace: &Namespace) -> anyhow::Result<String> {
    namespace.enter(|| -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", 10249))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok(body.to_owned())
    })?
}

/// The sum of a metric over its label sets, `None` if there is none.
pub fn sum(text: &str, name: &str) -> Option<f64> {
    values(text, name).reduce(|a, b| a + b)
}

/// The largest of a metric's label sets, e.g. where each IP family tells the duration of the sync that they share.
pub fn most(text: &str, name: &str) -> Option<f64> {
    values(text, name).reduce(f64::max)
}

fn values(text: &str, name: &str) -> impl Iterator<Item = f64> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let rest = if rest.starts_with('{') { rest.split_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.split(' ').next()?.parse().ok()
    })
}

/// Megabytes (2^20) of a line of /proc/PID/status, e.g. `VmRSS`.
pub fn memory(pid: u32, line: &str) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let kilobytes = status.lines().find_map(|candidate| {
        candidate.strip_prefix(line)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse::<f64>().ok()
    });
    Ok(kilobytes.with_context(|| format!("no {line} in {path}"))? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_are_summed_and_names_are_whole() {
        let text = "# TYPE rows gauge\nrows{map=\"a b\"} 3\nrows{map=\"c\"} 4\nrows_total 9\nplain 0.5 1700\n";
        assert_eq!((sum(text, "rows"), sum(text, "plain"), sum(text, "none")), (Some(7.0), Some(0.5), None));
        assert_eq!(most(text, "rows"), Some(4.0));
    }

    #[test]
    fn our_own_memory_is_known() {
        assert!(memory(std::process::id(), "VmRSS").unwrap() > 0.1);
    }
}
