//! What schedulers do with connections that come one after the other: IPVS as its source defines it, Kubeferry as its
//! documentation does, and what an IPVS of a running kernel did (`cargo xtask test ipvs`).

pub mod ipvs;
pub mod ours;
pub mod recording;

/// An endpoint as a scheduler sees it. 0 is a weight that takes no new connections.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Endpoint {
    /// Its share.
    pub weight: u32,
    /// Connections that are open.
    pub active: u32,
    /// Connections that are over and not forgotten yet.
    pub inactive: u32,
}

/// Endpoints without connections.
pub fn idle(weights: &[u32]) -> Vec<Endpoint> {
    weights.iter().map(|weight| Endpoint { weight: *weight, ..Endpoint::default() }).collect()
}
