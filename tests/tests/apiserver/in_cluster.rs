//! The API server as a pod is told of it: two variables, and the service account's token and authority in a volume; and one without TLS.

use std::process::{Command, Stdio};

use kubeferry_tests::apiserver::TOKEN;
use kubeferry_tests::binary;
use kubeferry_tests::client::{Running, until};

use super::node::{Node, service};

/// Where the kubelet mounts a service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[test]
fn a_pods_service_account_is_used() {
    let node = Node::with_tls();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let authority = node.server.kubeconfig().with_file_name("authority.crt");
    std::fs::copy(authority, folder.path().join("ca.crt")).unwrap();
    std::fs::write(folder.path().join("token"), TOKEN).unwrap();
    std::fs::write(folder.path().join("namespace"), "kube-system").unwrap();
    // The folder is everybody's: only what runs here is to see ours, in a /run of its own.
    let script =
        format!("mount -t tmpfs none /var/run/ && mkdir -p {ACCOUNT} && mount --bind \"$0\" {ACCOUNT} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).arg(folder.path()).arg(binary::path().unwrap());
    let address = node.server.address();
    command.args(["run", "--node-name", "n1"]).stdin(Stdio::null());
    command.env("KUBERNETES_SERVICE_HOST", address.ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", address.port().to_string());
    let log = folder.path().join("log");
    command.stderr(std::fs::File::create(&log).unwrap());
    let _running = Running::start_command(&mut command, &node.namespace).unwrap();
    let served = || (node.frontends().iter().map(ToString::to_string).eq(["10.96.0.1:80"])).then_some(());
    until("the Service that the server has", served)
        .unwrap_or_else(|error| panic!("{error:#}; the log:\n{}", std::fs::read_to_string(&log).unwrap()));
}

/// As in an image that has nothing but the binary.
#[test]
fn without_tls_it_needs_no_certificates_of_the_systems() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let url = node.server.url();
    assert!(url.starts_with("http://"), "{url}");
    node.start_with(|command| {
        command.args(["--server", &url]).env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", "/dev/null");
    });
    node.expect("a sync", &["10.96.0.1:80"]);
}
