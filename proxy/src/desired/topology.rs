//! Topology hints of EndpointSlices: all or nothing over the ready endpoints, node before zone.

use crate::state::objects::SliceEndpoint;

use super::node_view::NodeView;

/// Which hints count for a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Topology {
    /// Hints are ignored.
    Ignored,
    /// Only endpoints hinted for this node (`hints.forNodes`).
    Node,
    /// Only endpoints hinted for this node's zone (`hints.forZones`).
    Zone,
}

impl Topology {
    /// Decides by the ready endpoints: a hint counts only if every one of them has it and one names us.
    pub(super) fn from_hints<'a>(endpoints: impl Iterator<Item = &'a SliceEndpoint>, node: &NodeView) -> Self {
        let (mut any, mut all_node, mut all_zone) = (false, true, true);
        let (mut names_node, mut names_zone) = (false, false);
        for endpoint in endpoints.filter(|endpoint| endpoint.ready) {
            any = true;
            all_node &= !endpoint.node_hints().is_empty();
            all_zone &= !endpoint.zone_hints().is_empty();
            names_node |= Self::Node.admits(endpoint, node);
            names_zone |= Self::Zone.admits(endpoint, node);
        }
        match any {
            true if all_node && names_node => Self::Node,
            true if all_zone && names_zone => Self::Zone,
            _ => Self::Ignored,
        }
    }

    /// Whether the endpoint may be used here.
    pub(super) fn admits(self, endpoint: &SliceEndpoint, node: &NodeView) -> bool {
        match self {
            Self::Ignored => true,
            Self::Node => endpoint.node_hints().contains(&node.name),
            Self::Zone => node.zone.as_ref().is_some_and(|zone| endpoint.zone_hints().contains(zone)),
        }
    }
}
