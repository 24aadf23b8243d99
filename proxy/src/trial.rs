//! What a start can try while another proxy serves. A rolling update ends the old process once the new one has run for a while; what
//! cannot serve must have ended before, so that the update stops there and the old one goes on. Leaves nothing behind.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube::{Api, Error};

use crate::backend::nftables::nft::{Nft, TIMEOUT};
use crate::backend::nftables::skeleton;
use crate::desired::node_view::NodeView;
use crate::settings::{BackendName, Settings};
use crate::watch::{self, WatchStats};

/// The table that the rules are tried in: one that nobody has.
const TABLE: &str = "table inet kubeferry_trial";

/// Whether a proxy with these settings could serve, as far as it can be known before.
///
/// # Errors
/// What is missing, or what the kernel or the API server refuses.
pub async fn run(settings: &Settings) -> anyhow::Result<()> {
    match settings.backend {
        BackendName::Nftables => rules(settings).await?,
        BackendName::Ebpf => programs(settings)?,
    }
    objects(settings).await
}

/// Has the kernel look at our rules, without taking them (`nft --check`).
async fn rules(settings: &Settings) -> anyhow::Result<()> {
    let nft = Nft::new("nft", TIMEOUT);
    nft.check_versions(std::env::var_os("KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK").is_some()).await?;
    let node = NodeView::new(Arc::clone(&settings.node_name), &settings.datapath, None, &BTreeSet::new());
    let text = skeleton::text(&node).replace("table inet kubeferry", TABLE);
    nft.run(&["--check", "-f", "-"], &text).await.context("the kernel does not take the rules")?;
    Ok(())
}

#[cfg(feature = "ebpf")]
fn programs(settings: &Settings) -> anyhow::Result<()> {
    use crate::backend::ebpf::{kernel::Shape, load};
    Ok(load::trial(&settings.ebpf, &Shape::of(settings))?)
}

#[cfg(not(feature = "ebpf"))]
fn programs(_: &Settings) -> anyhow::Result<()> {
    anyhow::bail!("this binary was built without the eBPF datapath")
}

/// Asks the API server for one object of each kind that nothing can be done without. One that cannot be reached or has too much to
/// do is waited for later, as always.
async fn objects(settings: &Settings) -> anyhow::Result<()> {
    let Some(client) = watch::client(settings, &WatchStats::default()).await? else { return Ok(()) };
    let one = ListParams::default().limit(1);
    let services = Api::<Service>::all(client.clone()).list(&one).await.map(drop);
    let slices = Api::<EndpointSlice>::all(client).list(&one).await.map(drop);
    for (result, kind) in [(services, "services"), (slices, "endpointslices")] {
        match result {
            Err(Error::Api(status)) if matches!(status.code, 401 | 403) => anyhow::bail!(
                "the API server refuses {kind} ({}): {}; let our account list and watch them (ClusterRole system:node-proxier does)",
                status.code,
                status.message
            ),
            Err(error) => tracing::warn!(%error, "the API server cannot be asked for {kind} now"),
            Ok(()) => {}
        }
    }
    Ok(())
}
