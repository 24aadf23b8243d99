//! Every field of `KubeProxyConfiguration`, v1alpha1 as of Kubernetes 1.36: its type, its bounds, and whether it has an
//! effect here. Bounds are kube-proxy's (`validation.go`), where zero and absence mean the default (`defaults.go`).

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its place in the file, with dots.
    pub path: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// What becomes of it.
    pub effect: Effect,
}

/// What a field may hold.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A string.
    Text,
    /// A boolean.
    Bool,
    /// A whole number within these bounds.
    Integer(i64, i64),
    /// Any number.
    Number,
    /// A Go duration, not negative.
    Duration,
    /// A list of strings.
    Texts,
    /// A map of booleans.
    Switches,
    /// Anything.
    Any,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// It sets something.
    Setting,
    /// It has no effect; a value other than zero and these defaults is named in a warning.
    Nothing {
        /// Values that ask for nothing, as text.
        defaults: &'static [&'static str],
        /// The mode that must be in force for kube-proxy itself to read it.
        mode: Option<&'static str>,
        /// What to do instead; may be empty.
        instead: &'static str,
    },
}

const fn setting(path: &'static str, kind: Kind) -> Field {
    Field { path, kind, effect: Effect::Setting }
}

const fn nothing(path: &'static str, kind: Kind, defaults: &'static [&'static str], instead: &'static str) -> Field {
    Field { path, kind, effect: Effect::Nothing { defaults, mode: None, instead } }
}

const fn of_mode(mode: &'static str, path: &'static str, kind: Kind, instead: &'static str) -> Field {
    Field { path, kind, effect: Effect::Nothing { defaults: &[], mode: Some(mode), instead } }
}

use Kind::{Any, Bool, Duration, Integer, Number, Switches, Text, Texts};

const NATURAL: Kind = Integer(0, i32::MAX as i64);
const BIT: Kind = Integer(0, 31);
const NO_IPVS: &str = "there is no IPVS here";
const AT_ONCE: &str = "log lines are written at once";

/// All fields.
pub const FIELDS: &[Field] = &[
    setting("apiVersion", Text),
    setting("kind", Text),
    nothing(
        "featureGates",
        Switches,
        &[
            "AllowServiceExternalIPs=true",
            "MultiCIDRServiceAllocator=true",
            "NFTablesProxyMode=true",
            "PreferSameTrafficDistribution=true",
            "TopologyAwareHints=true",
        ],
        "",
    ),
    setting("clientConnection.kubeconfig", Text),
    nothing("clientConnection.acceptContentTypes", Text, &[], "JSON is spoken"),
    nothing(
        "clientConnection.contentType",
        Text,
        &["application/vnd.kubernetes.protobuf", "application/json"],
        "JSON is spoken",
    ),
    nothing("clientConnection.qps", Number, &["5"], "there is no rate limit"),
    nothing("clientConnection.burst", NATURAL, &["10"], "there is no rate limit"),
    setting("logging.format", Text),
    setting("logging.verbosity", NATURAL),
    nothing("logging.flushFrequency", Any, &["5000000000", "\"5s\""], AT_ONCE),
    nothing("logging.vmodule", Any, &[], "use --log-level info,kubeferry::watch=debug"),
    nothing("logging.options.text.splitStream", Bool, &[], ""),
    nothing("logging.options.text.infoBufferSize", Any, &[], AT_ONCE),
    nothing("logging.options.json.splitStream", Bool, &[], ""),
    nothing("logging.options.json.infoBufferSize", Any, &[], AT_ONCE),
    setting("hostnameOverride", Text),
    setting("bindAddress", Text),
    setting("healthzBindAddress", Text),
    setting("metricsBindAddress", Text),
    setting("bindAddressHardFail", Bool),
    setting("enableProfiling", Bool),
    setting("showHiddenMetricsForVersion", Text),
    setting("mode", Text),
    setting("iptables.masqueradeBit", BIT),
    setting("iptables.masqueradeAll", Bool),
    of_mode("iptables", "iptables.localhostNodePorts", Bool, "node ports never answer at loopback addresses"),
    of_mode("iptables", "iptables.snatNodeInternalIP", Bool, "the address of the outgoing interface is used"),
    setting("iptables.syncPeriod", Duration),
    setting("iptables.minSyncPeriod", Duration),
    setting("ipvs.syncPeriod", Duration),
    setting("ipvs.minSyncPeriod", Duration),
    setting("ipvs.scheduler", Text),
    of_mode("ipvs", "ipvs.excludeCIDRs", Texts, NO_IPVS),
    of_mode("ipvs", "ipvs.strictARP", Bool, NO_IPVS),
    of_mode("ipvs", "ipvs.tcpTimeout", Duration, NO_IPVS),
    of_mode("ipvs", "ipvs.tcpFinTimeout", Duration, NO_IPVS),
    of_mode("ipvs", "ipvs.udpTimeout", Duration, NO_IPVS),
    setting("nftables.masqueradeBit", BIT),
    setting("nftables.masqueradeAll", Bool),
    setting("nftables.syncPeriod", Duration),
    setting("nftables.minSyncPeriod", Duration),
    nothing("winkernel.networkName", Text, &[], "it is for Windows"),
    nothing("winkernel.sourceVip", Text, &[], "it is for Windows"),
    nothing("winkernel.enableDSR", Bool, &[], "it is for Windows"),
    nothing("winkernel.rootHnsEndpointName", Text, &[], "it is for Windows"),
    nothing("winkernel.forwardHealthCheckVip", Bool, &[], "it is for Windows"),
    setting("detectLocalMode", Text),
    setting("detectLocal.bridgeInterface", Text),
    setting("detectLocal.interfaceNamePrefix", Text),
    setting("clusterCIDR", Text),
    setting("nodePortAddresses", Texts),
    setting("oomScoreAdj", Integer(-1000, 1000)),
    setting("conntrack.maxPerCore", NATURAL),
    setting("conntrack.min", NATURAL),
    setting("conntrack.tcpEstablishedTimeout", Duration),
    setting("conntrack.tcpCloseWaitTimeout", Duration),
    setting("conntrack.tcpBeLiberal", Bool),
    setting("conntrack.udpTimeout", Duration),
    setting("conntrack.udpStreamTimeout", Duration),
    nothing("configSyncPeriod", Duration, &["15m"], "objects are watched and never replayed"),
    nothing("portRange", Text, &[], "kube-proxy does not use it either"),
    nothing("windowsRunAsService", Bool, &[], "it is for Windows"),
];

/// The field at this path.
pub fn field(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// Whether fields lie below this path.
pub fn is_section(path: &str) -> bool {
    FIELDS.iter().any(|field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}
