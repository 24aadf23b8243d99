//! `cargo xtask page`: the page of a proxy that runs in the demo's cluster under load, driven by a headless Chromium inside of the
//! node's namespace, on nftables and what a datapath is asked for on eBPF, too; or pictures of it.

use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;

use super::manifests::Manifests;
use super::topology::PREFIX;
use super::traffic::Tally;
use super::{Stage, set_up, traffic};
use crate::datapath::{Backend, Datapath};
use crate::{cargo, ebpf, packages, step, test};

/// Where the tests and what they need of npm are.
const TESTS: &str = "tests/browser";
/// Where pictures for the README go.
const PICTURES: &str = "docs/pictures";
/// Between two requests from each place: enough of them to see something, and the browser needs the CPU more.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(5);

/// Drive the page in a headless Chromium, against the demo's cluster under load
#[derive(clap::Args)]
pub struct Args {
    /// Write the README's pictures of the page instead
    #[arg(long)]
    pictures: bool,
    /// Only on this datapath
    #[arg(long, value_enum, conflicts_with = "pictures")]
    backend: Option<Backend>,
}

/// What is driven on each datapath, and once.
const EVERYWHERE: &str = "datapath.test.mjs";
const ONCE: [&str; 2] = ["page.test.mjs", "list.test.mjs"];

/// Runs the tests, or makes the pictures.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::BROWSER])?;
    packages::need_root("page")?;
    ebpf::build()?;
    // With everything else, as the tests: what CI builds once serves for both, and for the pictures.
    let binary = test::binary()?;
    let tests = cargo::workspace().join(TESTS);
    step::start("fetching what drives the browser, from npm");
    step::run(
        Command::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]).current_dir(&tests),
    )?;

    if args.pictures {
        return on(Backend::Nftables, &binary, |stage, manifests| take_pictures(stage, &tests, manifests));
    }
    for backend in Backend::ALL.into_iter().filter(|backend| args.backend.is_none_or(|only| only == *backend)) {
        on(backend, &binary, |stage, manifests| drive(stage, &tests, manifests))?;
    }
    Ok(())
}

/// Does something with the demo's cluster, whose proxies have this datapath, and its folder of manifests, under load.
fn on(backend: Backend, binary: &Path, work: impl FnOnce(&Stage, &Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let home = tempfile::Builder::new().prefix(&format!("{PREFIX}-{}-", std::process::id())).tempdir()?;
    let cluster = set_up(home.path(), backend)?;
    let mut stage = Stage { proxies: Vec::new(), cluster, home, flags: &["--service-metrics", "full"] };
    let manifests = Manifests::create(stage.home.path(), &stage.cluster.endpoints(None))?;
    stage.start_proxies(binary, &manifests)?;
    let done = under_load(&stage, |stage| work(stage, manifests.folder()));
    if done.is_err() {
        stage.show_logs();
    }
    step::start("cleaning up");
    done
}

/// Does something while requests come from a pod, the node and outside.
fn under_load(stage: &Stage, work: impl FnOnce(&Stage) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let origins = stage.origins()?;
    let tallies: Vec<_> = origins.iter().map(|_| Mutex::default()).collect();
    let stop = AtomicBool::new(false);
    let enough = |_: &Tally| {
        std::thread::sleep(BETWEEN_REQUESTS);
        stop.load(Ordering::Relaxed)
    };
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| traffic::send(&origins, &tallies, enough));
        let done = work(stage);
        stop.store(true, Ordering::Relaxed);
        let sent = sender.join().map_err(|_| anyhow::anyhow!("the thread that sends requests panicked"))?;
        done.and(sent)
    })
}

/// Pictures of `kubeferry top`: the list, and the Service opened.
fn top(stage: &Stage, folder: &Path) -> anyhow::Result<()> {
    let node = stage.cluster.nodes.first().context("no nodes")?;
    let own = std::env::current_exe().context("where is xtask?")?;
    let built = own.parent().context("xtask is in no folder")?;
    let service = ["--service", "webapp-service"];
    // A rate, and what came lately, need a second look.
    for (name, shown, early, flags) in [
        ("top", "default/webapp-service", ", - conn/s", &[][..]),
        ("top-service", "in the last", ", 0 in the last", &service),
    ] {
        let mut command = node.namespace.command(built.join("terminal-picture"));
        command.args(["--until", shown, "--without", early, "--picture"]).arg(folder.join(format!("{name}.svg")));
        step::run(command.arg("--").arg(built.join("kubeferry")).args(["top", "--interval", "1s"]).args(flags))?;
    }
    Ok(())
}

fn drive(stage: &Stage, tests: &Path, manifests: &Path) -> anyhow::Result<()> {
    let backend = stage.cluster.nodes.first().context("no nodes")?.datapath.backend();
    step::start(format!("driving the page on {}", backend.name()));
    let once = ONCE.iter().filter(|_| backend == Backend::Nftables);
    [EVERYWHERE].iter().chain(once).try_for_each(|file| {
        // No test waits for so long: one that hangs ends.
        let how = ["--test", "--test-reporter=spec", "--test-timeout=900000"];
        step::run(browsing(stage, tests, manifests)?.args(how).arg(file))
    })
}

fn take_pictures(stage: &Stage, tests: &Path, manifests: &Path) -> anyhow::Result<()> {
    let folder = cargo::workspace().join(PICTURES);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    step::start(format!("taking pictures into {PICTURES}"));
    step::run(browsing(stage, tests, manifests)?.arg("pictures.mjs").arg(&folder))?;
    top(stage, &folder)
}

/// Node.js inside the node, where the page is.
fn browsing(stage: &Stage, tests: &Path, manifests: &Path) -> anyhow::Result<Command> {
    let node = stage.cluster.nodes.first().context("no nodes")?;
    let mut command = node.namespace.command("node");
    command.current_dir(tests).env("KUBEFERRY_PAGE", "http://127.0.0.1:10249").env("KUBEFERRY_MANIFESTS", manifests);
    match &node.datapath {
        Datapath::Nftables => command.env("KUBEFERRY_BACKEND", "nftables"),
        Datapath::Ebpf(places) => command.env("KUBEFERRY_BACKEND", "ebpf").env("KUBEFERRY_BPFFS", places.bpffs()),
    };
    Ok(command)
}
