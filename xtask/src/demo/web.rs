//! The web server in the demo's pods: says its name and who asked, and ends without hurting anybody.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::places;

/// The port that the pods' web servers listen on.
pub const PORT: u16 = 8080;

/// Answers HTTP requests with this pod's name, as the demo's pods do
#[derive(clap::Args)]
pub struct Args {
    /// The pod's name
    name: String,
    /// The cgroup to run in
    #[arg(long)]
    cgroup: Option<PathBuf>,
}

/// Serves until SIGTERM, then finishes the requests in hand.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.cgroup.as_deref().map_or(Ok(()), places::enter)?;
    let mut signals = Signals::new([SIGTERM]).context("cannot listen for signals")?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).with_context(|| format!("port {PORT}"))?;
    let ending = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&ending);
    std::thread::spawn(move || {
        for _ in &mut signals {
            asked.store(true, Ordering::SeqCst);
            // accept() is asleep: a connection of our own wakes it.
            let _ = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], PORT)));
        }
    });
    let in_hand = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        if ending.load(Ordering::SeqCst) {
            break;
        }
        let Ok(stream) = stream else { continue };
        let (name, in_hand) = (args.name.clone(), Arc::clone(&in_hand));
        in_hand.fetch_add(1, Ordering::SeqCst);
        std::thread::spawn(move || {
            // A client that hangs up hurts only itself.
            let _ = answer(stream, &name);
            in_hand.fetch_sub(1, Ordering::SeqCst);
        });
    }
    while in_hand.load(Ordering::SeqCst) > 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Reads a request up to its empty line and answers `NAME sees ADDRESS`.
fn answer(mut stream: TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let peer = stream.peer_addr()?.ip();
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let body = format!("{name} sees {peer}\n");
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}
