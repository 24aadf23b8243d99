//! The HTTP servers at the health address and at the metrics address. The only IO of this file is the sockets; what they
//! answer is in [`routes`](super::routes).

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};
use tracing::{info, warn};

use super::connections::Connections;
use super::host::local_only;
use super::routes::{Serving, health_routes, metrics_routes};
use crate::events::Reason;
use crate::settings::Settings;

/// How long to wait before an address that could not be bound is tried again; kube-proxy's.
const RETRY: Duration = Duration::from_secs(5);

/// Connections that may wait to be taken, as in the standard library.
const BACKLOG: u32 = 128;

/// Connections that may be open at each of the two addresses: what asks there, a kubelet and a few that scrape, has one or two.
const CONNECTIONS: usize = 128;

/// Why serving ended; only where `bind_hard_fail` is set.
#[derive(thiserror::Error, Debug)]
pub enum ServeError {
    /// An address cannot be bound.
    #[error("cannot serve {what} at {address}: {source}; free the address, or choose another with {flag}")]
    Bind {
        /// What was to be served there.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// The reason of the Event about it.
        reason: Reason,
        /// The system's error.
        source: io::Error,
    },
}

impl ServeError {
    /// The reason of the Event on the Node.
    pub fn reason(&self) -> Reason {
        let Self::Bind { reason, .. } = self;
        *reason
    }
}

/// One server: what it is called in messages, the flag that sets its address, and what an Event says if it is not there.
#[derive(Clone, Copy, Debug)]
struct Server {
    what: &'static str,
    flag: &'static str,
    reason: Reason,
    hard_fail: bool,
}

/// Serves at the addresses of the settings until the future is dropped. An address that cannot be bound is tried again every
/// 5 s, with a warning each time.
///
/// # Errors
/// [`ServeError`], at once, where `bind_hard_fail` is set.
pub async fn serve(settings: &Settings, serving: Serving) -> Result<Infallible, ServeError> {
    let hard_fail = settings.bind_hard_fail;
    let (health, metrics) = (Reason::FailedToStartProxierHealthcheck, Reason::FailedToStartMetricServer);
    let health = Server { what: "/healthz", flag: "--healthz-bind-address", reason: health, hard_fail };
    let metrics = Server { what: "/metrics", flag: "--metrics-bind-address", reason: metrics, hard_fail };
    let (ended, _) = tokio::try_join!(
        health.serve(settings.healthz, health_routes(serving.clone())),
        metrics.serve(settings.metrics, metrics_routes(serving)),
    )?;
    Ok(ended)
}

impl Server {
    async fn serve(self, address: Option<SocketAddr>, routes: Router) -> Result<Infallible, ServeError> {
        let Some(address) = address else { return std::future::pending().await };
        let routes = if address.ip().is_loopback() { routes.layer(from_fn(local_only)) } else { routes };
        loop {
            match bind(address).await {
                Ok(listener) => {
                    info!(%address, "serving {}", self.what);
                    return Ok(Connections::at_most(CONNECTIONS).serve(listener, routes).await);
                }
                Err(source) if self.hard_fail => {
                    let Self { what, flag, reason, .. } = self;
                    return Err(ServeError::Bind { what, address, flag, reason, source });
                }
                Err(error) => {
                    warn!(%address, %error, "cannot serve {}: trying again in 5s; {} sets the address", self.what, self.flag);
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Listens at an address. 0.0.0.0 is every address of both families, as it is to programs of Go, kube-proxy among them, where the
/// kernel has IPv6.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip() != Ipv4Addr::UNSPECIFIED {
        return TcpListener::bind(address).await;
    }
    let Ok(socket) = TcpSocket::new_v6() else { return TcpListener::bind(address).await };
    set_ipv6_v6only(&socket, false)?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, address.port()).into())?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests;
