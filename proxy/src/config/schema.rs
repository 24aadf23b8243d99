//! Every field of `KubeProxyConfiguration`, v1alpha1 as of Kubernetes 1.36, and of our block `ebpf`: its type, its bounds,
//! kube-proxy's flag for it, both defaults, and what becomes of it here. Bounds are kube-proxy's (`validation.go`), where
//! zero and absence mean the default (`defaults.go`). The table in `docs/configuration.md` is made from this.

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its place in the file, with dots.
    pub path: &'static str,
    /// What it may hold.
    pub kind: Kind,
    /// kube-proxy's flag for it (or ours, in our block), without dashes.
    pub flag: Option<&'static str>,
    /// kube-proxy's default, as text; empty: none, or the empty value.
    pub default: &'static str,
    /// Our default, where it is another.
    pub ours: Option<&'static str>,
    /// Whether it does anything.
    pub effect: Effect,
    /// Why it does nothing, or what there is to know.
    pub note: &'static str,
    /// Values beside the default that ask for nothing.
    pub harmless: &'static [&'static str],
}

/// What a field may hold.
#[derive(Clone, Copy, PartialEq, Debug)]
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
    /// A Go duration, or nanoseconds as a whole number.
    Nanoseconds,
    /// Bytes: a whole number, or a Kubernetes quantity such as 4Ki.
    Quantity,
    /// A list of strings.
    Texts,
    /// A map of booleans.
    Switches,
    /// A list of file patterns with a verbosity each, as `vmodule` has it.
    Modules,
}

/// Whether a field does anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// It sets something.
    Honoured,
    /// It has no effect; a value that asks for one is named in a warning.
    Warned,
}

impl Field {
    /// The block that it stands in, as far as that belongs to a mode: `iptables`, `ipvs`, `nftables`, `ebpf`.
    pub fn block(&self) -> Option<&'static str> {
        let (block, _) = self.path.split_once('.')?;
        ["iptables", "ipvs", "nftables", "ebpf"].contains(&block).then_some(block)
    }

    const fn flag(self, flag: &'static str) -> Self {
        Self { flag: Some(flag), ..self }
    }

    const fn default(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    const fn ours(self, ours: &'static str) -> Self {
        Self { ours: Some(ours), ..self }
    }

    const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    const fn warned(self, note: &'static str) -> Self {
        Self { effect: Effect::Warned, note, ..self }
    }

    const fn harmless(self, harmless: &'static [&'static str]) -> Self {
        Self { harmless, ..self }
    }
}

const fn field(path: &'static str, kind: Kind) -> Field {
    Field { path, kind, flag: None, default: "", ours: None, effect: Effect::Honoured, note: "", harmless: &[] }
}

use Kind::{Bool, Duration, Integer, Modules, Nanoseconds, Number, Quantity, Switches, Text, Texts};

const NATURAL: Kind = Integer(0, i32::MAX as i64);
const BIT: Kind = Integer(0, 31);
const ROWS: Kind = Integer(1, u32::MAX as i64);
const NO_IPVS: &str = "there is no IPVS here";
const AT_ONCE: &str = "log lines are written at once, to standard error";
/// The same, where kube-proxy asks for a gate.
const AT_ONCE_AND_GATED: &str = "log lines are written at once, to standard error; without the feature gate LoggingAlphaOptions it is \
                                 refused, as by kube-proxy";
const WINDOWS: &str = "it is for Windows";
const JSON: &str = "JSON is spoken with the API server";
const NO_LIMIT: &str = "requests are few: there is no limit of their rate";
const AS_IS: &str = "0 leaves the kernel's value as it is";
const TIME: &str = "whole seconds (less than one is 1); 0 leaves the kernel's value as it is";
const EBPF_ONLY: &str = "mode `ebpf` only";

/// All fields, in the order of Kubernetes' type, ours last.
pub const FIELDS: &[Field] = &[
    field("apiVersion", Text).note("must be `kubeproxy.config.k8s.io/v1alpha1`"),
    field("kind", Text).note("must be `KubeProxyConfiguration`"),
    field("featureGates", Switches)
        .flag("feature-gates")
        .warned(
            "what gates of kube-proxy turn on is always on, others mean nothing here; each is named with its reason, and \
             where kube-proxy would not start with it. Refused: turning off `AllowServiceExternalIPs` (external IPs are always \
             served)",
        )
        .harmless(&[
            "AllowServiceExternalIPs=true",
            "ComponentFlagz=true",
            "ComponentStatusz=true",
            "ContextualLogging=true",
            "LoggingBetaOptions=true",
            "MultiCIDRServiceAllocator=true",
            "NFTablesProxyMode=true",
            "PreferSameTrafficDistribution=true",
            "TopologyAwareHints=true",
        ]),
    field("clientConnection.kubeconfig", Text).flag("kubeconfig").note("empty: the service account of our pod"),
    field("clientConnection.acceptContentTypes", Text).warned(JSON).harmless(&["application/json"]),
    field("clientConnection.contentType", Text)
        .flag("kube-api-content-type")
        .default("application/vnd.kubernetes.protobuf")
        .ours("application/json")
        .warned(JSON),
    field("clientConnection.qps", Number).flag("kube-api-qps").default("5").ours("no limit").warned(NO_LIMIT),
    field("clientConnection.burst", NATURAL).flag("kube-api-burst").default("10").ours("no limit").warned(NO_LIMIT),
    field("logging.format", Text).flag("logging-format").default("text").note("`text` or `json`"),
    field("logging.verbosity", NATURAL)
        .flag("v")
        .default("0")
        .note("0 to 3: info; 4, 5: debug; from 6: trace. `--log-level` says it finer"),
    field("logging.flushFrequency", Nanoseconds).flag("log-flush-frequency").default("5s").warned(AT_ONCE),
    field("logging.vmodule", Modules)
        .flag("vmodule")
        .warned("files of Go are not those of Rust: use `--log-level info,kubeferry::watch=debug`"),
    field("logging.options.text.splitStream", Bool).flag("log-text-split-stream").default("false").warned(AT_ONCE_AND_GATED),
    field("logging.options.text.infoBufferSize", Quantity)
        .flag("log-text-info-buffer-size")
        .default("0")
        .warned(AT_ONCE_AND_GATED),
    field("logging.options.json.splitStream", Bool).flag("log-json-split-stream").default("false").warned(AT_ONCE_AND_GATED),
    field("logging.options.json.infoBufferSize", Quantity)
        .flag("log-json-info-buffer-size")
        .default("0")
        .warned(AT_ONCE_AND_GATED),
    field("hostnameOverride", Text).flag("hostname-override").default("the host name").note("`--node-name` is the same"),
    field("bindAddress", Text).flag("bind-address").default("0.0.0.0").note("nothing is bound to it"),
    field("healthzBindAddress", Text)
        .flag("healthz-bind-address")
        .default("0.0.0.0:10256")
        .note("`[::]:10256` if bindAddress is IPv6; an empty flag turns it off, an empty field is the default"),
    field("metricsBindAddress", Text)
        .flag("metrics-bind-address")
        .default("127.0.0.1:10249")
        .note("`[::1]:10249` if bindAddress is IPv6; an empty flag turns it off, an empty field is the default"),
    field("bindAddressHardFail", Bool).flag("bind-address-hard-fail").default("false"),
    field("enableProfiling", Bool)
        .flag("profiling")
        .default("false")
        .note("`/debug/flags/v` sets the verbosity; there are no profiles of Go, `/debug/pprof` says so"),
    field("showHiddenMetricsForVersion", Text)
        .flag("show-hidden-metrics-for-version")
        .note("a minor version, of which kube-proxy takes the previous one alone; no metric is hidden in this version, so it shows none"),
    field("mode", Text)
        .flag("proxy-mode")
        .default("iptables")
        .note(
            "`nftables`, or our `ebpf`. `iptables`, `ipvs` and none in a file mean nftables with that mode's block and \
             defaults. Without a file and the flag: `nftables`",
        ),
    field("iptables.masqueradeBit", BIT)
        .flag("iptables-masquerade-bit")
        .default("14")
        .note("modes iptables and ipvs; the flag serves every mode"),
    field("iptables.masqueradeAll", Bool).flag("masquerade-all").default("false").note("modes iptables and ipvs"),
    field("iptables.localhostNodePorts", Bool)
        .flag("iptables-localhost-nodeports")
        .default("true")
        .ours("false")
        .warned("node ports never answer at loopback addresses; `false` ends the warning")
        .harmless(&["false"]),
    field("iptables.snatNodeInternalIP", Bool)
        .default("false")
        .warned("the address of the outgoing interface is used (the field comes with Kubernetes 1.37)"),
    field("iptables.syncPeriod", Duration).flag("iptables-sync-period").default("30s").note("mode iptables"),
    field("iptables.minSyncPeriod", Duration)
        .flag("iptables-min-sync-period")
        .default("1s")
        .ours("0s")
        .note("mode iptables; 0s: changes are applied at once"),
    field("ipvs.syncPeriod", Duration).flag("ipvs-sync-period").default("30s").note("mode ipvs"),
    field("ipvs.minSyncPeriod", Duration).flag("ipvs-min-sync-period").default("0s").note("mode ipvs"),
    field("ipvs.scheduler", Text)
        .flag("ipvs-scheduler")
        .default("rr")
        .note("mode ipvs; in every other, `--scheduler` chooses. `lblc`, `lblcr`, `fo`, `ovf`, `twos` are taken for `random`, with a warning, \
             and so are `lc`, `wlc`, `sed`, `nq` with nftables"),
    field("ipvs.excludeCIDRs", Texts)
        .flag("ipvs-exclude-cidrs")
        .note("every mode: virtual servers of IPVS at these addresses stay when what kube-proxy left is removed"),
    field("ipvs.strictARP", Bool).flag("ipvs-strict-arp").default("false").warned(NO_IPVS),
    field("ipvs.tcpTimeout", Duration).flag("ipvs-tcp-timeout").default("0s").warned(NO_IPVS),
    field("ipvs.tcpFinTimeout", Duration).flag("ipvs-tcpfin-timeout").default("0s").warned(NO_IPVS),
    field("ipvs.udpTimeout", Duration).flag("ipvs-udp-timeout").default("0s").warned(NO_IPVS),
    field("nftables.masqueradeBit", BIT)
        .flag("iptables-masquerade-bit")
        .default("14")
        .note("modes nftables and ebpf; kube-proxy has no flag for it"),
    field("nftables.masqueradeAll", Bool).flag("masquerade-all").default("false").note("modes nftables and ebpf"),
    field("nftables.syncPeriod", Duration).flag("iptables-sync-period").default("30s").note("modes nftables and ebpf"),
    field("nftables.minSyncPeriod", Duration)
        .flag("iptables-min-sync-period")
        .default("1s")
        .ours("0s")
        .note("modes nftables and ebpf; 0s: changes are applied at once"),
    field("winkernel.networkName", Text).warned(WINDOWS),
    field("winkernel.sourceVip", Text).warned(WINDOWS),
    field("winkernel.enableDSR", Bool).default("false").warned(WINDOWS),
    field("winkernel.rootHnsEndpointName", Text).warned(WINDOWS),
    field("winkernel.forwardHealthCheckVip", Bool).default("false").warned(WINDOWS),
    field("detectLocalMode", Text).flag("detect-local-mode").default("ClusterCIDR"),
    field("detectLocal.bridgeInterface", Text).flag("pod-bridge-interface"),
    field("detectLocal.interfaceNamePrefix", Text).flag("pod-interface-name-prefix"),
    field("clusterCIDR", Text).flag("cluster-cidr").note("one CIDR, or one of each family with a comma"),
    field("nodePortAddresses", Texts)
        .flag("nodeport-addresses")
        .default("all; `primary` in mode nftables")
        .note("`primary`, `all`, `localhost` and CIDRs, beside each other as in kube-proxy since 1.37; never loopback addresses: those are named in a warning, and alone leave none"),
    field("oomScoreAdj", Integer(-1000, 1000))
        .flag("oom-score-adj")
        .default("-999")
        .note("where the process may: see [docs/node.md](node.md#set-up)"),
    field("conntrack.maxPerCore", NATURAL).flag("conntrack-max-per-core").default("32768").note(AS_IS),
    field("conntrack.min", NATURAL).flag("conntrack-min").default("131072"),
    field("conntrack.tcpEstablishedTimeout", Duration)
        .flag("conntrack-tcp-timeout-established")
        .default("24h")
        .note(TIME),
    field("conntrack.tcpCloseWaitTimeout", Duration).flag("conntrack-tcp-timeout-close-wait").default("1h").note(TIME),
    field("conntrack.tcpBeLiberal", Bool).flag("conntrack-tcp-be-liberal").default("false"),
    field("conntrack.udpTimeout", Duration).flag("conntrack-udp-timeout").default("0s").note(TIME),
    field("conntrack.udpStreamTimeout", Duration).flag("conntrack-udp-timeout-stream").default("0s").note(TIME),
    field("configSyncPeriod", Duration)
        .flag("config-sync-period")
        .default("15m")
        .ours("never")
        .warned("objects are watched and never replayed"),
    field("portRange", Text).warned("kube-proxy does not use it either"),
    field("serviceMetrics", Text).flag("service-metrics").default("off").note("not a field of kube-proxy"),
    field("windowsRunAsService", Bool).default("false").warned(WINDOWS),
    field("ebpf.devices", Texts).flag("devices").note(EBPF_ONLY),
    field("ebpf.xdp", Text).flag("xdp").default("auto").note(EBPF_ONLY),
    field("ebpf.xdpDevices", Texts).flag("xdp-devices").note(EBPF_ONLY),
    field("ebpf.cgroupRoot", Text).flag("cgroup-root").note(EBPF_ONLY),
    field("ebpf.socketLB", Text).flag("socket-lb").default("auto").note(EBPF_ONLY),
    field("ebpf.endPodSockets", Bool).flag("end-pod-sockets").default("false").note(EBPF_ONLY),
    field("ebpf.bpffsRoot", Text)
        .flag("bpffs-root")
        .default("/sys/fs/bpf")
        .note("in the other modes, what mode `ebpf` left is looked for there"),
    field("ebpf.masqueradePorts", Text).flag("masquerade-ports").default("16384-29999").note(EBPF_ONLY),
    field("ebpf.bpfLogLevel", Text).flag("bpf-log-level").default("off").note(EBPF_ONLY),
    field("ebpf.mapSizes.frontends", ROWS).flag("map-sizes").default("65536").note(EBPF_ONLY),
    field("ebpf.mapSizes.slots", ROWS).flag("map-sizes").default("262144").note(EBPF_ONLY),
    field("ebpf.mapSizes.backends", ROWS).flag("map-sizes").default("262144").note(EBPF_ONLY),
    field("ebpf.mapSizes.addresses", ROWS).flag("map-sizes").default("32768").note(EBPF_ONLY),
    field("ebpf.mapSizes.devices", ROWS).flag("map-sizes").default("4096").note(EBPF_ONLY),
    field("ebpf.mapSizes.source_ranges", ROWS).flag("map-sizes").default("65536").note(EBPF_ONLY),
    field("ebpf.mapSizes.members", ROWS).flag("map-sizes").default("65536").note(EBPF_ONLY),
    field("ebpf.mapSizes.flows", ROWS).flag("map-sizes").default("1048576").note(EBPF_ONLY),
    field("ebpf.mapSizes.affinity", ROWS).flag("map-sizes").default("65536").note(EBPF_ONLY),
    field("ebpf.mapSizes.sockets", ROWS).flag("map-sizes").default("262144").note(EBPF_ONLY),
];

/// The field at this path.
pub fn field_at(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// The first field that this flag sets, given without dashes.
pub fn field_of_flag(flag: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.flag == Some(flag))
}

/// Whether fields lie below this path.
pub fn is_section(path: &str) -> bool {
    FIELDS.iter().any(|field| field.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}
