//! `kubeferry cleanup`: removes everything that Kubeferry put into the kernel.

use anyhow::Context;

use crate::backend::nftables::netlink::Connection;
use crate::backend::nftables::skeleton::TABLE;
use crate::commands::output;

/// Deletes our table. Connections that are established go on: their translation lives in connection tracking. Needs no
/// other program.
///
/// # Errors
/// The kernel cannot be asked, or refuses: CAP_NET_ADMIN is needed; or standard output does.
pub fn cleanup() -> anyhow::Result<()> {
    let deleted =
        Connection::open()?.delete_table(TABLE).with_context(|| format!("cannot delete table inet {TABLE}"))?;
    let said = match deleted {
        true => format!("removed table inet {TABLE}\n"),
        false => format!("nothing to remove: there is no table inet {TABLE}\n"),
    };
    Ok(output::say(&said)?)
}
