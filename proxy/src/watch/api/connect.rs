//! Which API server, and with which credentials.

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::settings::{Settings, Source};

/// A client for the server that the settings name: the kubeconfig's, `--server`, or the one of the cluster we run in.
/// Nothing is sent yet.
///
/// # Errors
/// A kubeconfig that cannot be read or used, a server that is no URL, or no configuration at all.
pub(super) async fn client(settings: &Settings) -> anyhow::Result<Client> {
    let Source::Api { kubeconfig, server } = &settings.source else {
        anyhow::bail!("the source is a folder of manifests, not an API server");
    };
    let mut config = match (kubeconfig, server) {
        (Some(path), _) => {
            let usable = || format!("--kubeconfig {}: cannot be used", path.display());
            let file = Kubeconfig::read_from(path).with_context(usable)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.with_context(usable)?
        }
        (None, Some(server)) => Config::new(uri(server)?),
        (None, None) => Config::incluster().context(
            "no source of objects: this is no pod with a service account; give --kubeconfig FILE, --server URL or --manifests DIR",
        )?,
    };
    if let Some(server) = server {
        config.cluster_url = uri(server)?;
    }
    Client::try_from(config).context("the credentials for the API server cannot be used")
}

fn uri(server: &str) -> anyhow::Result<http::Uri> {
    let with_scheme = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    with_scheme.parse().with_context(|| format!("--server {server:?} is no URL: write https://HOST:PORT"))
}
