//! Whether what was packed works: the binary says its commit, reads a configuration, and computes rows. One of another machine
//! runs under emulation of its instructions, with the kernel of this one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::cargo::workspace;
use crate::release::{Arch, VERSION};
use crate::{packages, step};

/// A Service whose row has to be in the plan.
const MANIFESTS: &str = "
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
";

/// Unpacks an archive, looks whether its papers are there, and runs the binary.
pub fn try_out(archive: &Path, name: &str, arch: Arch) -> anyhow::Result<()> {
    let place = tempfile::tempdir()?;
    let packed = fs::read(archive)?;
    tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice())).unpack(place.path())?;
    let folder = place.path().join(name);
    for path in
        ["LICENSE", "man/man1/kubeferry-run.1", "completions/kubeferry.bash", "sbom.cdx.json", "deploy/README.md"]
    {
        if fs::metadata(folder.join(path)).with_context(|| path.to_owned())?.len() == 0 {
            bail!("{path} is empty");
        }
    }
    let program: PathBuf = folder.join("kubeferry");
    let own = arch == Arch::own()?;
    if !own {
        packages::ensure(&[packages::EMULATE_AARCH64])
            .with_context(|| format!("running a binary for {}", arch.name()))?;
    }
    let kubeferry = || {
        if own {
            return Command::new(&program);
        }
        let mut command = Command::new(format!("qemu-{}-static", arch.name()));
        command.arg(&program);
        command
    };
    let said = step::output(kubeferry().arg("--version"))?;
    let head = step::output(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(workspace()));
    let commit = head.ok().map_or_else(|| "(".to_owned(), |head| head[..12].to_owned());
    if !said.starts_with(&format!("kubeferry {VERSION} (")) || !said.contains(&commit) {
        bail!("--version says {said:?}, and the commit is {commit}");
    }
    step::note(said.trim());

    let config = workspace().join("proxy/tests-data/config/good/kubeadm.yaml");
    let said = step::output(kubeferry().args(["config", "check", "--node-name", "worker-1"]).arg(config))?;
    if !said.contains("clusterCIDR: 10.244.0.0/16") {
        bail!("config check says {said:?}");
    }
    let manifests = place.path().join("manifests");
    fs::create_dir(&manifests)?;
    fs::write(manifests.join("cluster.yaml"), MANIFESTS)?;
    let mut plan = kubeferry();
    plan.args(["plan", "--node-name", "worker-1", "--cluster-cidr", "10.244.0.0/16", "--manifests"]).arg(&manifests);
    let said = step::output(&mut plan)?;
    if !said.contains("10.96.0.10 . tcp . 80 . 0 : 10.244.1.1 . 8080") {
        bail!("the plan has no row of the Service:\n{said}");
    }
    Ok(())
}
