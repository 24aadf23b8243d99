//! A trace ends when it is told to, whatever holds it up.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::until;
use kubeferry_tests::datapath::Datapath;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::served::Served;

/// Killed when dropped, if it has not ended.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Nothing that it had made in the kernel is there any more.
fn is_off(served: &Served, tables: &str) -> bool {
    match &served.datapath {
        Datapath::Nftables => served.tables() == tables,
        Datapath::Ebpf(places) => Pinned::open(places.bpffs()).unwrap().followed_until().unwrap() == 0,
    }
}

pub fn ending_is_not_held_up_by_who_does_not_read(datapath: Datapath) {
    let served = Served::on(datapath);
    let tables = served.tables();
    let folder = tempfile::tempdir().unwrap();
    let errors = folder.path().join("err");
    let complaints = || std::fs::read_to_string(&errors).unwrap_or_default();
    let (unread, out) = pipe().unwrap();
    let mut command = served.trace(&["--service", "web", "--rate", "1000"]);
    command.stdin(Stdio::null()).stdout(out).stderr(File::create(&errors).unwrap());
    let mut trace = Ends(served.node().spawn(&mut command).unwrap());
    // It has an end of the pipe.
    drop(command);
    until("the trace to begin", || complaints().contains("following").then_some(())).unwrap();
    assert!(!is_off(&served, &tables));
    let mut last = 0;
    until("the pipe to be full", || {
        for _ in 0..20 {
            served.connect(80);
        }
        let before = std::mem::replace(&mut last, rustix::io::ioctl_fionread(&unread).unwrap());
        (last > 32 << 10 && last == before).then_some(())
    })
    .unwrap();
    signal(&trace.0, Signal::TERM);
    let status = until("the trace to end", || trace.0.try_wait().unwrap()).unwrap();
    assert!(status.success() && complaints().contains(" more were seen and not told"), "{status} {}", complaints());
    assert!(is_off(&served, &tables), "{}", served.tables());
    drop(unread);
}

/// Passes on what the proxy is asked, until it is to be silent.
#[derive(Default)]
struct Between {
    is_silent: AtomicBool,
    is_over: AtomicBool,
    /// How often it was asked since.
    asked: AtomicUsize,
}

impl Between {
    /// Until [`Between::end`]; where it listens, inside the node.
    fn start(served: &Served) -> (Arc<Self>, SocketAddr) {
        let listener = served.node().run(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let at = listener.local_addr().unwrap();
        let between = Arc::new(Self::default());
        let theirs = between.clone();
        let work = move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let stream = stream?;
                if theirs.is_over.load(Ordering::Acquire) {
                    break;
                }
                if theirs.is_silent.load(Ordering::Acquire) {
                    theirs.asked.fetch_add(1, Ordering::AcqRel);
                    held.push(stream);
                } else {
                    pass(stream)?;
                }
            }
            Ok(())
        };
        served.node().thread(work).unwrap();
        (between, at)
    }

    fn end(&self, served: &Served, at: SocketAddr) {
        self.is_over.store(true, Ordering::Release);
        served.node().run(|| TcpStream::connect(at).unwrap()).unwrap();
    }
}

/// One question, and its answer.
fn pass(mut stream: TcpStream) -> std::io::Result<()> {
    let mut asked = Vec::new();
    while !asked.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        asked.extend(byte);
    }
    let mut proxy = TcpStream::connect("127.0.0.1:10249")?;
    proxy.write_all(&asked)?;
    std::io::copy(&mut proxy, &mut stream).map(drop)
}

pub fn ending_is_not_held_up_by_a_proxy_that_does_not_answer(datapath: Datapath) {
    let served = Served::on(datapath);
    let tables = served.tables();
    for by_signal in [true, false] {
        let (between, at) = Between::start(&served);
        let url = format!("http://{at}");
        let mut flags = vec!["--service", "web", "--url", &url];
        flags.extend(if by_signal { [].as_slice() } else { &["--for", "4s"] });
        let mut follower = served.follow(&flags);
        between.is_silent.store(true, Ordering::Release);
        for _ in 0..12 {
            served.connect(80);
        }
        if by_signal {
            until("the proxy to be asked", || (between.asked.load(Ordering::Acquire) > 0).then_some(())).unwrap();
            signal(follower.child(), Signal::INT);
        }
        // One question after the other would be waited for a minute.
        let status = until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
        assert!(is_off(&served, &tables), "{}", served.tables());
        let (lines, complaints) = (follower.lines(), follower.complaints());
        assert!(status.success() && !lines.is_empty(), "{status} {complaints}");
        assert!(lines.iter().all(|line| line["model"] == Value::Null && line["agrees"] == Value::Null), "{lines:#?}");
        let summary = format!("{0} connections followed, 0 not as the model says, {0} not judged", lines.len());
        assert!(complaints.contains(&summary), "{complaints}");
        let asked = between.asked.load(Ordering::Acquire);
        between.end(&served, at);
        assert_eq!(asked, 1, "it is not asked for each of {} connections", lines.len());
    }
}
