//! Tries an image as a node does: unpacked, read-only, with the right that the nftables datapath needs, in a network of its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{BILL, KUBEFERRY, NFT, layout};
use crate::release::VERSION;
use crate::step;

const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1]}]
";

/// What happens in namespaces that go with it. Mounts are not seen outside.
const SCRIPT: &str = r#"
set -eu
root=$1 shared=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --bind "$shared" "$root/tmp"
mount -o remount,ro,bind "$root"
exec setpriv --bounding-set -all,+net_admin,+sys_chroot --inh-caps -all chroot "$root" "$@"
"#;

/// Unpacks a layout and runs its programs.
pub fn run(folder: &Path) -> anyhow::Result<()> {
    step::start("trying the image");
    let place = tempfile::tempdir()?;
    let (root, shared) = (place.path().join("root"), place.path().join("shared"));
    layout::unpack(folder, &root)?;
    let bill = fs::read_to_string(root.join(BILL)).context(BILL)?;
    for part in ["pkg:cargo/kubeferry@", "pkg:deb/debian/nftables@", "pkg:deb/debian/libc6@"] {
        anyhow::ensure!(bill.contains(part), "{BILL} has no {part}");
    }
    fs::create_dir(&shared)?;
    fs::write(shared.join("web.yaml"), MANIFESTS)?;
    let inside = |command: &[&str]| {
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "sh"]);
        unshare.arg(&root).arg(&shared).args(command).env_clear();
        unshare.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        step::output(&mut unshare)
    };
    for (program, says) in [(NFT, "nftables v"), (KUBEFERRY, VERSION)] {
        let said = inside(&[&format!("/{program}"), "--version"]).with_context(|| program.to_owned())?;
        if !said.contains(says) {
            bail!("{program} --version says {said:?}");
        }
        step::note(format!("/{program}: {}", said.trim()));
    }
    // A client of the API server can be made, with what the image has for it. There is nobody to answer.
    let kubeferry = format!("/{KUBEFERRY}");
    let asked = inside(&[&kubeferry, "plan", "--node-name", "n1", "--server", "http://127.0.0.1:1"]);
    match asked {
        Err(error) if format!("{error:#}").contains("cannot reach the API server") => {}
        other => bail!("it should not have reached an API server: {other:?}"),
    }
    let sync = ["run", "--once", "--node-name", "n1", "--node-addresses", "192.0.2.1", "--manifests", "/tmp"];
    inside(&[&[kubeferry.as_str()][..], &sync].concat()).context("a sync with few rights, on read-only files")?;
    step::note("it syncs a Service into the kernel, with NET_ADMIN (and SYS_CHROOT, to get there), on read-only files");
    Ok(())
}
