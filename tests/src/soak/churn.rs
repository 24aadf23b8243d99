//! Everything that changes while clients ask: pods, their endpoints, Services, the Node, the configuration, the API server's
//! connections, and the proxy itself. What is removed is removed as Kubernetes does it, so no request has to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::objects::{self, SERVICES};
use super::world::{NUMBERS, World};
use crate::apiserver::{Fault, Resource};
use crate::client::{Connection, DEADLINE, ask_once, datagrams, until};
use crate::hosts::Host;
use crate::random::Rng;

/// At most so many pods come and go at a time, and so many Services.
const PODS: usize = 12;
const EXTRAS: usize = 6;
/// The address of pods that only ask, and their number on the node.
const VISITOR: (u8, [&str; 2]) = (200, ["10.244.1.200", "fd00:10:244:1::200"]);

/// Where a pod is in its life.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Ready,
    /// Not ready for a while.
    Flapping(Instant),
    /// Not ready, and terminating next.
    Unready(Instant),
    /// Terminating and serving; it asks its clients to leave.
    Terminating(Instant),
    /// In no EndpointSlice, since then.
    Gone(Instant),
    /// The kernel gives it to nobody, since then.
    Forgotten(Instant),
    /// The same; it had taken so many connections when a moment had passed.
    Idle(Instant, u64),
}

/// The changes of a run.
#[derive(Debug)]
pub struct Churn {
    rng: Rng,
    grace: Duration,
    stages: BTreeMap<u8, Stage>,
    extras: BTreeSet<u8>,
    next: Instant,
    turn: u64,
    /// What was done how often.
    pub did: BTreeMap<&'static str, u64>,
    /// How often the proxy was started anew.
    pub restarts: u64,
    /// What went wrong.
    pub failures: Vec<String>,
    /// The longest from an EndpointSlice without an endpoint to a kernel that gives it to nobody.
    pub slowest: Duration,
}

impl Churn {
    /// Changes that follow from a seed. `grace`: how long pods serve on once they are terminating.
    pub fn new(seed: u64, grace: Duration) -> Self {
        Self {
            rng: Rng::new(seed),
            grace,
            stages: BTreeMap::new(),
            extras: BTreeSet::new(),
            next: Instant::now(),
            turn: 0,
            did: BTreeMap::new(),
            restarts: 0,
            failures: Vec::new(),
            slowest: Duration::ZERO,
        }
    }

    /// Does what is due.
    ///
    /// # Errors
    /// The run cannot go on. What went wrong otherwise is in [`Churn::failures`].
    pub fn step(&mut self, world: &mut World) -> Result<()> {
        self.age(world)?;
        if Instant::now() >= self.next {
            let what = self.act(world)?;
            *self.did.entry(what).or_default() += 1;
            self.next = Instant::now() + Duration::from_millis(100 + self.rng.below(300) as u64);
        }
        Ok(())
    }

    /// Starts the proxy anew: by SIGTERM, or by SIGKILL.
    ///
    /// # Errors
    /// It does not serve.
    pub fn restart(&mut self, world: &mut World) -> Result<()> {
        let what = if self.rng.chance(50) {
            world.stop()?;
            "proxy ended and started"
        } else {
            world.kill();
            "proxy killed and started"
        };
        std::thread::sleep(Duration::from_millis(self.rng.below(300) as u64));
        *self.did.entry(what).or_default() += 1;
        self.restarts += 1;
        world.start()
    }

    /// Has everything be as at the beginning.
    ///
    /// # Errors
    /// Something does not go.
    pub fn settle(&mut self, world: &mut World) -> Result<()> {
        // Odd, so that the last change is one.
        self.turn |= 1;
        world.configure(self.turn)?;
        world.has_configuration(self.turn)?;
        for number in std::mem::take(&mut self.extras) {
            remove_extra(world, number)?;
        }
        for number in self.stages.keys().copied().collect::<Vec<_>>() {
            if matches!(self.stages[&number], Stage::Ready | Stage::Flapping(_)) {
                self.stages.insert(number, Stage::Unready(Instant::now()));
            }
        }
        self.age(world)?;
        // Right after the last endpoint, while what it had is still kept back for whoever reads it.
        let left =
            || world.pods.values().all(|pod| world.kernel_has(&pod.endpoint).is_ok_and(|has| !has)).then_some(());
        until("terminating pods to be given to nobody", left)?;
        self.turn = 0;
        world.configure(self.turn)?;
        world.label(self.turn)?;
        let end = Instant::now() + self.grace * 2 + DEADLINE * 2;
        while !self.stages.is_empty() {
            ensure!(Instant::now() < end, "pods that do not go: {:?}", self.stages);
            self.age(world)?;
            std::thread::sleep(Duration::from_millis(20));
        }
        world.has_configuration(self.turn)
    }

    /// How many changes there have been.
    pub fn changes(&self) -> u64 {
        self.did.values().sum()
    }

    /// How many pods and Services there are beside those that stay.
    pub fn counts(&self) -> (usize, usize) {
        (self.stages.len(), self.extras.len())
    }

    /// Pods grow older.
    fn age(&mut self, world: &mut World) -> Result<()> {
        let mut changed = false;
        for (number, stage) in self.stages.clone() {
            let pod = world.pods.get(&number).with_context(|| format!("pod {number} has no namespace"))?;
            let is_known = matches!(stage, Stage::Gone(_)) && world.kernel_has(&pod.endpoint)?;
            let Some(pod) = world.pods.get_mut(&number) else { continue };
            let now = Instant::now();
            let next = match stage {
                Stage::Flapping(until) if now >= until => {
                    pod.endpoint.ready = true;
                    changed = true;
                    Stage::Ready
                }
                Stage::Unready(until) if now >= until => {
                    (pod.endpoint.ready, pod.endpoint.terminating) = (false, true);
                    pod.server.leave();
                    changed = true;
                    Stage::Terminating(now + self.grace / 2)
                }
                Stage::Terminating(until) if now >= until => {
                    pod.listed = false;
                    changed = true;
                    Stage::Gone(now)
                }
                Stage::Gone(since) => match is_known {
                    false => {
                        self.slowest = self.slowest.max(since.elapsed());
                        Stage::Forgotten(now)
                    }
                    true if since.elapsed() > DEADLINE => {
                        self.failures
                            .push(format!("pod{number} was still given to clients {DEADLINE:?} after it went"));
                        Stage::Forgotten(now)
                    }
                    true => stage,
                },
                // Who was let in before may not have been taken yet.
                Stage::Forgotten(since) if since.elapsed() >= self.grace / 4 => Stage::Idle(now, pod.server.taken()),
                Stage::Idle(since, taken) if since.elapsed() >= self.grace / 4 => {
                    let (more, open) = (pod.server.taken() - taken, pod.server.open());
                    if open > 0 && since.elapsed() < DEADLINE {
                        // Until its clients have heard that they are to leave.
                        continue;
                    }
                    if more > 0 {
                        self.failures.push(format!("pod{number} got {more} connections after it had gone"));
                    }
                    if open > 0 {
                        self.failures.push(format!("{open} connections do not leave pod{number}"));
                    }
                    world.remove_pod(number)?;
                    self.stages.remove(&number);
                    continue;
                }
                stage => stage,
            };
            self.stages.insert(number, next);
        }
        if changed { world.endpoints() } else { Ok(()) }
    }

    /// One change, by chance; what it was.
    fn act(&mut self, world: &mut World) -> Result<&'static str> {
        let ready: Vec<u8> =
            self.stages.iter().filter(|(_, stage)| matches!(stage, Stage::Ready)).map(|(number, _)| *number).collect();
        Ok(match self.rng.below(100) {
            0..30 if self.stages.len() < PODS => {
                let free = NUMBERS.filter(|number| !self.stages.contains_key(number)).collect::<Vec<_>>();
                // The lowest: addresses and names are used again soon.
                let number = *free.first().context("no number is free")?;
                world.add_pod(number)?;
                self.stages.insert(number, Stage::Ready);
                world.endpoints()?;
                "pod added"
            }
            30..50 if !ready.is_empty() => {
                let number = *self.rng.pick(&ready);
                if self.rng.chance(50) {
                    self.stages.insert(number, Stage::Unready(Instant::now()));
                    self.age(world)?;
                    "pod terminated"
                } else {
                    self.unready(world, number)?;
                    self.stages.insert(number, Stage::Unready(Instant::now() + self.grace / 2));
                    "pod unready, then terminated"
                }
            }
            50..65 if !ready.is_empty() => {
                let number = *self.rng.pick(&ready);
                self.unready(world, number)?;
                let until = Instant::now() + Duration::from_millis(50 + self.rng.below(800) as u64);
                self.stages.insert(number, Stage::Flapping(until));
                "readiness flapped"
            }
            65..72 => {
                if let Err(error) = visit(world) {
                    self.failures.push(format!("a new pod: {error:#}"));
                }
                "pod made that only asks"
            }
            72..82 => {
                if self.extras.len() < EXTRAS && self.rng.chance(60) {
                    let number = (0..).find(|number| !self.extras.contains(number)).unwrap_or_default();
                    self.extras.insert(number);
                    if let Err(error) = add_extra(world, number) {
                        self.failures.push(format!("{}: {error:#}", objects::extra_name(number)));
                    }
                    "Service added"
                } else if let Some(number) = self.extras.pop_first() {
                    remove_extra(world, number)?;
                    "Service deleted"
                } else {
                    "nothing"
                }
            }
            82..88 => {
                self.turn += 1;
                world.label(self.turn)?;
                "Node moved to another zone"
            }
            88..92 => {
                self.turn += 1;
                world.configure(self.turn)?;
                "configuration changed"
            }
            92..96 => {
                world.server.fault(Fault::CutConnections);
                "connections to the API server cut"
            }
            96..100 => {
                world.server.fault(Fault::Gone410);
                "history of the API server forgotten"
            }
            _ => "nothing",
        })
    }

    fn unready(&mut self, world: &mut World, number: u8) -> Result<()> {
        let pod = world.pods.get_mut(&number).context("pod")?;
        pod.endpoint.ready = false;
        world.endpoints()
    }
}

/// A pod that comes, asks with its first packets, and goes.
fn visit(world: &World) -> Result<()> {
    let (number, addresses) = VISITOR;
    let addresses = [addresses[0].parse()?, addresses[1].parse()?];
    let host = Host::join(&world.network.hosts.node, "visitor", number, &addresses)?;
    for vip in SERVICES[0].vips() {
        let to = SocketAddr::new(vip.parse()?, 80);
        Connection::open(&host.namespace, to).context("connecting")?.ask()?;
        let socket = datagrams(&host.namespace, to)?;
        let answered = (0..3).find_map(|_| ask_once(&socket).transpose());
        answered.with_context(|| format!("no answer to three datagrams to {to}"))??;
    }
    drop(host);
    until("the visitor's interface to be gone", || {
        (!world.interfaces().ok()?.contains(&"visitor".into())).then_some(())
    })
}

fn add_extra(world: &World, number: u8) -> Result<()> {
    let object = objects::extra(number);
    world.apply(&object)?;
    let endpoints = [objects::steady()[0].clone()];
    for slice in objects::slices(&objects::extra_name(number), "steady", &endpoints) {
        world.apply(&slice)?;
    }
    let client = &world.network.hosts.host("client").namespace;
    for ip in object["spec"]["clusterIPs"].as_array().into_iter().flatten() {
        let to = SocketAddr::new(ip.as_str().unwrap_or_default().parse()?, 80);
        until(&format!("{to} to be served"), || Connection::attempt(client, to)?.ask().ok())?;
    }
    Ok(())
}

fn remove_extra(world: &World, number: u8) -> Result<()> {
    let name = objects::extra_name(number);
    world.server.delete(Resource::Service, "default", &name)?;
    for family in ["ipv4", "ipv6"] {
        world.server.delete(Resource::EndpointSlice, "default", &format!("{name}-steady-{family}"))?;
    }
    Ok(())
}
