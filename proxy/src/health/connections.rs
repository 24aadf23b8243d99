//! HTTP connections: how many, and for how long. Whoever opens thousands of them and says nothing must neither use up the open
//! files of the process nor keep a probe from its answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// How long a client may take for a request's head, and be silent between two requests; longer than Prometheus' usual interval.
const SILENCE: Duration = Duration::from_secs(90);
/// How long a connection may last, as one may whose client does not read what it asked for.
const AGE: Duration = Duration::from_secs(600);
/// How long the answer that is under way may take then, or when the server closes.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// How long to wait when no connection can be accepted (too many open files, for one).
const AGAIN: Duration = Duration::from_secs(1);

/// Room for connections. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    most: usize,
    /// The oldest comes first.
    open: Arc<Mutex<VecDeque<AbortHandle>>>,
}

impl Connections {
    /// Room for so many. Who comes when all of it is taken gets the place of the oldest: it would not help a probe to wait for
    /// those that say nothing. They never have more than an eighth of the files that the process may open: with three servers,
    /// most of them are left for its work.
    pub(super) fn at_most(most: usize) -> Self {
        let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files / 8).ok());
        Self { most: files.map_or(most, |files| most.min(files.max(1))), open: Arc::default() }
    }

    /// Serves HTTP/1 until the future is dropped, which closes the listener; connections then end with their present answer.
    pub(super) async fn serve(self, listener: TcpListener, routes: Router) -> Infallible {
        // Receivers notice that this has gone.
        let (_serving, closing) = watch::channel(());
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    self.admit(|| tokio::spawn(connection(stream, routes.clone(), closing.clone())).abort_handle())
                }
                Err(error) if is_the_clients(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    fn admit(&self, start: impl FnOnce() -> AbortHandle) {
        // A panic elsewhere leaves the list whole.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= self.most {
            open.retain(|connection| !connection.is_finished());
        }
        while open.len() >= self.most {
            let Some(oldest) = open.pop_front() else { break };
            oldest.abort();
        }
        open.push_back(start());
    }
}

/// One connection, from its first request to its end.
async fn connection(stream: TcpStream, routes: Router, mut closing: watch::Receiver<()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(SILENCE);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    tokio::select! {
        // Errors are the client's: it has gone, was silent, or does not speak HTTP.
        _ = &mut connection => return,
        _ = closing.changed() => {}
        () = sleep(AGE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LAST_ANSWER, connection).await;
}

/// Whether the client went before it was accepted.
fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// A server of so many connections, and its address.
    async fn server(most: usize) -> (tokio::task::JoinHandle<Infallible>, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let routes = Router::new().route("/", get(|| async { "here" })).route(
            "/slow",
            get(|| async {
                sleep(Duration::from_secs(2)).await;
                "late"
            }),
        );
        (tokio::spawn(Connections::at_most(most).serve(listener, routes)), address)
    }

    async fn read(stream: &mut TcpStream) -> String {
        let mut bytes = vec![0; 4096];
        let read =
            timeout(Duration::from_secs(3600), stream.read(&mut bytes)).await.expect("bytes or an end in an hour");
        String::from_utf8_lossy(&bytes[..read.unwrap_or(0)]).into_owned()
    }

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST).await.unwrap();
        read(&mut stream).await
    }

    #[tokio::test]
    async fn who_comes_last_is_answered_however_many_are_silent() {
        let (_server, address) = server(8).await;
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        for _ in 0..3 {
            assert!(ask(address).await.ends_with("here"));
        }
        // Those that are open yet: what is said to them is answered.
        let mut open = 0;
        for stream in &mut silent {
            open += usize::from(stream.write_all(REQUEST).await.is_ok() && read(stream).await.ends_with("here"));
        }
        assert!(open <= 8, "{open}");
    }

    #[tokio::test]
    async fn who_is_silent_is_shut_out_before_and_between_requests() {
        let (_server, address) = server(8).await;
        let mut begun = TcpStream::connect(address).await.unwrap();
        begun.write_all(&REQUEST[..10]).await.unwrap();
        let mut kept = TcpStream::connect(address).await.unwrap();
        kept.write_all(REQUEST).await.unwrap();
        assert!(read(&mut kept).await.ends_with("here"));
        // From here on the clock goes on where nothing else does.
        tokio::time::pause();
        let start = tokio::time::Instant::now();
        for stream in [&mut begun, &mut kept] {
            assert!(!read(stream).await.contains("200"));
        }
        let took = start.elapsed();
        assert!(took >= SILENCE / 2 && took < SILENCE * 2, "{took:?}");
    }

    #[tokio::test]
    async fn an_end_frees_the_address_and_lets_the_present_answer_go_out() {
        let (server, address) = server(8).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        assert!(ask(address).await.ends_with("here"), "the slow one has been accepted before");
        let start = Instant::now();
        server.abort();
        server.await.unwrap_err();
        TcpListener::bind(address).await.unwrap();
        assert_eq!(read(&mut silent).await, "", "nothing is said to who says nothing");
        assert!(read(&mut slow).await.ends_with("late"));
        assert!(start.elapsed() < LAST_ANSWER);
    }
}
