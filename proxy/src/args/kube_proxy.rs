//! kube-proxy's flags that only `run` has, by the names of kube-proxy. They stay text: each is read as its field in the
//! configuration file is.

use clap::Args;

/// The flags and their texts, named as on the command line, without dashes.
macro_rules! given {
    ($args:expr; $($field:ident),* $(,)?) => {
        [$((stringify!($field).replace('_', "-"), $args.$field.as_deref())),*]
            .into_iter()
            .filter_map(|(name, text)| text.map(|text| (name, text)))
            .collect()
    };
}

/// What kube-proxy's configuration file has fields for; ignored beside `--config`, as by kube-proxy.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Further flags of kube-proxy")]
pub struct KubeProxyArgs {
    /// Feature gates of Kubernetes: what they turn on is always on here [config: featureGates]
    #[arg(long, value_name = "NAME=BOOL,...")]
    pub feature_gates: Option<String>,

    /// Without effect: JSON is spoken with the API server [config: clientConnection.contentType]
    #[arg(long, value_name = "TYPE")]
    pub kube_api_content_type: Option<String>,

    /// Without effect: the rate of requests has no limit [config: clientConnection.burst]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub kube_api_burst: Option<String>,

    /// Without effect: the rate of requests has no limit [config: clientConnection.qps]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub kube_api_qps: Option<String>,

    /// Serve /debug at the metrics address: PUT /debug/flags/v sets the verbosity of the log. Profiles are not there (501)
    /// [config: enableProfiling; default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub profiling: Option<String>,

    /// Show metrics that were hidden since this minor version, such as 1.35 [config: showHiddenMetricsForVersion]
    #[arg(long, value_name = "VERSION")]
    pub show_hidden_metrics_for_version: Option<String>,

    /// As --iptables-sync-period, in mode ipvs [config: ipvs.syncPeriod; default: 30s]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub ipvs_sync_period: Option<String>,

    /// As --iptables-min-sync-period, in mode ipvs [config: ipvs.minSyncPeriod; default: 0s]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub ipvs_min_sync_period: Option<String>,

    /// Virtual servers of IPVS at these addresses stay when what kube-proxy left is removed [config: ipvs.excludeCIDRs]
    #[arg(long, value_name = "CIDR,...")]
    pub ipvs_exclude_cidrs: Option<String>,

    /// Without effect: there is no IPVS here [config: ipvs.strictARP]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub ipvs_strict_arp: Option<String>,

    /// Without effect: there is no IPVS here [config: ipvs.tcpTimeout]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub ipvs_tcp_timeout: Option<String>,

    /// Without effect: there is no IPVS here [config: ipvs.tcpFinTimeout]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub ipvs_tcpfin_timeout: Option<String>,

    /// Without effect: there is no IPVS here [config: ipvs.udpTimeout]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub ipvs_udp_timeout: Option<String>,

    /// The kernel's preference to end this process when memory is short, -1000 to 1000 [config: oomScoreAdj; default:
    /// -999]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub oom_score_adj: Option<String>,

    /// Entries of connection tracking for each CPU; 0 leaves the limit as it is [config: conntrack.maxPerCore; default:
    /// 32768]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub conntrack_max_per_core: Option<String>,

    /// The least number of entries of connection tracking [config: conntrack.min; default: 131072]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub conntrack_min: Option<String>,

    /// How long an idle TCP connection is tracked; 0 leaves it as it is [config: conntrack.tcpEstablishedTimeout;
    /// default: 24h]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub conntrack_tcp_timeout_established: Option<String>,

    /// How long a TCP connection in CLOSE_WAIT is tracked; 0 leaves it as it is [config: conntrack.tcpCloseWaitTimeout;
    /// default: 1h]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub conntrack_tcp_timeout_close_wait: Option<String>,

    /// TCP packets out of the window count as part of their connection [config: conntrack.tcpBeLiberal; default: false]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub conntrack_tcp_be_liberal: Option<String>,

    /// How long a UDP flow without an answer is tracked; 0 leaves it as it is [config: conntrack.udpTimeout; default:
    /// 0s]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub conntrack_udp_timeout: Option<String>,

    /// How long a UDP flow with answers is tracked; 0 leaves it as it is [config: conntrack.udpStreamTimeout; default:
    /// 0s]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub conntrack_udp_timeout_stream: Option<String>,

    /// Without effect: objects are watched and never replayed [config: configSyncPeriod]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub config_sync_period: Option<String>,
}

impl KubeProxyArgs {
    /// The flags that were given, and their texts.
    pub fn given(&self) -> Vec<(String, &str)> {
        given!(self; feature_gates, kube_api_content_type, kube_api_burst, kube_api_qps, profiling, show_hidden_metrics_for_version, ipvs_sync_period, ipvs_min_sync_period, ipvs_exclude_cidrs, ipvs_strict_arp, ipvs_tcp_timeout, ipvs_tcpfin_timeout, ipvs_udp_timeout, oom_score_adj, conntrack_max_per_core, conntrack_min, conntrack_tcp_timeout_established, conntrack_tcp_timeout_close_wait, conntrack_tcp_be_liberal, conntrack_udp_timeout, conntrack_udp_timeout_stream, config_sync_period)
    }
}

/// How kube-proxy's log is written: in force beside `--config`, too.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
#[command(next_help_heading = "Further logging flags of kube-proxy")]
pub struct KubeProxyLogArgs {
    /// Without effect: log lines are written at once [config: logging.flushFrequency]
    #[arg(long, value_name = "DURATION", allow_negative_numbers = true)]
    pub log_flush_frequency: Option<String>,

    /// Without effect: use --log-level with directives such as info,kubeferry::watch=debug [config: logging.vmodule]
    #[arg(long, value_name = "PATTERN=N,...")]
    pub vmodule: Option<String>,

    /// Without effect: log lines are written to standard error [config: logging.options.text.splitStream]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub log_text_split_stream: Option<String>,

    /// Without effect: log lines are written at once [config: logging.options.text.infoBufferSize]
    #[arg(long, value_name = "BYTES")]
    pub log_text_info_buffer_size: Option<String>,

    /// Without effect: log lines are written to standard error [config: logging.options.json.splitStream]
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub log_json_split_stream: Option<String>,

    /// Without effect: log lines are written at once [config: logging.options.json.infoBufferSize]
    #[arg(long, value_name = "BYTES")]
    pub log_json_info_buffer_size: Option<String>,
}

impl KubeProxyLogArgs {
    /// The flags that were given, and their texts.
    pub fn given(&self) -> Vec<(String, &str)> {
        given!(self; log_flush_frequency, vmodule, log_text_split_stream, log_text_info_buffer_size, log_json_split_stream, log_json_info_buffer_size)
    }
}
