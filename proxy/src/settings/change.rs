//! What a running proxy has to do for other settings: apply them, or start again.

use super::{BackendName, DatapathSettings, DetectLocal, NodeSettings, Settings};

/// Which settings differ, by kube-proxy's names of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// Those that a running proxy takes over.
    pub live: Vec<&'static str>,
    /// Those that only a start takes.
    pub restart: Vec<&'static str>,
}

impl Change {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }
}

/// What differs between the settings in force and new ones. Every setting is in one of the two lists: a new one does not
/// compile until it is.
pub fn between(old: &Settings, new: &Settings) -> Change {
    let Settings { backend, mode, ebpf, node_name, source, datapath, node_addresses, sync_period, .. } = old;
    let Settings { min_sync_period, healthz, metrics, bind_hard_fail, profiling, show_hidden_metrics, .. } = old;
    let Settings { node, once: _, log, .. } = old;
    let NodeSettings { conntrack, oom_score_adj, init_only: _, cleanup: _, ipvs_excluded } = node;
    let DatapathSettings { detect_local, masquerade_all, masquerade_bit, node_port_addresses, .. } = datapath;
    let DatapathSettings { bind_address, schedule, counts_connections: _, own_ports: _, service_metrics, .. } =
        datapath;
    let theirs = &new.datapath;
    let detector = *detect_local != theirs.detect_local;
    // Its programs look at interfaces as they were told when they were attached.
    let fixed_detector = *backend == BackendName::Ebpf;
    let live = [
        ("mode", *mode != new.mode && *backend == new.backend),
        (detector_name(detect_local, &theirs.detect_local), detector && !fixed_detector),
        ("masqueradeAll", *masquerade_all != theirs.masquerade_all),
        ("masqueradeBit", *masquerade_bit != theirs.masquerade_bit),
        ("nodePortAddresses", *node_port_addresses != theirs.node_port_addresses),
        ("bindAddress", *bind_address != theirs.bind_address),
        ("scheduler", *schedule != theirs.schedule),
        ("nodeAddresses", *node_addresses != new.node_addresses),
        ("syncPeriod", *sync_period != new.sync_period),
        ("minSyncPeriod", *min_sync_period != new.min_sync_period),
        ("ipvs.excludeCIDRs", *ipvs_excluded != new.node.ipvs_excluded),
        ("logging.verbosity", log.filter != new.log.filter),
    ];
    let restart = [
        ("mode", *backend != new.backend),
        ("serviceMetrics", *service_metrics != theirs.service_metrics),
        ("ebpf", *backend == BackendName::Ebpf && *ebpf != new.ebpf),
        ("ebpf.bpffsRoot", *backend != BackendName::Ebpf && ebpf.bpffs_root != new.ebpf.bpffs_root),
        ("hostnameOverride", *node_name != new.node_name),
        ("clientConnection.kubeconfig", *source != new.source),
        (detector_name(detect_local, &theirs.detect_local), detector && fixed_detector),
        ("healthzBindAddress", *healthz != new.healthz),
        ("metricsBindAddress", *metrics != new.metrics),
        ("bindAddressHardFail", *bind_hard_fail != new.bind_hard_fail),
        ("enableProfiling", *profiling != new.profiling),
        ("showHiddenMetricsForVersion", *show_hidden_metrics != new.show_hidden_metrics),
        ("conntrack", *conntrack != new.node.conntrack),
        ("oomScoreAdj", *oom_score_adj != new.node.oom_score_adj),
        ("logging.format", log.json != new.log.json),
    ];
    let differing = |list: &[(&'static str, bool)]| list.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
    Change { live: differing(&live), restart: differing(&restart) }
}

fn detector_name(old: &DetectLocal, new: &DetectLocal) -> &'static str {
    match (old, new) {
        (DetectLocal::ClusterCidr(_), DetectLocal::ClusterCidr(_)) => "clusterCIDR",
        (DetectLocal::BridgeInterface(_), DetectLocal::BridgeInterface(_)) => "detectLocal.bridgeInterface",
        (DetectLocal::InterfaceNamePrefix(_), DetectLocal::InterfaceNamePrefix(_)) => "detectLocal.interfaceNamePrefix",
        _ => "detectLocalMode",
    }
}
