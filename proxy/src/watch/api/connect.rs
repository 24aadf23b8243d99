//! Which API server, and with which credentials.

use anyhow::Context;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::bounded::Bounded;
use super::measured::Measured;
use crate::metrics::RestClient;
use crate::settings::{Settings, Source};

/// A client for the server that the settings name: the kubeconfig's, `--server`, or the one of the cluster we run in.
/// Nothing is sent yet; what is sent later is counted in `requests`.
///
/// # Errors
/// A kubeconfig that cannot be read or used, a server that is no URL, or no configuration at all.
pub(in crate::watch) async fn client(settings: &Settings, requests: &RestClient) -> anyhow::Result<Client> {
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
    // It would try for minutes without a word; those who ask try again, say so, and have pauses of their own.
    config.default_retry = false;
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let builder = ClientBuilder::try_from(config).context("the credentials for the API server cannot be used")?;
    Ok(builder.with_layer(&Bounded).with_layer(&Measured::new(host, requests.clone())).build())
}

fn uri(server: &str) -> anyhow::Result<http::Uri> {
    let with_scheme = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    with_scheme.parse().with_context(|| format!("--server {server:?} is no URL: write https://HOST:PORT"))
}
