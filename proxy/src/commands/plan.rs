//! `kubeferry plan`: what would be programmed.

use anyhow::Context;

use crate::args::{PlanArgs, PlanOutput};
use crate::backend::nftables::netfilter::Netfilter;
use crate::backend::nftables::nft::{Nft, TIMEOUT};
use crate::backend::nftables::reconciler::{Preview, Reconciler};
use crate::backend::nftables::rows::{Rows, Wanted};
use crate::backend::nftables::{costs, diff, json, skeleton, text};
use crate::commands::{offline, output};
use crate::desired::Desired;
use crate::node;
use crate::settings::{BackendName, Settings};

/// Prints the ruleset, or with `--diff` what would change in the kernel.
///
/// # Errors
/// The source cannot be read; with `--diff`, the kernel cannot; standard output takes nothing.
pub async fn plan(args: &PlanArgs, settings: &Settings) -> anyhow::Result<()> {
    let out = if args.diff {
        let addresses = node::addresses().await.context("cannot read the node's addresses")?;
        let desired = offline::on_node(settings, Some(addresses)).await?;
        match settings.backend {
            BackendName::Nftables => difference(&desired)?,
            BackendName::Ebpf => ebpf::difference(&desired, settings)?,
        }
    } else {
        let desired = offline::desired(settings).await?;
        match settings.backend {
            BackendName::Nftables => whole(&desired, args.output)?,
            BackendName::Ebpf => ebpf::whole(&desired, settings, args.output)?,
        }
    };
    Ok(output::say(&out)?)
}

#[cfg(feature = "ebpf")]
mod ebpf {
    use super::{Desired, PlanOutput, Settings};
    use crate::backend::ebpf::preview;

    pub(super) fn whole(desired: &Desired, settings: &Settings, output: PlanOutput) -> anyhow::Result<String> {
        Ok(preview::whole(desired, settings, output))
    }

    pub(super) fn difference(desired: &Desired, settings: &Settings) -> anyhow::Result<String> {
        Ok(preview::difference(desired, settings)?)
    }
}

#[cfg(not(feature = "ebpf"))]
mod ebpf {
    use super::{Desired, PlanOutput, Settings};

    const MISSING: &str = "this binary was built without the eBPF datapath";

    pub(super) fn whole(_: &Desired, _: &Settings, _: PlanOutput) -> anyhow::Result<String> {
        anyhow::bail!(MISSING)
    }

    pub(super) fn difference(_: &Desired, _: &Settings) -> anyhow::Result<String> {
        anyhow::bail!(MISSING)
    }
}

fn difference(desired: &Desired) -> anyhow::Result<String> {
    let kernel = Netfilter::new(Nft::new("nft", TIMEOUT), tokio::runtime::Handle::current());
    Ok(match Reconciler::new(kernel).preview(desired).context("cannot read the kernel's table")? {
        Preview::Replace => {
            format!(
                "replace table inet {}: none of this version and these settings is there as it was left\n",
                skeleton::TABLE
            )
        }
        Preview::Changes(changes) => text::changes(&changes),
    })
}

fn whole(desired: &Desired, output: PlanOutput) -> anyhow::Result<String> {
    let wanted = Wanted::all(desired, &Rows::new());
    let node = desired.node();
    let maglev = costs::maglev(desired, &wanted.rows);
    Ok(match output {
        PlanOutput::Nft => costs::comments(&maglev) + &text::replacement(&wanted, node),
        PlanOutput::Json => {
            let rules = |name: &std::sync::Arc<str>| {
                let rules = wanted.chains[name].rules(node).unwrap_or_default();
                rules.iter().map(|rule| rule.text()).collect::<Vec<_>>()
            };
            let chains: Vec<_> = diff::in_order(&wanted.chains)
                .into_iter()
                .map(|name| serde_json::json!({ "name": name.as_ref(), "rules": rules(name) }))
                .collect();
            let document = serde_json::json!({
                "table": format!("inet {}", skeleton::TABLE),
                "skeleton": skeleton::text(node),
                "chains": chains,
                "rows": json::rows(&wanted.rows),
                "maglev": maglev,
            });
            serde_json::to_string_pretty(&document)? + "\n"
        }
    })
}
