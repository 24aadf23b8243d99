//! HTTP/1.1 as far as a client of the API server speaks it, on threads. By hand, so that it can be done wrong on purpose.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// Bytes of a slow answer that come at once.
const PIECE: usize = 256;
/// The longest body that is taken.
const BODY: usize = 16 << 20;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A client's connection.
pub(super) struct Connection {
    stream: BufReader<Box<dyn Stream>>,
    /// Delay before each piece of an answer.
    pub delay: Duration,
}

/// What was asked, without judgement.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    /// What stands after `Bearer`.
    pub token: Option<String>,
    pub body: Vec<u8>,
    /// The client takes the end of the connection for the end of the answer, as HTTP/1.0 has it.
    pub is_last: bool,
}

impl Asked {
    /// A parameter of the query; empty where there is none.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub fn is_true(&self, name: &str) -> bool {
        matches!(self.parameter(name), "true" | "1")
    }
}

impl Connection {
    pub fn new(tcp: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(config) => {
                let session = ServerConnection::new(config).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(session, tcp))
            }
        };
        Ok(Self { stream: BufReader::new(stream), delay: Duration::ZERO })
    }

    /// The next request; `None` at the end of the connection.
    pub fn ask(&mut self) -> io::Result<Option<Asked>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(bad("no request line")) };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let mut asked = Asked {
            method: method.into(),
            path: path.into(),
            query,
            is_last: words.next() == Some("HTTP/1.0"),
            ..Asked::default()
        };
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            let line = line.trim_end();
            let Some((name, value)) = line.split_once(':') else { break };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.trim().parse().map_err(|_| bad("content-length"))?,
                "authorization" => asked.token = value.trim().strip_prefix("Bearer ").map(str::to_owned),
                _ => {}
            }
        }
        if length > BODY {
            return Err(bad("the body is too long"));
        }
        asked.body.resize(length, 0);
        self.stream.read_exact(&mut asked.body)?;
        Ok(Some(asked))
    }

    /// A whole answer. `extra` are header lines, each with its end.
    pub fn answer(&mut self, code: u16, content_type: &str, extra: &str, body: &str) -> io::Result<()> {
        self.head(code, content_type, &format!("{extra}Content-Length: {}\r\n", body.len()))?;
        self.write(body.as_bytes())
    }

    /// Announces the whole body and sends half of it.
    pub fn half_answer(&mut self, body: &str) -> io::Result<()> {
        self.head(200, "application/json", &format!("Content-Length: {}\r\n", body.len()))?;
        self.write(&body.as_bytes()[..body.len() / 2])
    }

    /// Begins an answer of unknown length.
    pub fn begin(&mut self) -> io::Result<()> {
        self.head(200, "application/json", "Transfer-Encoding: chunked\r\n")
    }

    /// A part of the answer begun.
    pub fn part(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(&chunk)
    }

    /// Ends the answer begun.
    pub fn end(&mut self) -> io::Result<()> {
        self.write(b"0\r\n\r\n")
    }

    fn head(&mut self, code: u16, content_type: &str, extra: &str) -> io::Result<()> {
        let head = format!("HTTP/1.1 {code} {}\r\nContent-Type: {content_type}\r\n{extra}\r\n", reason(code));
        self.stream.get_mut().write_all(head.as_bytes())?;
        self.stream.get_mut().flush()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let stream = self.stream.get_mut();
        if self.delay.is_zero() {
            stream.write_all(bytes)?;
            return stream.flush();
        }
        for piece in bytes.chunks(PIECE) {
            // The delay is the fault itself.
            std::thread::sleep(self.delay);
            stream.write_all(piece)?;
            stream.flush()?;
        }
        Ok(())
    }
}

/// The name of a code, also as `reason` of a Status.
pub(super) fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        201 => "Created",
        400 => "BadRequest",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        405 => "MethodNotAllowed",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        500 => "InternalError",
        503 => "ServiceUnavailable",
        504 => "Timeout",
        _ => "Unknown",
    }
}
