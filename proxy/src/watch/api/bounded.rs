//! Bounds what an answer of the API server can have us keep in memory at once: a line of it. A watch is one event a line, a
//! list is one line. What is longer is cut, and the rest of it passed over up to the next line.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tower::{Layer, Service};

/// The longest line, in bytes: 32 MiB. An object of etcd has 1.5 MiB unless somebody raises that.
pub(super) const LONGEST: usize = 32 << 20;

/// A layer that bounds the answers that pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounded;

/// The bounding part of a client.
#[derive(Clone, Debug)]
pub(super) struct Bounding<S>(S);

/// An answer's body, cut where a line is too long.
#[derive(Debug)]
pub(super) struct Lines<B> {
    body: B,
    longest: usize,
    /// Bytes of the line so far.
    length: usize,
    /// The rest of the line is passed over.
    over: bool,
}

impl<S> Layer<S> for Bounded {
    type Service = Bounding<S>;

    fn layer(&self, inner: S) -> Bounding<S> {
        Bounding(inner)
    }
}

impl<S, B, A> Service<Request<B>> for Bounding<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = Response<Lines<A>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| Lines { body, longest: LONGEST, length: 0, over: false })) })
    }
}

impl<B> Lines<B> {
    /// What is left of a part of the body, and whether a line has become too long in it.
    fn cut(&mut self, part: Bytes) -> (Bytes, bool) {
        let is_newline = |byte: &u8| *byte == b'\n';
        // Nearly always: no line can be too long in it.
        if !self.over && part.len() <= self.longest.saturating_sub(self.length) {
            self.length = match part.iter().rposition(is_newline) {
                Some(end) => part.len() - end - 1,
                None => self.length + part.len(),
            };
            return (part, false);
        }
        let (mut kept, mut cut) = (Vec::with_capacity(part.len()), false);
        for piece in part.split_inclusive(is_newline) {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            if !self.over {
                let mut end = text.len().min(self.longest.saturating_sub(self.length));
                // A character has three such bytes at most, and half of one would be no text.
                while self.length + end < self.longest + 3 && text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
                    end += 1;
                }
                kept.extend_from_slice(&text[..end]);
                self.length += end;
                self.over = end < text.len();
                cut |= self.over;
            }
            if text.len() < piece.len() {
                kept.push(b'\n');
                (self.length, self.over) = (0, false);
            }
        }
        (kept.into(), cut)
    }
}

impl<B> Body for Lines<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                other => return Poll::Ready(other),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            };
            let (kept, cut) = self.cut(data);
            if cut {
                tracing::warn!(longest = self.longest, "the API server sends a line that is too long: passed over");
            }
            if !kept.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(kept))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // What may be cut has no size that is known.
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn through(longest: usize, parts: &[&[u8]]) -> Vec<u8> {
        let mut lines = Lines { body: (), longest, length: 0, over: false };
        parts.iter().flat_map(|part| lines.cut(Bytes::copy_from_slice(part)).0).collect()
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_told_once() {
        assert_eq!(through(4, &[b"ab\ncdefgh", b"ijk", b"l\nmn", b"op\n\n", b"qrstu"]), b"ab\ncdef\nmnop\n\nqrst");
        let mut lines = Lines { body: (), longest: 4, length: 0, over: false };
        let told: Vec<_> = [&b"abc"[..], b"d", b"e", b"f", b"\nabc", b"\nabcde\n"]
            .map(|part| lines.cut(Bytes::from_static(part)).1)
            .into();
        assert_eq!(told, [false, false, true, false, false, true]);
        let told = through(3, &["aaéé".as_bytes(), "é\nbb".as_bytes(), &"€€".as_bytes()[..2], &"€€".as_bytes()[2..]]);
        assert_eq!(String::from_utf8(told).unwrap(), "aaé\nbb€");
    }

    proptest! {
        #[test]
        fn every_line_keeps_its_beginning_however_it_comes(lines in vec("[a-z]{0,9}", 0..9), cuts in vec(0usize..60, 0..6)) {
            let text = lines.join("\n");
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let wanted: Vec<_> = lines.iter().map(|line| &line[..line.len().min(5)]).collect();
            prop_assert_eq!(String::from_utf8(through(5, &parts)).unwrap(), wanted.join("\n"));
        }
    }
}
