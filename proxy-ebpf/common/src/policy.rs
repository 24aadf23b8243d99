//! What a frontend does with a new connection, once its source is known: the same decisions as the model's
//! (`Desired::trace`).

use crate::{Config, Frontend};

/// What the source of a connection is to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The detector of the family says that it is a pod.
    pub is_pod: bool,
    /// Its address is one of the node's.
    pub is_node: bool,
    /// The family has a detector.
    pub detector: bool,
}

/// Which list of endpoints, and whether the source is rewritten in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// First slot.
    pub first: u32,
    /// How many slots: none means silence.
    pub count: u32,
    /// The Local list.
    pub local: bool,
    /// The source is rewritten.
    pub masquerade: bool,
    /// The row of `backends` that keeps the list's turn.
    pub turn: u32,
}

/// Chooses the list of endpoints by policy and source.
#[inline(always)]
pub const fn choose(frontend: &Frontend, flags: u32, source: Source) -> Choice {
    let policy_local = frontend.flags & Frontend::LOCAL != 0;
    let (local, masquerade) = if frontend.flags & Frontend::EXTERNAL == 0 {
        (policy_local, flags & Config::MASQUERADE_ALL != 0 || (source.detector && !source.is_pod))
    } else if !policy_local {
        (false, true)
    } else if source.is_pod {
        (false, false)
    } else {
        (!source.is_node, source.is_node)
    };
    let (first, count, turn) = match local {
        true => (frontend.local_first, frontend.local_count, frontend.local_turn),
        false => (frontend.cluster_first, frontend.cluster_count, frontend.cluster_turn),
    };
    Choice { first, count, local, masquerade, turn }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Source = Source { is_pod: true, is_node: false, detector: true };
    const NODE: Source = Source { is_pod: false, is_node: true, detector: true };
    const ELSEWHERE: Source = Source { is_pod: false, is_node: false, detector: true };
    const UNDETECTED: Source = Source { is_pod: false, is_node: false, detector: false };

    fn answer(flags: u32, config: u32, source: Source) -> (bool, bool) {
        let frontend = Frontend {
            cluster_first: 1,
            cluster_count: 2,
            local_first: 7,
            local_count: 1,
            flags,
            ..Frontend::default()
        };
        let choice = choose(&frontend, config, source);
        assert_eq!((choice.first, choice.count), if choice.local { (7, 1) } else { (1, 2) });
        (choice.local, choice.masquerade)
    }

    #[test]
    fn cluster_ips() {
        for (flags, local) in [(0, false), (Frontend::LOCAL, true)] {
            assert_eq!(answer(flags, 0, POD), (local, false));
            assert_eq!(answer(flags, Config::MASQUERADE_ALL, POD), (local, true));
            assert_eq!(answer(flags, 0, NODE), (local, true));
            assert_eq!(answer(flags, 0, ELSEWHERE), (local, true));
            assert_eq!(answer(flags, 0, UNDETECTED), (local, false));
        }
    }

    #[test]
    fn external_addresses() {
        let (cluster, local) = (Frontend::EXTERNAL, Frontend::EXTERNAL | Frontend::LOCAL);
        for source in [POD, NODE, ELSEWHERE, UNDETECTED] {
            assert_eq!(answer(cluster, 0, source), (false, true));
        }
        assert_eq!(answer(local, 0, POD), (false, false));
        assert_eq!(answer(local, Config::MASQUERADE_ALL, POD), (false, false));
        assert_eq!(answer(local, 0, NODE), (false, true));
        assert_eq!(answer(local, 0, ELSEWHERE), (true, false));
        assert_eq!(answer(local, 0, UNDETECTED), (true, false));
    }
}
