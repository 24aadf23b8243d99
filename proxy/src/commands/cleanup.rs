//! `kubeferry cleanup`: removes everything that Kubeferry put into the kernel.

use nftables::batch::Batch;
use nftables::helper;
use nftables::schema::{NfListObject, Table};
use nftables::types::NfFamily;

use crate::backend::nftables::netlink::Connection;
use crate::backend::nftables::skeleton::TABLE;

/// Deletes our table. Connections that are established go on: their translation lives in connection tracking.
///
/// # Errors
/// The kernel cannot be asked, or refuses: CAP_NET_ADMIN is needed.
pub fn cleanup() -> anyhow::Result<()> {
    if Connection::open()?.table(TABLE)?.is_none() {
        println!("nothing to remove: there is no table inet {TABLE}");
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.delete(NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None }));
    helper::apply_ruleset(&batch.to_nftables()).map_err(|error| {
        anyhow::anyhow!("cannot delete table inet {TABLE}: {error} (CAP_NET_ADMIN and the program nft are needed)")
    })?;
    println!("removed table inet {TABLE}");
    Ok(())
}
