//! The settings in force as text, for `kubeferry status` and the first log line.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::merge::text_of;
use super::{BackendName, DetectLocal, Settings, Source, mode};

impl Settings {
    /// The settings by kube-proxy's names of them, where it has one.
    pub fn describe(&self) -> BTreeMap<String, String> {
        let datapath = &self.datapath;
        let mut map = BTreeMap::new();
        let mut add = |name: &str, value: String| map.insert(name.to_owned(), value);
        add("mode", mode::name(self.mode, self.backend).to_owned());
        match &self.source {
            Source::Manifests(folder) => add("manifests", folder.display().to_string()),
            Source::Api { kubeconfig: None, server: None } => add("server", "in-cluster".to_owned()),
            Source::Api { kubeconfig, server } => {
                if let Some(path) = kubeconfig {
                    add("kubeconfig", path.display().to_string());
                }
                server.clone().and_then(|server| add("server", server))
            }
        };
        match &datapath.detect_local {
            DetectLocal::ClusterCidr(cidrs) => {
                add("detectLocalMode", "ClusterCIDR".to_owned());
                add("clusterCIDR", list(cidrs, "none"))
            }
            DetectLocal::NodeCidr => add("detectLocalMode", "NodeCIDR".to_owned()),
            DetectLocal::BridgeInterface(name) => add("detectLocalMode", format!("BridgeInterface({name})")),
            DetectLocal::InterfaceNamePrefix(name) => add("detectLocalMode", format!("InterfaceNamePrefix({name})")),
        };
        add("masqueradeAll", datapath.masquerade_all.to_string());
        add("masqueradeBit", datapath.masquerade_bit.to_string());
        add("nodePortAddresses", list(&datapath.node_port_addresses.texts(), "all"));
        add("scheduler", datapath.schedule.scheduler.to_string());
        add("serviceMetrics", datapath.service_metrics.as_str().to_owned());
        add("maglevTableSize", datapath.schedule.table_size.to_string());
        if let Some(ip) = datapath.own_address() {
            add("bindAddress", ip.to_string());
        }
        if !self.node_addresses.is_empty() {
            add("nodeAddresses", list(&self.node_addresses, ""));
        }
        if self.backend == BackendName::Ebpf {
            let ebpf = &self.ebpf;
            add("devices", list(&ebpf.devices, "auto"));
            add("xdp", ebpf.xdp.as_str().to_owned());
            add("xdpDevices", list(&ebpf.xdp_devices, "hardware"));
            if let Some(root) = &ebpf.cgroup_root {
                add("cgroupRoot", root.display().to_string());
            }
            add("socketLB", ebpf.socket_lb.as_str().to_owned());
            add("endPodSockets", ebpf.end_pod_sockets.to_string());
            add("bpffsRoot", ebpf.bpffs_root.display().to_string());
            add("masqueradePorts", format!("{}-{}", ebpf.masquerade_ports.0, ebpf.masquerade_ports.1));
            add("mapSizes", ebpf.map_sizes.to_string());
            add("bpfLogLevel", ebpf.log_level.as_str().to_owned());
        }
        add("syncPeriod", text_of(self.sync_period));
        add("minSyncPeriod", text_of(self.min_sync_period));
        let address =
            |address: Option<std::net::SocketAddr>| address.map_or_else(|| "off".to_owned(), |a| a.to_string());
        add("healthzBindAddress", address(self.healthz));
        add("metricsBindAddress", address(self.metrics));
        map
    }
}

fn list<T: Display>(items: &[T], empty: &str) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    if texts.is_empty() { empty.to_owned() } else { texts.join(",") }
}
