//! A Service over TCP and UDP whose endpoints do with a connection what its client asks for.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use kubeferry_tests::client::DEADLINE;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::sockets::reset_on_close;

use super::cluster::endpoint;

/// The most endpoints that a test may use.
pub const ENDPOINTS: u8 = 5;

/// The Service: TCP at port 80, TCP that no endpoint takes at port 81, UDP at port 82.
#[derive(Clone, Debug)]
pub struct Web {
    scheduler: &'static str,
    /// The numbers of its endpoints and their weights, in both families.
    endpoints: Vec<(u8, u16)>,
    /// Other annotations, as lines of YAML.
    pub annotations: String,
}

impl Web {
    /// With endpoints 1, 2 … of these weights.
    pub fn new(scheduler: &'static str, weights: &[u16]) -> Self {
        Self::of(scheduler, &(1..).zip(weights.iter().copied()).collect::<Vec<_>>())
    }

    /// With these endpoints and weights.
    pub fn of(scheduler: &'static str, endpoints: &[(u8, u16)]) -> Self {
        Self { scheduler, endpoints: endpoints.to_vec(), annotations: String::new() }
    }

    /// Its objects.
    pub fn manifests(&self) -> String {
        let Self { scheduler, endpoints, annotations } = self;
        let weights = endpoints
            .iter()
            .flat_map(|(number, weight)| [false, true].map(|v6| format!("{}={weight}", endpoint(*number, v6).ip())));
        let mut text = format!(
            "---
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    kubeferry.dev/scheduler: {scheduler}
    kubeferry.dev/weights: '{}'
    {annotations}
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  ports:
    - {{name: tcp, port: 80, nodePort: 30080}}
    - {{name: closed, port: 81, nodePort: 30081}}
    - {{name: udp, protocol: UDP, port: 82, nodePort: 30082}}
",
            weights.collect::<Vec<_>>().join(","),
        );
        for (family, v6) in [("IPv4", false), ("IPv6", true)] {
            let ends = endpoints.iter().map(|(number, _)| format!("{{addresses: ['{}']}}", endpoint(*number, v6).ip()));
            let _ = write!(
                text,
                "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-{family}, labels: {{kubernetes.io/service-name: web}}}}
addressType: {family}
ports: [{{name: tcp, port: 8080}}, {{name: closed, port: 8099}}, {{name: udp, protocol: UDP, port: 8080}}]
endpoints: [{}]
",
                ends.collect::<Vec<_>>().join(", ")
            );
        }
        text
    }
}

/// The ClusterIP with a port.
pub fn vip(v6: bool, port: u16) -> SocketAddr {
    let ip: IpAddr = if v6 { "fd00:10:96::10" } else { "10.96.0.10" }.parse().unwrap();
    SocketAddr::new(ip, port)
}

/// A connection to an endpoint.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Who has it.
    pub endpoint: SocketAddr,
}

impl Connection {
    /// Over a stream that has just been opened; it may break.
    pub fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut connection = Self { endpoint: stream.peer_addr()?, stream };
        connection.endpoint = connection.try_ask()?;
        Ok(connection)
    }

    /// Asks the endpoint who it is.
    pub fn ask(&mut self) -> SocketAddr {
        self.try_ask().unwrap_or_else(|error| panic!("a connection to {} broke: {error}", self.endpoint))
    }

    fn try_ask(&mut self) -> std::io::Result<SocketAddr> {
        self.stream.write_all(b"?\n")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            self.stream.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).trim_end().parse().map_err(std::io::Error::other)
    }

    /// Ends it from this side: with a FIN, and the endpoint does the same.
    pub fn close(self) {}

    /// Closes this side only.
    pub fn half_close(&self) {
        self.stream.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Ends it with a RST.
    pub fn reset(self) {
        reset_on_close(&self.stream).unwrap();
    }

    /// Has the endpoint end it with a FIN, and then does the same.
    pub fn have_closed(mut self) {
        self.stream.write_all(b"close\n").unwrap();
        assert_eq!(self.stream.read(&mut [0]).unwrap(), 0);
    }

    /// Has the endpoint end it with a RST. The socket stays open.
    pub fn have_reset(mut self) -> TcpStream {
        self.stream.write_all(b"reset\n").unwrap();
        assert_eq!(self.stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        self.stream
    }
}

/// An endpoint. Over TCP each line is answered by its address, but for `close` and `reset`. Over UDP each datagram is, but
/// for empty ones.
pub fn serve(namespace: &Netns, at: SocketAddr) {
    let bind = || (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap());
    let (listener, socket) = namespace.run(bind).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    if line == "reset" {
                        reset_on_close(&stream).unwrap();
                    }
                    // A client that is gone is its own affair.
                    if line != "?" || writeln!(&stream, "{at}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            if length > 0 {
                drop(socket.send_to(at.to_string().as_bytes(), client));
            }
        }
    });
}

/// The number of an endpoint.
pub fn number(of: SocketAddr) -> u8 {
    (1..=ENDPOINTS).find(|number| [false, true].map(|v6| endpoint(*number, v6)).contains(&of)).unwrap()
}
