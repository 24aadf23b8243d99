//! What runs inside of the virtual machine: the machine is the director, a client and the real servers are namespaces. Each
//! case is a virtual service of its own. Its assignments are printed as a line of JSON.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};

use super::script::{Case, Step, cases};
use crate::netns::Namespace;
use crate::process::wait_until;
use crate::step;

/// How long a connection may take to be made, and IPVS to count it.
const PATIENCE: Duration = Duration::from_secs(20);
/// The virtual services' address.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// As many real servers as a case has endpoints, at most.
const SERVERS: u8 = 4;
/// As many addresses as the client has.
const CLIENTS: u8 = 40;
const SERVER_PORT: u16 = 80;

/// Put scripted arrivals to this machine's IPVS (inside of a virtual machine)
#[derive(clap::Args)]
pub struct Args {}

/// Runs every case.
pub fn run(_args: Args) -> anyhow::Result<()> {
    let client = Namespace::create("client".to_owned())?;
    let servers = Namespace::create("servers".to_owned())?;
    connect_namespaces(&client, &servers)?;
    serve(&servers)?;
    // No port comes twice: IPVS knows answers by the client's and the real server's ends.
    let mut ports = 2000..;
    for (number, case) in cases().iter().enumerate() {
        let service = SocketAddr::from((SERVICE, 1000 + u16::try_from(number)?));
        let what = format!("{} {:?} {}", case.scheduler, case.weights, case.script);
        let assigned = Director { client: &client, service, case, ports: &mut ports }.run().context(what)?;
        let script: Vec<String> = case.steps.iter().map(Step::to_string).collect();
        let line = serde_json::json!({
            "scheduler": case.scheduler, "weights": case.weights, "name": case.script, "script": script.join(" "), "assigned": assigned,
        });
        println!("{line}");
    }
    Ok(())
}

fn connect_namespaces(client: &Namespace, servers: &Namespace) -> anyhow::Result<()> {
    let run = |lines: &str| step::feed(Command::new("ip").args(["-batch", "-"]), lines);
    run(
        "link add toclient type veth peer name eth0 netns client\nlink add toservers type veth peer name eth0 netns servers",
    )?;
    run("addr add 10.1.255.1/16 dev toclient\naddr add 10.9.255.1/16 dev toservers")?;
    run("link set toclient up\nlink set toservers up")?;
    run(&format!("addr add {SERVICE}/32 dev lo"))?;
    let addresses = |net: &str, count: u8| -> String {
        (1..=count).map(|host| format!("addr add {net}.0.{host}/16 dev eth0\n")).collect()
    };
    client.ip(&(addresses("10.1", CLIENTS) + "link set eth0 up\nroute add default via 10.1.255.1"))?;
    servers.ip(&(addresses("10.9", SERVERS) + "link set eth0 up\nroute add default via 10.9.255.1"))?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")
}

/// Has every real server answer a connection with its number and keep it until the client ends it.
fn serve(servers: &Namespace) -> anyhow::Result<()> {
    for number in 0..SERVERS {
        let listener = servers.enter(|| TcpListener::bind((server(number), SERVER_PORT)))??;
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    // The client may reset it at any time.
                    let _ = stream.write_all(&[number]).and_then(|()| stream.read(&mut [0]));
                });
            }
        });
    }
    Ok(())
}

fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, number + 1)
}

/// One case on its way.
struct Director<'a, P: Iterator<Item = u16>> {
    client: &'a Namespace,
    service: SocketAddr,
    case: &'a Case,
    ports: &'a mut P,
}

/// What IPVS counts for an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counted {
    active: usize,
    inactive: usize,
}

impl<P: Iterator<Item = u16>> Director<'_, P> {
    /// Makes the virtual service and follows the script; gives the endpoint of each connection.
    fn run(mut self) -> anyhow::Result<Vec<u8>> {
        let service = self.service.to_string();
        ipvsadm(&["-A", "-t", &service, "-s", self.case.scheduler])?;
        // IPVS puts a new endpoint in front of its list.
        for (number, weight) in self.case.weights.iter().enumerate().rev() {
            self.set("-a", number, *weight)?;
        }
        let listed: Vec<Ipv4Addr> = self.table()?.into_iter().map(|(address, _)| address).collect();
        let wanted: Vec<Ipv4Addr> = (0..u8::try_from(self.case.weights.len())?).map(server).collect();
        ensure!(listed == wanted, "IPVS lists {listed:?}, not {wanted:?}");

        let mut assigned = Vec::new();
        let mut streams: Vec<Option<TcpStream>> = Vec::new();
        let mut expected = vec![Counted::default(); self.case.weights.len()];
        for (at, step) in self.case.steps.iter().enumerate() {
            match *step {
                Step::Open { source } => {
                    let (stream, endpoint) = self.open(source).with_context(|| format!("step {at}, {step}"))?;
                    expected[usize::from(endpoint)].active += 1;
                    assigned.push(endpoint);
                    streams.push(Some(stream));
                }
                Step::Close(number) | Step::Reset(number) => {
                    let stream = streams.get_mut(number).and_then(Option::take).context("a script without sense")?;
                    if matches!(step, Step::Reset(_)) {
                        sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                    }
                    drop(stream);
                    let counted = &mut expected[usize::from(assigned[number])];
                    counted.active -= 1;
                    counted.inactive += 1;
                }
                Step::Rest => expected.iter_mut().for_each(|counted| counted.inactive = 0),
                Step::Weight { endpoint, weight } => self.set("-e", endpoint, weight)?,
            }
            let mut seen = Vec::new();
            let settled = wait_until("IPVS to count as expected", PATIENCE, || {
                seen = self.table()?.into_iter().map(|(_, counted)| counted).collect();
                Ok(seen == expected)
            });
            settled.with_context(|| format!("step {at}, {step}: it counts {seen:?}, expected {expected:?}"))?;
        }
        for stream in streams.iter().flatten() {
            sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
        }
        drop(streams);
        ipvsadm(&["-D", "-t", &service])?;
        Ok(assigned)
    }

    /// Opens a connection and gives the endpoint that answered.
    fn open(&mut self, source: u8) -> anyhow::Result<(TcpStream, u8)> {
        let port = self.ports.next().context("no port is left")?;
        let from = SocketAddr::from(([10, 1, 0, source], port));
        let service = self.service;
        let connected = self.client.enter(|| -> anyhow::Result<OwnedFd> {
            let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            bind(&socket, &from).with_context(|| format!("bind {from}"))?;
            connect(&socket, &service).with_context(|| format!("connect {from} to {service}"))?;
            Ok(socket)
        })??;
        let mut stream = TcpStream::from(connected);
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut answer = [0];
        stream.read_exact(&mut answer).context("no answer from a real server")?;
        Ok((stream, answer[0]))
    }

    fn set(&self, how: &str, endpoint: usize, weight: u32) -> anyhow::Result<()> {
        let real = SocketAddr::from((server(u8::try_from(endpoint)?), SERVER_PORT)).to_string();
        ipvsadm(&[how, "-t", &self.service.to_string(), "-r", &real, "-m", "-w", &weight.to_string()])
    }

    /// What IPVS says of this service's endpoints, in the order of its list.
    fn table(&self) -> anyhow::Result<Vec<(Ipv4Addr, Counted)>> {
        endpoints(&std::fs::read_to_string("/proc/net/ip_vs").context("/proc/net/ip_vs")?, self.service.port())
    }
}

fn ipvsadm(args: &[&str]) -> anyhow::Result<()> {
    step::output(Command::new("ipvsadm").args(args)).map(drop)
}

/// The endpoints of the service at a port: `TCP  0A60000A:03E8 wrr` and then
/// `  -> 0A090001:0050      Masq    1      0          0`: address and port, way, weight, active, inactive.
fn endpoints(table: &str, port: u16) -> anyhow::Result<Vec<(Ipv4Addr, Counted)>> {
    let begin = format!("TCP  {:08X}:{port:04X} ", SERVICE.to_bits());
    let mut lines = table.lines().skip_while(|line| !line.starts_with(&begin));
    if lines.next().is_none() {
        bail!("IPVS has no service at port {port}:\n{table}");
    }
    let rows = lines.map_while(|line| line.strip_prefix("  -> "));
    rows.map(|row| {
        let words: Vec<&str> = row.split_whitespace().collect();
        let &[real, _, _, active, inactive] = words.as_slice() else {
            bail!("a row of IPVS's that we cannot read: {row}")
        };
        let (address, _) = real.split_once(':').context("an endpoint without a port")?;
        let address = Ipv4Addr::from_bits(u32::from_str_radix(address, 16)?);
        Ok((address, Counted { active: active.parse()?, inactive: inactive.parse()? }))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_endpoints_are_read_in_order() {
        let table = "IP Virtual Server version 1.2.1 (size=4096)\n\
            Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n\
            TCP  0A60000A:03E8 wrr  \n  -> 0A090002:0050      Masq    1      3          4         \n\
            TCP  0A60000A:03E9 rr  \n  -> 0A090001:0050      Masq    2      0          1         \n";
        let counted = Counted { active: 3, inactive: 4 };
        assert_eq!(endpoints(table, 1000).unwrap(), [(Ipv4Addr::new(10, 9, 0, 2), counted)]);
        assert_eq!(endpoints(table, 1001).unwrap().len(), 1);
        endpoints(table, 1002).unwrap_err();
    }
}
