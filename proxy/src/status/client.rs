//! One HTTP GET with the standard library alone.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::Status;
use crate::running;
use crate::state::text::tame;

/// The largest answer that is read: 45,000 Services come to some 20 MB.
const LIMIT: u64 = 256 << 20;

/// The longest text that is shown of a status, in characters.
const LONGEST: usize = 4_096;
/// How much is shown of what is no status.
const QUOTED: usize = 200;

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The status code.
    pub code: u16,
    /// The header lines, as they came.
    pub headers: Vec<String>,
    /// The body.
    pub body: String,
}

/// Why there is no status.
#[derive(thiserror::Error, Debug)]
pub enum FetchError {
    /// The URL is none that can be fetched.
    #[error("--url {0:?} must be like http://127.0.0.1:10249/status; for `top` without the path")]
    Url(String),
    /// Nobody answers.
    #[error(
        "no proxy answers at {url}: {source}. Is `kubeferry run` running on this node? If it serves its metrics elsewhere \
         (--metrics-bind-address), say where with --url"
    )]
    Unreachable {
        /// The URL.
        url: String,
        /// The system's error.
        source: io::Error,
    },
    /// The answer is not Kubeferry's status.
    #[error(
        "{url} answers, but not with Kubeferry's status ({what}): is another program, such as kube-proxy, serving there?"
    )]
    Other {
        /// The URL.
        url: String,
        /// What it answered.
        what: String,
    },
}

impl Response {
    /// The status that the body holds. All of its texts are fit for a terminal: whoever has the port answers.
    ///
    /// # Errors
    /// [`FetchError::Other`].
    pub(super) fn status_document(&self, url: &str) -> Result<Status, FetchError> {
        let other = |what: String| FetchError::Other { url: url.to_owned(), what };
        if self.code != 200 {
            return Err(other(format!("code {}: {}", self.code, tame(self.body.trim(), QUOTED))));
        }
        match running::read::<Status>(&self.body, LONGEST) {
            Ok(status) if !status.backend.is_empty() => Ok(status),
            Ok(_) => Err(other("another JSON document".to_owned())),
            Err(error) => Err(other(tame(&error.to_string(), QUOTED))),
        }
    }
}

/// Fetches a URL, `http` only, within `timeout` in all.
///
/// # Errors
/// [`FetchError::Url`], [`FetchError::Unreachable`]; [`FetchError::Other`] where the answer is not HTTP.
pub fn get(url: &str, timeout: Duration) -> Result<Response, FetchError> {
    let bad_url = || FetchError::Url(url.to_owned());
    let rest = url.strip_prefix("http://").ok_or_else(bad_url)?;
    let (authority, path) = rest.find('/').map_or((rest, "/"), |slash| rest.split_at(slash));
    if authority.is_empty() || url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(bad_url());
    }
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let target = if has_port { authority.to_owned() } else { format!("{authority}:80") };
    let bytes = exchange(&target, authority, path, timeout)
        .map_err(|source| FetchError::Unreachable { url: url.to_owned(), source })?;
    parse(&bytes).ok_or_else(|| FetchError::Other { url: url.to_owned(), what: "no HTTP".to_owned() })
}

fn exchange(target: &str, host: &str, path: &str, timeout: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + timeout;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut stream = None;
    for address in target.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left()?) {
            Ok(connected) => {
                stream = Some(connected);
                break;
            }
            Err(error) => last = error,
        }
    }
    let mut stream = stream.ok_or(last)?;
    stream.set_write_timeout(Some(left()?))?;
    // HTTP/1.0: the answer is not in chunks, and ends where the connection does.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}\r\nAccept: application/json, text/plain\r\n\r\n");
    // In one piece: whoever answers before all of it has come must not break the rest.
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(read) => bytes.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // What a read timeout is called on Linux.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
        if bytes.len() as u64 > LIMIT {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
    }
}

pub(super) fn parse(bytes: &[u8]) -> Option<Response> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let code = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
    Some(Response { code, headers: lines.map(str::to_owned).collect(), body })
}
