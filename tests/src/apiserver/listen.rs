//! Accepting connections, going down and coming up again at the same port.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;

use super::answer::answer;
use super::http::Connection;
use super::state::Shared;

/// How soon a port that could not be bound is tried again.
pub(super) const AGAIN: Duration = Duration::from_millis(50);

/// Accepts until the server ends. Runs on a thread of its own, in the namespace that the server is in.
pub(super) fn accept(shared: &Arc<Shared>, address: SocketAddr, tls: Option<&Arc<ServerConfig>>) {
    while let Some(listener) = listener(shared, address) {
        while let Ok((stream, _)) = listener.accept() {
            let (shared, tls) = (shared.clone(), tls.cloned());
            thread::spawn(move || converse(&shared, stream, tls));
        }
        // The last owner: the socket is closed before anybody hears of it.
        shared.change(|state| state.listener = None);
        drop(listener);
    }
}

/// The socket to accept from, as soon as one is wanted; `None` at the end of the server.
fn listener(shared: &Shared, address: SocketAddr) -> Option<Arc<TcpListener>> {
    let mut state = shared.lock();
    loop {
        if state.has_ended {
            return None;
        }
        if !state.is_up {
            // It may have gone down before the first accept.
            if state.listener.take().is_some() {
                shared.tell();
            }
        } else if let Some(listener) = state.listener.clone() {
            return Some(listener);
        } else if let Ok(bound) = TcpListener::bind(address) {
            let bound = Arc::new(bound);
            state.listener = Some(bound.clone());
            shared.tell();
            return Some(bound);
        }
        state = shared.wait(state, AGAIN);
    }
}

/// Answers the requests of a connection until either side ends it.
fn converse(shared: &Shared, stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
    let Ok(closer) = stream.try_clone() else { return };
    let (number, cuts) = shared.change(|state| {
        state.last_connection += 1;
        state.connections.insert(state.last_connection, closer);
        (state.last_connection, state.cuts)
    });
    // Accepted at the last moment before the server went down.
    let is_wanted = shared.lock().is_up;
    // How a client or the network ends a connection is their affair: what matters is in the log of requests.
    if let (true, Ok(mut connection)) = (is_wanted, Connection::new(stream, tls)) {
        while let Ok(Some(asked)) = connection.ask() {
            if !matches!(answer(shared, &mut connection, &asked, cuts), Ok(true)) || asked.is_last {
                break;
            }
        }
    }
    if let Some(closer) = shared.change(|state| state.connections.remove(&number)) {
        drop(closer.shutdown(std::net::Shutdown::Both));
    }
}
