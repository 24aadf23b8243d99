//! kube-proxy's mode, and the datapath that carries the packets.

use super::BackendName;
use super::merge::Inputs;
use crate::backend::HAS_EBPF;
use crate::config::Problem;
use crate::config::schema::Field;

/// kube-proxy's mode: each has a block of fields and defaults of its own. The datapath is another question: see
/// [`BackendName`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProxyMode {
    /// `iptables`, also where a file names none.
    Iptables,
    /// `ipvs`.
    Ipvs,
    /// `nftables`, and our `ebpf`, which reads the block of `nftables` too.
    Nftables,
}

impl ProxyMode {
    /// As kube-proxy's configuration calls it, which is also the name of its block.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
            Self::Nftables => "nftables",
        }
    }

    /// The block with masqueradeAll and masqueradeBit: ipvs mode takes them from `iptables`.
    pub fn rules(self) -> &'static str {
        match self {
            Self::Iptables | Self::Ipvs => "iptables",
            Self::Nftables => "nftables",
        }
    }

    /// Whether a field in the block of some mode is read in this one.
    pub(super) fn reads(self, field: &Field, backend: BackendName) -> bool {
        let rules = || field.path.split_once('.').is_some_and(|(_, name)| name.starts_with("masquerade"));
        match field.block() {
            None => true,
            // What others left is looked for by every mode.
            _ if ["ebpf.bpffsRoot", "ipvs.excludeCIDRs"].contains(&field.path) => true,
            Some("ebpf") => backend == BackendName::Ebpf,
            Some(block) => block == self.name() || (block == self.rules() && rules()),
        }
    }
}

/// What the configuration is called by: the mode, and the datapath where that is another.
pub(super) fn name(mode: ProxyMode, backend: BackendName) -> &'static str {
    if backend == BackendName::Ebpf && mode == ProxyMode::Nftables { "ebpf" } else { mode.name() }
}

/// The datapath and the mode.
pub(super) fn check(
    given: &Inputs<'_>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> (BackendName, ProxyMode) {
    let flags = given.datapath();
    let said = given.text(flags.proxy_mode.as_ref(), "--proxy-mode", "mode");
    let from = said.as_ref().map_or_else(|| "mode is not set".to_owned(), |g| format!("{} {}", g.what, g.value));
    let (mode, asked) = match said.as_ref().map(|g| g.value.as_str()) {
        Some("nftables") => (ProxyMode::Nftables, BackendName::Nftables),
        Some("ipvs") => (ProxyMode::Ipvs, BackendName::Nftables),
        Some("iptables") => (ProxyMode::Iptables, BackendName::Nftables),
        Some("ebpf") => (ProxyMode::Nftables, BackendName::Ebpf),
        None if !given.has_file => (ProxyMode::Nftables, BackendName::Nftables),
        None | Some("") => (ProxyMode::Iptables, BackendName::Nftables),
        Some(_) => {
            let why = "must be nftables or ebpf (iptables, ipvs and none are accepted and mean nftables with the settings \
                       and defaults of that mode)";
            problems.extend(said.as_ref().map(|g| g.problem(why)));
            (ProxyMode::Nftables, BackendName::Nftables)
        }
    };
    let flag = given.text(flags.backend.as_ref(), "--backend", "");
    let backend = match flag.as_ref().map(|g| g.value.as_str()) {
        None => asked,
        Some("nftables") => BackendName::Nftables,
        Some("ebpf") => BackendName::Ebpf,
        Some(_) => {
            problems.extend(flag.as_ref().map(|g| g.problem("must be nftables or ebpf")));
            asked
        }
    };
    if backend == BackendName::Ebpf && !HAS_EBPF {
        let why = "is not in this binary, which was built without eBPF: build one with `cargo xtask build-ebpf`, then \
                   `cargo build --features ebpf`";
        problems.extend(flag.as_ref().or(said.as_ref()).map(|g| g.problem(why)));
    }
    if asked == BackendName::Ebpf && backend != asked {
        warnings.push(format!("{from}: --backend {} wins", backend.as_str()));
    }
    if mode != ProxyMode::Nftables {
        warnings.push(format!(
            "{from}: the datapath is {}; the settings and defaults of kube-proxy's {} mode apply. Set mode to {0} to make \
             this explicit",
            backend.as_str(),
            mode.name()
        ));
    }
    (backend, mode)
}
