//! TCP connections that connection tracking translates since before the eBPF datapath came: by kube-proxy's rules, or by our
//! nftables datapath. They go on as they were until they end. The kernel translates as long as there is a chain of type nat,
//! and tracks connections as long as a rule asks for it, so one of each is kept until then.

use std::net::SocketAddr;

use super::{Conntrack, Entry, Family, TCP};
use crate::backend::nftables::expression::{Expression, Register};
use crate::backend::nftables::netlink::{CommitError, Connection, Error, Op};
use crate::state::objects;

/// The table, of family inet, that holds them.
pub const TABLE: &str = "kubeferry-established";
/// Its chain.
const CHAIN: &str = "translate";

/// How many entries there are in this network namespace; without connection tracking, none.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// How many TCP connections to these destinations are translated; each is given to `take`. Asks nothing of a kernel whose
/// connection tracking is empty or off. Blocks.
///
/// # Errors
/// The list is refused (CAP_NET_ADMIN is needed), or the socket fails.
pub fn translated(is_ours: impl Fn(SocketAddr) -> bool, mut take: impl FnMut(&Entry)) -> Result<usize, Error> {
    let count = std::fs::read_to_string(COUNT).unwrap_or_default();
    if matches!(count.trim(), "" | "0") {
        return Ok(0);
    }
    let conntrack = Conntrack::open()?;
    let mut found = 0;
    for family in [Family::V4, Family::V6] {
        let (entries, _) = conntrack.entries(family, TCP)?;
        let translated = entries.iter().filter(|entry| entry.original.destination != entry.reply.source);
        found += translated.filter(|entry| is_ours(entry.original.destination)).inspect(|entry| take(entry)).count();
    }
    Ok(found)
}

/// Has the kernel go on translating, whatever other table goes. Once more is no error.
///
/// # Errors
/// The kernel refuses: CAP_NET_ADMIN is needed.
pub fn hold() -> Result<(), CommitError> {
    let chain = CHAIN;
    // It loads a value and does nothing with it.
    let asks = [Expression::OriginalSource { family: objects::Family::V4, to: Register::FIRST }];
    let rule = Op::AddRule { chain, expressions: &asks };
    Connection::open()?.commit(TABLE, &[Op::AddTable, Op::AddNatChain { chain }, Op::FlushChain { chain }, rule])
}

/// Whether what [`hold`] made is there.
///
/// # Errors
/// The kernel cannot be asked.
pub fn is_held() -> Result<bool, Error> {
    Ok(Connection::open()?.chain(TABLE, CHAIN)?.is_some_and(|chain| chain.base && chain.rules > 0))
}

/// Ends what [`hold`] began; whether it had.
///
/// # Errors
/// As of [`hold`].
pub fn release() -> Result<bool, CommitError> {
    Connection::open()?.delete_table(TABLE)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::netns::{in_new_netns, run};

    const RULES: &str = "
table inet other {
  chain out {
    type nat hook output priority -100;
    ip daddr 10.96.0.10 tcp dport 80 dnat ip to 10.244.1.5:8080
  }
}
";

    #[test]
    fn a_connection_goes_on_without_the_rules_that_began_it() {
        in_new_netns(|| {
            run("nft", &["-f", "-"], RULES);
            run("ip", &["addr", "add", "10.244.1.5/32", "dev", "lo"], "");
            run("ip", &["route", "add", "10.96.0.0/16", "dev", "lo"], "");
            let listener = TcpListener::bind("10.244.1.5:8080").unwrap();
            let service: SocketAddr = "10.96.0.10:80".parse().unwrap();
            assert_eq!(translated(|_| true, |_| ()).unwrap(), 0);
            let mut client = TcpStream::connect(service).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            let mut answered_by = Vec::new();
            assert_eq!(translated(|to| to == service, |entry| answered_by.push(entry.reply.source)).unwrap(), 1);
            assert_eq!(answered_by, ["10.244.1.5:8080".parse().unwrap()]);
            assert_eq!(translated(|to| to != service, |_| ()).unwrap(), 0, "another's");
            assert!(!is_held().unwrap());
            hold().unwrap();
            hold().unwrap();
            assert!(is_held().unwrap());
            for harm in ["flush table inet kubeferry-established", "flush ruleset"] {
                run("nft", &["-f", "-"], harm);
                assert!(!is_held().unwrap(), "{harm}");
                hold().unwrap();
            }
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
            assert!(release().unwrap());
            assert!(!release().unwrap());
            assert_eq!(run("nft", &["list", "tables"], ""), "");
        });
    }
}
