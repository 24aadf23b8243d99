//! Counts the requests of a client, and heeds the server that asks to be left alone for a while.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use tower::{Layer, Service};

use crate::metrics::RestClient;

/// The longest that a server is left alone because it asks for it.
const LONGEST: Duration = Duration::from_secs(30);

/// A layer that counts what passes.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    host: String,
    requests: RestClient,
}

impl Measured {
    /// For requests to this host.
    pub fn new(host: String, requests: RestClient) -> Self {
        Self { host, requests }
    }
}

impl<S> Layer<S> for Measured {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner, measured: self.clone() }
    }
}

/// The counting part of a client.
#[derive(Clone, Debug)]
pub(super) struct Counting<S> {
    inner: S,
    measured: Measured,
}

impl<S, B, A> Service<Request<B>> for Counting<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
    S::Error: Send,
    A: Send,
{
    type Response = Response<A>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<A>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (Measured { host, requests }, start) = (self.measured.clone(), Instant::now());
        let method = request.method().as_str().to_owned();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            requests.answered(&host, &method, code, start.elapsed());
            // Whoever asked has the refusal when it is time to ask again.
            if let Some(pause) = answer.as_ref().ok().and_then(wanted_pause) {
                tokio::time::sleep(pause).await;
            }
            answer
        })
    }
}

/// How long a refusal asks to wait, in seconds (RFC 9110; the API server's priority and fairness). A date is not heeded.
fn wanted_pause<B>(answer: &Response<B>) -> Option<Duration> {
    let busy = matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let seconds = answer.headers().get(RETRY_AFTER).filter(|_| busy)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_how_long_to_wait() {
        let answer = |code, after: &str| Response::builder().status(code).header(RETRY_AFTER, after).body(()).unwrap();
        assert_eq!(wanted_pause(&answer(429, "2")), Some(Duration::from_secs(2)));
        assert_eq!(wanted_pause(&answer(503, "86400")), Some(LONGEST));
        assert_eq!(wanted_pause(&answer(200, "2")), None);
        assert_eq!(wanted_pause(&answer(429, "Wed, 21 Oct 2015 07:28:00 GMT")), None);
        assert_eq!(wanted_pause(&Response::new(())), None);
    }
}
