//! Sockets that an endpoint which has gone may still answer. What shows them the service's address in its place stays until
//! the answer must have come: else one that is on its way when the endpoint goes would come from a stranger.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::SocketKey;

use super::error::EbpfError;
use super::kernel::Maps;

/// How long an answer may take: what resolvers wait for one.
const ANSWER: Duration = Duration::from_secs(5);

/// Rows of `socket_services` that are to go, and since when.
#[derive(Default, Debug)]
pub struct Parting(BTreeMap<SocketKey, Instant>);

impl Parting {
    /// The endpoints of these have gone.
    pub fn add(&mut self, keys: Vec<SocketKey>, now: Instant) {
        for key in keys {
            self.0.entry(key).or_insert(now);
        }
    }

    /// Deletes the rows whose time has come. One whose socket was given the endpoint again meanwhile stays.
    ///
    /// # Errors
    /// A map cannot be read or written; it is tried again the next time.
    pub fn end(&mut self, maps: &Maps, now: Instant) -> Result<(), EbpfError> {
        let is_due = |since: &Instant| now.saturating_duration_since(*since) >= ANSWER;
        let due: Vec<SocketKey> = self.0.iter().filter(|(_, since)| is_due(since)).map(|(key, _)| *key).collect();
        let mut gone = Vec::new();
        for key in &due {
            let Some(service) = maps.socket_services.get(key).map_err(EbpfError::map("socket_services"))? else {
                continue;
            };
            let asked = SocketKey { address: service.address, port: service.port, ..*key };
            let given = maps.socket_endpoints.get(&asked).map_err(EbpfError::map("socket_endpoints"))?;
            if given.is_none_or(|peer| (peer.address, peer.port) != (key.address, key.port)) {
                gone.push(*key);
            }
        }
        maps.socket_services.delete(&gone).map_err(EbpfError::map("socket_services"))?;
        for key in due {
            self.0.remove(&key);
        }
        Ok(())
    }
}
