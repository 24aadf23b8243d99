//! A watch as the server sends it: a line for each event. kube's own reader has a line three times, and builds a value of all that
//! is in it where the type of the event comes last.

use std::borrow::Cow;
use std::io;

use futures::{AsyncBufReadExt, Stream, stream};
use http::header::{ACCEPT_ENCODING, HeaderValue};
use kube::api::{Api, WatchEvent, WatchParams};
use kube::core::Status;
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::bounded::LONGEST;
use super::lenient::Lenient;

/// The largest buffer that is kept for the next line, in bytes.
const KEPT: usize = 64 << 10;

/// An event, as it is written.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Watches from a version on. The stream ends where the server, or the way to it, ends it.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub(super) async fn watch(
    client: &Client,
    api: &Api<Lenient>,
    params: &WatchParams,
    version: &str,
) -> kube::Result<impl Stream<Item = kube::Result<WatchEvent<Lenient>>> + use<>> {
    let request = kube::core::Request::new(api.resource_url()).watch(params, version);
    let mut request = request.map_err(Error::BuildRequest)?;
    // Kubernetes 1.37 compresses each event for itself, which what unpacks answers here cannot read.
    request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let body = Box::pin(client.request_stream(request).await?);
    Ok(stream::unfold((body, Vec::new()), |(mut body, mut line)| async move {
        loop {
            line.clear();
            line.shrink_to(KEPT);
            let item = match body.read_until(b'\n', &mut line).await {
                Ok(0) => return None,
                Ok(_) => read(&line),
                Err(error) if has_ended(&error) => {
                    tracing::debug!(%error, "the watch was cut off");
                    return None;
                }
                Err(error) => Some(Err(Error::ReadEvents(error))),
            };
            if let Some(item) = item {
                return Some((item, (body, line)));
            }
        }
    }))
}

/// The event of a line; `None`: there is none in it, or it ends in the middle, having been cut off: by the end of the connection, after
/// which the server tells it again, or by [`Bounded`](super::bounded::Bounded), which has told that.
///
/// # Errors
/// It is no event: the change that it told of, also by half of it and a line break, is lost. Or a refusal.
pub(super) fn read(line: &[u8]) -> Option<kube::Result<WatchEvent<Lenient>>> {
    // With it, a line that was cut within a string would be one with a line break there.
    let whole = line.strip_suffix(b"\n");
    let line = whole.unwrap_or(line);
    let is_cut = whole.is_none() || line.len() >= LONGEST || line.trim_ascii().is_empty();
    let event = serde_json::from_slice(line).and_then(|Line { kind, object }| {
        let text = object.get();
        Ok(match &*kind {
            "ADDED" => WatchEvent::Added(serde_json::from_str(text)?),
            "MODIFIED" => WatchEvent::Modified(serde_json::from_str(text)?),
            "DELETED" => WatchEvent::Deleted(serde_json::from_str(text)?),
            "BOOKMARK" => WatchEvent::Bookmark(serde_json::from_str(text)?),
            "ERROR" => WatchEvent::Error(serde_json::from_str(text)?),
            other => return Err(serde::de::Error::custom(format_args!("an event of the unknown type {other:?}"))),
        })
    });
    match event {
        Ok(event) => Some(Ok(event)),
        Err(error) if error.is_eof() && is_cut => None,
        // A refusal, instead of an event; any object could be read as one, but for the code.
        Err(error) => Some(Err(match serde_json::from_slice::<Status>(line) {
            Ok(status) if status.code != 0 => Error::Api(Box::new(status)),
            _ => Error::SerdeError(error),
        })),
    }
}

/// Whether the connection just ended, as every watch's does after some minutes.
fn has_ended(error: &io::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        if io.is_some_and(|error| matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::TimedOut))
            || error.to_string().contains("unexpected EOF during chunk")
        {
            return true;
        }
        cause = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::explain;
    use super::*;

    #[test]
    fn the_type_may_come_first_or_last() {
        let object = r#"{"metadata": {"name": "a", "resourceVersion": "5"}}"#;
        for line in [
            format!(r#"{{"type": "MODIFIED", "object": {object}}}"#),
            format!(r#"{{"object": {object}, "type": "MODIFIED"}}"#),
        ] {
            let Some(Ok(WatchEvent::Modified(read))) = read(line.as_bytes()) else { panic!("{line}") };
            assert_eq!(read.metadata.name.as_deref(), Some("a"));
            assert_eq!(read.metadata.resource_version.as_deref(), Some("5"));
        }
    }

    #[test]
    fn half_a_line_is_none_and_what_is_no_event_is_an_error() {
        assert!(read(br#"{"type": "ADDED", "object": {"metadata""#).is_none());
        assert!(read(b"\n").is_none() && read(b"\r\n").is_none());
        let status = br#"{"kind": "Status", "code": 410, "message": "gone", "reason": "Expired", "status": "Failure"}"#;
        assert!(matches!(read(status), Some(Err(Error::Api(status))) if status.code == 410));
        for line in [&b"3"[..], b"\xff", br#"{"type": "NEWS", "object": {}}"#, br#"{"type": "ADDED", "object": 3}"#] {
            assert!(matches!(read(line), Some(Err(Error::SerdeError(_)))), "{line:?}");
        }
    }

    #[test]
    fn half_an_event_that_is_a_whole_line_is_a_change_that_is_lost() {
        for line in [&b"{\"type\": \"ADDED\", \"object\": {\"metada\n"[..], b"{\n", b"{\"type\": \"DELETED\"\n"] {
            let Some(Err(error)) = read(line) else { panic!("{line:?}") };
            assert!(explain::needs_list(&error, 0), "{error}");
        }
        // What was cut for its length has been told, and would be cut again.
        let mut long = br#"{"type": "ADDED", "object": {"metadata": {"name": ""#.to_vec();
        long.resize(LONGEST, b'a');
        long.push(b'\n');
        assert!(read(&long).is_none());
    }

    #[test]
    fn an_end_is_told_from_an_error_however_deep_it_is() {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(has_ended(&end()) && has_ended(&io::Error::other(io::Error::other(end()))));
        assert!(has_ended(&io::Error::other("unexpected EOF during chunk size line")));
        assert!(!has_ended(&io::Error::other("connection reset")));
    }
}
