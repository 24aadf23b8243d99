//! `kubeferry trace --live`: real packets, and the model's answer beside each.

mod asked;
mod lines;
mod model;
mod teller;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::args::TraceArgs;
use crate::commands::output;
use crate::live::filter::Filter;
use crate::live::tap::{Tap, TapError};
use crate::running::RunningProxy;
use crate::state::text::tame;
use teller::Teller;

/// `IFNAMSIZ`.
const LONGEST_NAME: usize = 16;
/// For how long packets that were seen are still told of at the end: nobody may read, or the proxy not answer.
const GRACE: Duration = Duration::from_secs(1);

/// Follows packets until there were enough of them, the time is over, or somebody ends it. False: a packet did not go where the
/// model sends it.
///
/// # Errors
/// No proxy runs here, or packets cannot be followed.
pub async fn live(args: &TraceArgs) -> anyhow::Result<bool> {
    let proxy = RunningProxy::new(&args.url);
    let node = block_in_place(|| proxy.node())?;
    let filter = block_in_place(|| asked::filter(args, &proxy))?;
    let bpffs_root = node.settings.get("bpffsRoot").map(PathBuf::from).unwrap_or_default();
    let mut tap = Tap::open(&node.backend, &bpffs_root, &filter, args.rate)?;
    output::complain(&format!(
        "following new connections on {} ({}), {} a second at most; Ctrl-C ends it",
        node.node, node.backend, args.rate
    ));
    let deadline = args.r#for.map(|time| Instant::now() + time);
    let mut signals = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut teller = Teller::start(proxy, args.output, args.count);
    let followed = follow(&mut tap, &filter, &mut teller, deadline, &mut signals).await;
    let lost = tap.lost;
    // Before anything that may take its time: what it made in the kernel goes with it.
    drop(tap);
    tokio::select! {
        () = teller.finish() => {}
        () = sleep(GRACE) => {}
        () = ended(&mut signals) => {}
    }
    let told = teller.end();
    followed?;
    let told = told?;
    let mut summary =
        format!("{} connections followed, {} not as the model says, {} not judged", told.told, told.differ, told.open);
    if told.untold > 0 {
        summary +=
            &format!("; {} more were seen and not told: nobody read so fast, or the proxy did not answer", told.untold);
    }
    if lost > 0 {
        summary += &format!("; events were lost {lost} times: more came than could be read");
    }
    output::complain_within(summary, GRACE);
    Ok(told.differ == 0)
}

/// Hands what is seen to the teller, until that has enough, it is time, or a signal comes.
async fn follow(
    tap: &mut Tap,
    filter: &Filter,
    teller: &mut Teller,
    deadline: Option<Instant>,
    signals: &mut (Signal, Signal),
) -> anyhow::Result<()> {
    let names = socket(AddressFamily::INET, SocketType::DGRAM, None).context("cannot ask for names of interfaces")?;
    let name = |index| match index_to_name(&names, index) {
        Ok(name) => tame(&name, LONGEST_NAME),
        Err(_) => format!("interface {index}"),
    };
    loop {
        let journeys: Result<_, TapError> = tokio::select! {
            journeys = tap.next(name) => journeys,
            () = teller.done() => return Ok(()),
            () = ended(signals) => return Ok(()),
            () = at(deadline) => return Ok(()),
        };
        let wanted = |came: &_| filter.takes(came) || !came.has_source();
        journeys?.into_iter().filter(|journey| wanted(&journey.came)).for_each(|journey| teller.take(journey));
    }
}

async fn ended((interrupt, terminate): &mut (Signal, Signal)) {
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
