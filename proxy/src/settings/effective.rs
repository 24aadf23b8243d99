//! The configuration in force as a `KubeProxyConfiguration`: what `--write-config-to` writes and `config check` prints. Read
//! again, it gives the same settings.

use serde_json::{Map, Value as Json, json};

use super::merge::text_of;
use super::{BackendName, DetectLocal, Loaded, ProxyMode, Settings, Source, mode};
use crate::config::schema::{FIELDS, Field, Kind};
use crate::config::{Value, default_value, go_duration_text};

impl Loaded {
    /// As YAML, with every field: those that have an effect as it is in force, the others as they were given, or
    /// kube-proxy's default.
    ///
    /// # Errors
    /// None that is known: every value has a form in YAML.
    pub fn effective(&self) -> anyhow::Result<String> {
        let mut document = Map::new();
        let given_ebpf = || self.config.given().any(|(path, _)| path.starts_with("ebpf."));
        let ebpf = self.settings.backend == BackendName::Ebpf || given_ebpf();
        for field in FIELDS.iter().filter(|field| ebpf || field.block() != Some("ebpf")) {
            let given = || self.config.given().find(|(path, _)| *path == field.path).map(|(_, value)| value.clone());
            match field.path {
                // kube-proxy 1.36 does not know it.
                "iptables.snatNodeInternalIP" if given().is_none() => continue,
                // As kubeadm writes it: its default, true, would be warned about here, and false would change kube-proxy.
                "iptables.localhostNodePorts" if given().is_none() => {
                    put(&mut document, field.path, Json::Null);
                    continue;
                }
                // The name that the Node is looked for by: trimmed, in lower case.
                "hostnameOverride" if given().is_some_and(|name| !name.is_zero()) => {
                    put(&mut document, field.path, json!(&*self.settings.node_name));
                    continue;
                }
                _ => {}
            }
            let value = in_force(&self.settings, field.path);
            let given = || given().filter(|value| !(value.is_zero() && zero_is_default(field)));
            let value = value.unwrap_or_else(|| given().or_else(|| default_value(field)).map_or(zero(field), json_of));
            put(&mut document, field.path, value);
        }
        Ok(quoted_for_yaml_1_1(&serde_yaml_ng::to_string(&document)?))
    }

    /// The settings that have no field, for people: `name=value` each.
    pub fn beside(&self) -> String {
        let Settings { backend, node_name, source, datapath, .. } = &self.settings;
        let mut parts = vec![format!("node={node_name}"), format!("backend={}", backend.as_str())];
        if self.settings.mode != ProxyMode::Ipvs {
            parts.push(format!("scheduler={}", datapath.schedule.scheduler));
        }
        parts.push(format!("maglevTableSize={}", datapath.schedule.table_size));
        match source {
            Source::Manifests(folder) => parts.push(format!("manifests={}", folder.display())),
            Source::Api { server, .. } => parts.extend(server.iter().map(|server| format!("server={server}"))),
        }
        parts.join(" ")
    }
}

/// What is in force where flags without a place in the given values, or defaults of the mode, decide.
fn in_force(settings: &Settings, path: &str) -> Option<Json> {
    let Settings { datapath, node, ebpf, .. } = settings;
    let (mode, rules) = (settings.mode.name(), settings.mode.rules());
    let of = |block: &str, field: &str| path == format!("{block}.{field}");
    let conntrack = &node.conntrack;
    Some(match path {
        "apiVersion" => json!("kubeproxy.config.k8s.io/v1alpha1"),
        "kind" => json!("KubeProxyConfiguration"),
        "mode" => json!(mode::name(settings.mode, settings.backend)),
        "clientConnection.kubeconfig" => match &settings.source {
            Source::Api { kubeconfig: Some(path), .. } => json!(path),
            _ => return None,
        },
        "logging.format" => json!(if settings.log.json { "json" } else { "text" }),
        "hostnameOverride" | "bindAddress" => return None,
        "healthzBindAddress" => json!(settings.healthz.map(|a| a.to_string()).unwrap_or_default()),
        "metricsBindAddress" => json!(settings.metrics.map(|a| a.to_string()).unwrap_or_default()),
        "bindAddressHardFail" => json!(settings.bind_hard_fail),
        "detectLocalMode" => json!(match &datapath.detect_local {
            DetectLocal::ClusterCidr(_) => "ClusterCIDR",
            DetectLocal::NodeCidr => "NodeCIDR",
            DetectLocal::BridgeInterface(_) => "BridgeInterface",
            DetectLocal::InterfaceNamePrefix(_) => "InterfaceNamePrefix",
        }),
        "clusterCIDR" => match &datapath.detect_local {
            DetectLocal::ClusterCidr(cidrs) => {
                json!(cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
            }
            _ => return None,
        },
        "detectLocal.bridgeInterface" => match &datapath.detect_local {
            DetectLocal::BridgeInterface(name) => json!(name),
            _ => return None,
        },
        "detectLocal.interfaceNamePrefix" => match &datapath.detect_local {
            DetectLocal::InterfaceNamePrefix(prefix) => json!(prefix),
            _ => return None,
        },
        "nodePortAddresses" => match datapath.node_port_addresses.texts() {
            texts if texts.is_empty() => Json::Null,
            texts => json!(texts),
        },
        "oomScoreAdj" => json!(node.oom_score_adj),
        "conntrack.maxPerCore" => json!(conntrack.max_per_core),
        "conntrack.min" => json!(conntrack.min),
        "conntrack.tcpEstablishedTimeout" => json!(text_of(conntrack.tcp_established_timeout)),
        "conntrack.tcpCloseWaitTimeout" => json!(text_of(conntrack.tcp_close_wait_timeout)),
        "ipvs.excludeCIDRs" if settings.mode == ProxyMode::Ipvs => json!(node.ipvs_excluded),
        "ipvs.scheduler" if settings.mode == ProxyMode::Ipvs => json!(datapath.schedule.scheduler.name()),
        _ if of(mode, "syncPeriod") => json!(text_of(settings.sync_period)),
        _ if of(mode, "minSyncPeriod") => json!(text_of(settings.min_sync_period)),
        _ if of(rules, "masqueradeAll") => json!(datapath.masquerade_all),
        _ if of(rules, "masqueradeBit") => json!(datapath.masquerade_bit),
        "ebpf.devices" => json!(ebpf.devices),
        "ebpf.xdp" => json!(ebpf.xdp.as_str()),
        "ebpf.xdpDevices" => json!(ebpf.xdp_devices),
        "ebpf.cgroupRoot" => json!(ebpf.cgroup_root.clone().unwrap_or_default()),
        "ebpf.socketLB" => json!(ebpf.socket_lb.as_str()),
        "ebpf.endPodSockets" => json!(ebpf.end_pod_sockets),
        "ebpf.bpffsRoot" => json!(ebpf.bpffs_root),
        "ebpf.masqueradePorts" => json!(format!("{}-{}", ebpf.masquerade_ports.0, ebpf.masquerade_ports.1)),
        "serviceMetrics" => json!(datapath.service_metrics.as_str()),
        "ebpf.bpfLogLevel" => json!(ebpf.log_level.as_str()),
        _ => {
            let map = path.strip_prefix("ebpf.mapSizes.")?;
            json!(ebpf.map_sizes.all().iter().find(|(name, _)| *name == map)?.1)
        }
    })
}

/// With quotes around texts that YAML 1.1, which kube-proxy reads, takes for switches or numbers, and YAML 1.2 for texts.
fn quoted_for_yaml_1_1(document: &str) -> String {
    let quote = |line: &str| {
        let (before, value) = line.rsplit_once(' ')?;
        let is_text = before.ends_with([':', '-']) && is_other_in_yaml_1_1(value);
        is_text.then(|| format!("{before} '{value}'"))
    };
    document.lines().map(|line| quote(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn is_other_in_yaml_1_1(text: &str) -> bool {
    let number = text.replace('_', "").to_ascii_lowercase();
    let number = number.trim_start_matches(['+', '-']);
    let is_number = number.parse::<f64>().is_ok() || number.starts_with("0x") || number.starts_with("0b");
    let is_switch = ["y", "yes", "on", "n", "no", "off"].contains(&text.to_ascii_lowercase().as_str());
    is_switch || (text.contains('_') && is_number)
}

fn json_of(value: Value) -> Json {
    match value {
        Value::Text(text) | Value::Quantity(text) => json!(text),
        Value::Bool(on) => json!(on),
        Value::Integer(number) => json!(number),
        Value::Number(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
        Value::Number(number) => json!(number),
        Value::Duration(duration) => json!(go_duration_text(duration)),
        Value::Texts(texts) => json!(texts),
        Value::Switches(map) => json!(map),
        Value::Modules(modules) => {
            let module = |(pattern, level)| json!({ "filePattern": pattern, "verbosity": level });
            Json::Array(modules.into_iter().map(module).collect())
        }
    }
}

/// Whether nothing, 0 and `0s` are as if the field was not given; a bit, and what is in force, are not so.
fn zero_is_default(field: &Field) -> bool {
    matches!(field.kind, Kind::Text | Kind::Duration | Kind::Nanoseconds | Kind::Number)
        || field.path == "clientConnection.burst"
}

/// What an absent field holds.
fn zero(field: &Field) -> Json {
    match field.kind {
        Kind::Text => json!(""),
        Kind::Bool => json!(false),
        Kind::Integer(..) | Kind::Number => json!(0),
        Kind::Duration | Kind::Nanoseconds => json!("0s"),
        Kind::Quantity => json!("0"),
        Kind::Texts | Kind::Modules => Json::Null,
        Kind::Switches => json!({}),
    }
}

fn put(document: &mut Map<String, Json>, path: &str, value: Json) {
    match path.split_once('.') {
        None => drop(document.insert(path.to_owned(), value)),
        Some((section, rest)) => {
            let section = document.entry(section).or_insert_with(|| json!({}));
            if let Json::Object(section) = section {
                put(section, rest, value);
            }
        }
    }
}
