//! `kubernetes_feature_enabled`: kube-proxy's feature gates, as far as what they switch is here.

use prometheus_client::metrics::family::Family as Series;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Gates of Kubernetes 1.36 whose feature is always on here, with their stage: empty is GA.
const ON: &[(&str, &str)] = &[
    ("ComponentFlagz", "BETA"),
    ("ComponentStatusz", "BETA"),
    ("MultiCIDRServiceAllocator", ""),
    ("NFTablesProxyMode", ""),
    ("PreferSameTrafficDistribution", ""),
];

pub(super) fn register(registry: &mut Registry) {
    let features: Series<[(&'static str, &'static str); 2], Gauge> = Series::default();
    for (name, stage) in ON {
        features.get_or_create(&[("name", *name), ("stage", *stage)]).set(1);
    }
    registry.register(
        "kubernetes_feature_enabled",
        "Feature gates of kube-proxy whose feature is there and on",
        features,
    );
}
