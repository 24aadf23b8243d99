//! The API server by a name that a DNS server knows: what a static binary does by itself, with the C library's means.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubeferry_tests::binary;
use kubeferry_tests::client::{Running, until};

use super::node::Node;

/// A DNS server that knows one name and its IPv4 address, 127.0.0.1, until the value is dropped.
struct Dns(Arc<AtomicBool>);

impl Dns {
    /// Serves at port 53 of the loopback of the calling thread's namespace.
    fn serve(name: &'static str) -> std::io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = ended.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while !is_over.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                drop(socket.send_to(&answer(&buffer[..length], name), client));
            }
        });
        Ok(Self(ended))
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The answer to a question (RFC 1035, section 4.1): the address, no record of another type, or that there is no such name.
fn answer(question: &[u8], name: &str) -> Vec<u8> {
    let labels: Vec<u8> =
        name.split('.').flat_map(|label| [&[label.len() as u8][..], label.as_bytes()].concat()).chain([0]).collect();
    let asked = question[12..].iter().position(|byte| *byte == 0).map_or(12, |end| 12 + end + 1);
    let knows = question[12..asked] == labels;
    let is_a = question[asked..asked + 2] == [0, 1];
    let found = knows && is_a;
    let mut answer = question[..2].to_vec();
    answer.extend([0x81, if knows { 0x80 } else { 0x83 }, 0, 1, 0, u8::from(found), 0, 0, 0, 0]);
    answer.extend(&question[12..asked + 4]);
    if found {
        // The name of the question, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    answer
}

#[test]
fn the_server_is_found_by_dns() {
    let node = Node::new();
    let _dns = node.namespace.run(|| Dns::serve("api.cluster.test")).unwrap().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let resolv = folder.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 127.0.0.1\n").unwrap();
    let url = node.server.url().replace("127.0.0.1", "api.cluster.test");
    // The file is everybody's: only what runs here is to see ours.
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(&resolv).arg(binary::path().unwrap());
    command.args(["run", "--node-name", "n1", "--server", &url]).stdin(Stdio::null());
    let log = folder.path().join("log");
    command.stderr(std::fs::File::create(&log).unwrap());
    let _running = Running::start_command(&mut command, &node.namespace).unwrap();
    until("the table, after a list of what the server has", || node.has_table().then_some(()))
        .unwrap_or_else(|error| panic!("{error:#}; the log:\n{}", std::fs::read_to_string(&log).unwrap()));
}
