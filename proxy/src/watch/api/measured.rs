//! Counts the requests of a client.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use http::{Request, Response};
use tower::{Layer, Service};

use crate::metrics::RestClient;

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
            answer
        })
    }
}
