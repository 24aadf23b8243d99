//! `/configz`: the settings in force in the shape that kube-proxy gives them there, which is that of its internal type, with
//! Go's names. What has no effect here is left out.

use std::time::Duration;

use serde_json::{Value, json};

use crate::settings::{BackendName, DetectLocal, Settings, Source};

/// The document for these settings.
pub fn document(settings: &Settings) -> Value {
    let datapath = &settings.datapath;
    let conntrack = &settings.node.conntrack;
    let (mut bridge, mut prefix, mut cidrs) = ("", "", Vec::new());
    let mode = match &datapath.detect_local {
        DetectLocal::ClusterCidr(nets) => {
            cidrs = nets.iter().map(ToString::to_string).collect();
            "ClusterCIDR"
        }
        DetectLocal::NodeCidr => "NodeCIDR",
        DetectLocal::BridgeInterface(name) => {
            bridge = name;
            "BridgeInterface"
        }
        DetectLocal::InterfaceNamePrefix(name) => {
            prefix = name;
            "InterfaceNamePrefix"
        }
    };
    let kubeconfig = match &settings.source {
        Source::Api { kubeconfig: Some(path), .. } => path.display().to_string(),
        _ => String::new(),
    };
    let address =
        |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
    json!({"kubeproxy.config.k8s.io": {
        "Linux": {
            "Conntrack": {
                "MaxPerCore": conntrack.max_per_core, "Min": conntrack.min,
                "TCPEstablishedTimeout": duration(conntrack.tcp_established_timeout),
                "TCPCloseWaitTimeout": duration(conntrack.tcp_close_wait_timeout),
                "TCPBeLiberal": conntrack.tcp_be_liberal,
                "UDPTimeout": duration(conntrack.udp_timeout), "UDPStreamTimeout": duration(conntrack.udp_stream_timeout),
            },
            "MasqueradeAll": datapath.masquerade_all,
            "OOMScoreAdj": settings.node.oom_score_adj,
        },
        "ClientConnection": {
            "Kubeconfig": kubeconfig, "AcceptContentTypes": "application/json", "ContentType": "application/json",
        },
        "Logging": {"format": if settings.log.json { "json" } else { "text" }},
        "HostnameOverride": &*settings.node_name,
        "BindAddress": datapath.bind_address.to_string(),
        "HealthzBindAddress": address(settings.healthz),
        "MetricsBindAddress": address(settings.metrics),
        "BindAddressHardFail": settings.bind_hard_fail,
        "EnableProfiling": settings.profiling,
        "ShowHiddenMetricsForVersion": settings.show_hidden_metrics.as_deref().unwrap_or_default(),
        "Mode": if settings.backend == BackendName::Ebpf { "ebpf" } else { "nftables" },
        "NFTables": {"MasqueradeBit": datapath.masquerade_bit},
        "DetectLocalMode": mode,
        "DetectLocal": {"BridgeInterface": bridge, "ClusterCIDRs": cidrs, "InterfaceNamePrefix": prefix},
        "NodePortAddresses": datapath.node_port_addresses.texts(),
        "SyncPeriod": duration(settings.sync_period),
        "MinSyncPeriod": duration(settings.min_sync_period),
    }})
}

/// As Go writes it: from a minute on with every smaller unit.
fn duration(duration: Duration) -> String {
    let (minutes, seconds) = (duration.as_secs() / 60, duration - Duration::from_secs(duration.as_secs() / 60 * 60));
    match minutes {
        0 if (1..1000).contains(&duration.as_millis()) => format!("{}ms", duration.as_micros() as f64 / 1000.0),
        0 => format!("{}s", seconds.as_secs_f64()),
        1..60 => format!("{minutes}m{}s", seconds.as_secs_f64()),
        _ => format!("{}h{}m{}s", minutes / 60, minutes % 60, seconds.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (millis, text) in [
            (0, "0s"),
            (500, "500ms"),
            (1_500, "1.5s"),
            (30_000, "30s"),
            (60_000, "1m0s"),
            (90_500, "1m30.5s"),
            (3_600_000, "1h0m0s"),
            (90_061_000, "25h1m1s"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }
}
