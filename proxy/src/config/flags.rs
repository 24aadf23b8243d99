//! kube-proxy's flags that have no field in the configuration file. The others stand with their field in
//! [`schema`](super::schema).

/// A flag of kube-proxy without a field.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// What it does here.
    pub note: &'static str,
    /// Whether it is refused; the note says what to do instead.
    pub refused: bool,
}

const fn flag(name: &'static str, note: &'static str) -> Flag {
    Flag { name, note, refused: false }
}

/// All of them, and those that kube-proxy once had.
pub const FLAGS: &[Flag] = &[
    flag("config", "the configuration file; a change of it is noticed"),
    flag("write-config-to", "writes the configuration in force, defaults included, as YAML and exits"),
    flag("cleanup", "removes what kube-proxy and Kubeferry left on the node and exits, as `kubeferry cleanup` does"),
    flag("init-only", "does what needs full rights and exits"),
    flag("master", "`--server` is the same; wins over the server that the kubeconfig names"),
    flag("healthz-port", "deprecated, with a warning: 0 turns it off, another is for an address without a port"),
    flag("metrics-port", "deprecated, with a warning: 0 turns it off, another is for an address without a port"),
    flag("version", "`kubeferry --version`; `raw` is the same"),
    Flag {
        name: "cleanup-ipvs",
        note: "gone from kube-proxy too; `--cleanup` removes what IPVS mode left",
        refused: true,
    },
    Flag { name: "proxy-port-range", note: "gone from kube-proxy too, which did not use it", refused: true },
    Flag { name: "udp-timeout", note: "gone from kube-proxy too: it was of the mode userspace", refused: true },
];
