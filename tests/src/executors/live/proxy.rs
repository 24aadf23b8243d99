//! A proxy that is told step by step what to do: every stage of `kubeferry run` between the folder of manifests and the
//! kernel, in a thread inside the node. It goes on from step to step, so each change is followed as a change; and it says
//! in what the kernel differs from a fresh start.

use std::any::Any;
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use kubeferry::args::{self, ServeArgs};
use kubeferry::backend::Backend;
use kubeferry::desired::Desired;
use kubeferry::desired::node_view::NodeView;
use kubeferry::desired::trace::Flow;
use kubeferry::proxy::Proxy;
use kubeferry::settings::Settings;
use kubeferry::state::State;
use kubeferry::state::event::{Event, Kind};
use kubeferry::state::objects::ObjectName;
use kubeferry::{node, watch};
use tokio::runtime::Handle;

use crate::executors::Findings;
use crate::flows::Row;
use crate::netns::Netns;

/// Endpoints that random clusters have room for.
const BACKENDS: u32 = 4_096;

/// The settings that a `kubeferry` command line comes to.
///
/// # Errors
/// `kubeferry` would refuse it.
pub(in crate::executors) fn settings(command: &Command) -> Result<Settings> {
    let words = std::iter::once(std::ffi::OsStr::new("kubeferry")).chain(command.get_args());
    let (common, serve) = match args::parse(words)?.command {
        args::Command::Run(args) => (args.common, args.serve),
        args::Command::Trace(args) => (args.common, ServeArgs::default()),
        other => anyhow::bail!("{other:?} is neither run nor trace"),
    };
    let mut settings = Settings::load(&common, &serve)?.settings;
    // Which the sweep of connections goes through again and again.
    settings.ebpf.map_sizes.backends = BACKENDS;
    Ok(settings)
}

/// A cluster that nothing was known of before, seen from a node that holds these addresses.
pub(in crate::executors) fn fresh(
    settings: &Settings,
    events: impl IntoIterator<Item = Event>,
    held: &[std::net::IpAddr],
) -> Desired {
    let mut state = State::default();
    events.into_iter().for_each(|event| state.apply(event));
    let held = held.iter().chain(&settings.node_addresses).copied().collect();
    let view = NodeView::new(settings.node_name.clone(), &settings.datapath, state.node(), &held);
    Desired::of(&state, view)
}

/// The question of a row.
pub(in crate::executors) fn flow(row: &Row) -> Flow {
    Flow { from: row.from, from_port: row.from_port, iif: row.iif.clone(), protocol: row.protocol, to: row.to }
}

/// What is different for each backend.
pub(super) trait Driven: Backend + Sized {
    /// Opens it, as `kubeferry run` does.
    fn open(settings: &Settings, handle: &Handle) -> Result<Self>;

    /// In what the kernel's rows differ from those of `fresh`, by another connection to the kernel than the proxy's.
    fn strange(settings: &Settings, handle: &Handle, fresh: &Desired) -> Result<Vec<String>>;
}

/// The thread inside the node.
#[derive(Debug)]
pub(super) struct Driver {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What is to be done, and where the answer goes.
struct Job {
    todo: Todo,
    answer: mpsc::Sender<Result<Findings>>,
}

enum Todo {
    Step { rows: Vec<Row>, restart: bool, look: bool },
    Mend,
}

impl Driver {
    /// Starts the thread; the proxy begins with the first step.
    pub(super) fn start<B: Driven>(node: &Netns, settings: Settings) -> Result<Self> {
        let (jobs, todo) = mpsc::channel::<Job>();
        let work = move || -> Result<()> {
            // Its threads are started by this one, and belong to the node as this one does.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            let mut seat =
                Seat::<B> { settings, handle: runtime.handle().clone(), proxy: None, known: BTreeMap::new() };
            for job in todo {
                // Who asked may be gone.
                drop(job.answer.send(match job.todo {
                    Todo::Step { rows, restart, look } => seat.step(&rows, restart, look),
                    Todo::Mend => seat.mend(),
                }));
            }
            Ok(())
        };
        Ok(Self { jobs: Some(jobs), thread: Some(node.thread(work)?) })
    }

    /// Brings what is in the folder of manifests into force; with `restart` by a proxy that begins anew. `look`: the kernel is
    /// looked at for drift, too, and there has to be none.
    ///
    /// # Errors
    /// The proxy cannot be opened.
    pub(super) fn step(&mut self, rows: &[Row], restart: bool, look: bool) -> Result<Findings> {
        self.ask(Todo::Step { rows: rows.to_vec(), restart, look })
    }

    /// Has the proxy repair what was done to its datapath on purpose.
    ///
    /// # Errors
    /// It cannot.
    pub(super) fn mend(&mut self) -> Result<()> {
        self.ask(Todo::Mend).map(drop)
    }

    fn ask(&mut self, todo: Todo) -> Result<Findings> {
        let (answer, answered) = mpsc::channel();
        let job = Job { todo, answer };
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        match answered.recv() {
            Ok(findings) if sent => findings,
            _ => Err(self.end().err().unwrap_or_else(|| anyhow!("the proxy's thread has ended"))),
        }
    }

    fn end(&mut self) -> Result<()> {
        self.jobs = None;
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let said = |panic: Box<dyn Any + Send>| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
        };
        thread.join().map_err(|panic| anyhow!("the proxy panicked: {}", said(panic)))?
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // What went wrong with it has been told by the step that met it.
        drop(self.end());
    }
}

struct Seat<B> {
    settings: Settings,
    handle: Handle,
    proxy: Option<Proxy<B>>,
    /// What the proxy has been told.
    known: BTreeMap<(Kind, ObjectName), Event>,
}

impl<B: Driven> Seat<B> {
    fn step(&mut self, rows: &[Row], restart: bool, look: bool) -> Result<Findings> {
        let events = self.handle.block_on(watch::load_once(&self.settings))?;
        let held = self.handle.block_on(node::addresses())?;
        if restart {
            self.proxy = None;
        }
        let proxy = match &mut self.proxy {
            Some(proxy) => proxy,
            none => {
                self.known.clear();
                let backend = B::open(&self.settings, &self.handle).context("opening the datapath")?;
                none.insert(Proxy::new(self.settings.clone(), backend, held.iter().copied().collect()))
            }
        };
        let now = by_name(&events);
        for (key, event) in &now {
            if self.known.get(key) != Some(event) {
                proxy.apply(event.clone());
            }
        }
        for key in self.known.keys().filter(|key| !now.contains_key(key)) {
            proxy.apply(gone(key));
        }
        self.known = now;
        for kind in [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice] {
            proxy.apply(Event::Listed(kind));
        }
        let mut findings = Findings::new();
        if proxy.is_dirty() {
            match proxy.sync() {
                Ok(synced) => {
                    let refused = synced.report.refused.iter();
                    findings.extend(refused.map(|(frontend, why)| (format!("frontend {frontend}"), why.clone())));
                    if let Err(error) = proxy.clean_udp(&synced.stale) {
                        findings.push(("stale UDP".to_owned(), format!("{:#}", anyhow!(error))));
                    }
                }
                Err(error) => findings.push(("the sync".to_owned(), format!("{:#}", anyhow!(error)))),
            }
        }
        let fresh = fresh(&self.settings, events, &held);
        for row in rows {
            let (followed, anew) = (proxy.desired().trace(&flow(row)), fresh.trace(&flow(row)));
            if followed != anew {
                findings.push((row.to_string(), format!("followed as changes: {followed:?}\nanew: {anew:?}")));
            }
        }
        if look {
            match proxy.check() {
                Ok(None) => {}
                Ok(Some(repair)) => findings.push(("a look for drift".to_owned(), format!("repairs: {repair:?}"))),
                Err(error) => findings.push(("a look for drift".to_owned(), format!("{:#}", anyhow!(error)))),
            }
        }
        let strange = B::strange(&self.settings, &self.handle, &fresh)?;
        if !strange.is_empty() {
            let shown = strange.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
            let says = format!("{} entries differ (- a fresh start's, + in the kernel):\n{shown}", strange.len());
            findings.push(("the kernel's rows beside those of a fresh start".to_owned(), says));
        }
        Ok(findings)
    }

    fn mend(&mut self) -> Result<Findings> {
        if let Some(proxy) = &mut self.proxy {
            proxy.check().map_err(|error| anyhow!(error))?.context("the proxy does not see what was detached")?;
        }
        Ok(Findings::new())
    }
}

/// Events by what they are of.
fn by_name(events: &[Event]) -> BTreeMap<(Kind, ObjectName), Event> {
    let key = |event: &Event| match event {
        Event::Service(service) => Some((Kind::Service, service.name.clone())),
        Event::Slice(slice) => Some((Kind::EndpointSlice, slice.name.clone())),
        Event::Node(_) => Some((Kind::Node, ObjectName::new("", ""))),
        Event::ServiceCidr(cidr) => Some((Kind::ServiceCidr, ObjectName::new("", &cidr.name))),
        _ => None,
    };
    events.iter().filter_map(|event| Some((key(event)?, event.clone()))).collect()
}

fn gone((kind, name): &(Kind, ObjectName)) -> Event {
    match kind {
        Kind::Service => Event::ServiceGone(name.clone()),
        Kind::EndpointSlice => Event::SliceGone(name.clone()),
        Kind::ServiceCidr => Event::ServiceCidrGone(name.clone()),
        _ => Event::NodeGone,
    }
}
