//! Those who ask, from where the rest of the run is.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};

use super::clients::{Client, Manner, Tally};
use super::objects::{EXTERNAL_IP, LOAD_BALANCER_IPS, SERVICES};
use super::world::World;
use crate::client::until;
use crate::netns::Netns;
use crate::network::NODE_IPS;

/// How the program of the soak is called to be [`super::clients::serve`].
pub const ARGUMENT: &str = "clients";

/// A process with clients.
#[derive(Debug)]
pub struct Asking {
    process: Child,
    /// The clients ask until it is closed.
    input: Option<ChildStdin>,
    clients: Vec<Client>,
    tallies: Arc<Mutex<Vec<Tally>>>,
    reader: Option<JoinHandle<()>>,
}

impl Asking {
    /// Has all clients of a world ask: those on the node and in its pods in the cgroup that the proxy attaches to, those outside in
    /// none of ours.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start(world: &World) -> Result<[Self; 2]> {
        let [inside, outside] = clients(world)?;
        let cgroup = world.places.as_ref().map(|places| places.cgroup());
        Ok([Self::process(inside, cgroup)?, Self::process(outside, None)?])
    }

    fn process(clients: Vec<Client>, cgroup: Option<&Path>) -> Result<Self> {
        let program = std::env::current_exe()?;
        // The shell moves itself, so that no socket is made elsewhere.
        let mut command = Command::new("sh");
        let script = "[ -z \"$1\" ] || echo $$ > \"$1/cgroup.procs\"; exec \"$2\" \"$3\"";
        command.args(["-c", script, "sh"]).arg(cgroup.unwrap_or(Path::new(""))).arg(program).arg(ARGUMENT);
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start the clients")?;
        let (mut input, output) = (process.stdin.take(), process.stdout.take().context("no output")?);
        if let Some(input) = &mut input {
            writeln!(input, "{}", serde_json::to_string(&clients)?)?;
        }
        let tallies = Arc::new(Mutex::new(vec![Tally::default(); clients.len()]));
        let told = tallies.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Half a line is the last of a process that was killed, which its status tells.
                if let Ok(tallies) = serde_json::from_str(&line) {
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = tallies;
                }
            }
        });
        Ok(Self { process, input, clients, tallies, reader: Some(reader) })
    }

    /// How it goes, for each client.
    ///
    /// # Errors
    /// The process has ended by itself.
    pub fn tallies(&mut self) -> Result<Vec<(Client, Tally)>> {
        if self.input.is_some() {
            let ended = self.process.try_wait()?;
            ensure!(ended.is_none(), "the clients have ended: {ended:?}");
        }
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(self.clients.iter().cloned().zip(tallies.iter().cloned()).collect())
    }

    /// Has the clients end with the requests in hand.
    ///
    /// # Errors
    /// They do not, or the process has failed.
    pub fn end(&mut self) -> Result<()> {
        self.input = None;
        let status = until("the clients to end", || self.process.try_wait().ok().flatten())?;
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
        ensure!(status.success(), "the clients ended with {status}");
        Ok(())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        // It may have ended; either way nothing of it is left.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The clients on the node and in its pods, and those outside.
fn clients(world: &World) -> Result<[Vec<Client>; 2]> {
    let network = &world.network;
    let [web, local, loyal, zoned] = SERVICES;
    let client = |who: &str, namespace: &Netns, manner, ip: &str, port| {
        let to = SocketAddr::new(ip.parse()?, port);
        anyhow::Ok(Client { who: who.to_owned(), namespace: namespace.name().to_owned(), manner, to })
    };
    let pod = |manner, ip: &str, port| client("a pod", &network.hosts.host("client").namespace, manner, ip, port);
    let node = |manner, ip: &str, port| client("the node", &network.hosts.node, manner, ip, port);
    let outside = |manner, ip: &str, port| client("outside", &network.outside.namespace, manner, ip, port);
    let mut inside = vec![
        pod(Manner::Tcp, NODE_IPS[0], web.node_port)?,
        pod(Manner::Tcp, LOAD_BALANCER_IPS[1], 80)?,
        pod(Manner::Tcp, &local.vips()[0], 80)?,
        pod(Manner::Tcp, &zoned.vips()[0], 80)?,
        node(Manner::Tcp, &zoned.vips()[1], 80)?,
    ];
    let mut beyond = vec![
        outside(Manner::Tcp, EXTERNAL_IP, 80)?,
        outside(Manner::Tcp, LOAD_BALANCER_IPS[1], 80)?,
        outside(Manner::Tcp, NODE_IPS[0], local.node_port)?,
        outside(Manner::Udp, NODE_IPS[1], local.node_port)?,
        outside(Manner::Loyal, NODE_IPS[0], loyal.node_port)?,
    ];
    for family in [0, 1] {
        let vip = &web.vips()[family];
        for manner in [Manner::Tcp, Manner::Udp, Manner::KeptTcp, Manner::Resolver] {
            inside.push(pod(manner, vip, 80)?);
        }
        for manner in [Manner::Tcp, Manner::Udp, Manner::KeptTcp, Manner::KeptUdp] {
            inside.push(node(manner, vip, 80)?);
            beyond.push(outside(manner, NODE_IPS[family], web.node_port)?);
        }
        inside.push(pod(Manner::Loyal, &loyal.vips()[family], 80)?);
    }
    Ok([inside, beyond])
}
