//! kube-proxy's rule for flags beside `--config`: those that the file has a field for are ignored, but for the node's name and
//! for logging. Flags that only Kubeferry has stay in force.

use crate::args::{CommonArgs, KubeProxyArgs, ServeArgs};

/// Empties a flag and keeps its name if it was given.
macro_rules! ignore {
    ($warnings:ident; $args:expr; $($field:ident),* $(,)?) => {
        $(if $args.$field.take().is_some() {
            $warnings.push(ignored(&stringify!($field).replace('_', "-")));
        })*
    };
}

/// The flags that count beside a configuration file, and a warning for each of the others.
pub(super) fn beside_file(common: &CommonArgs, serve: &ServeArgs) -> (CommonArgs, ServeArgs, Vec<String>) {
    let (mut common, mut serve, mut warnings) = (common.clone(), serve.clone(), Vec::new());
    ignore!(warnings; common.source; kubeconfig);
    ignore!(
        warnings; common.datapath; proxy_mode, cluster_cidr, detect_local_mode, pod_bridge_interface,
        pod_interface_name_prefix, masquerade_all, iptables_masquerade_bit, nodeport_addresses, bind_address,
        ipvs_scheduler, iptables_localhost_nodeports
    );
    ignore!(
        warnings; serve; iptables_sync_period, iptables_min_sync_period, healthz_bind_address, metrics_bind_address,
        bind_address_hard_fail, healthz_port, metrics_port
    );
    let others = std::mem::take(&mut serve.kube_proxy);
    warnings.extend(KubeProxyArgs::given(&others).iter().map(|(name, _)| ignored(name)));
    (common, serve, warnings)
}

fn ignored(flag: &str) -> String {
    format!("--{flag} is ignored beside --config, as kube-proxy does: set it in the file")
}
