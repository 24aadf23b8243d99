//! Which API server, and with which credentials.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::bounded::Bounded;
use super::measured::Measured;
use crate::metrics::RestClient;
use crate::settings::{Settings, Source};

/// How long a resolver may take.
const NAME_PATIENCE: Duration = Duration::from_secs(5);
/// Addresses of one name that are taken.
const MOST_ADDRESSES: usize = 100;

/// Where an API server is: a host and a port.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) host: String,
    port: u16,
}

impl Place {
    fn of(url: &http::Uri) -> Option<Self> {
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        url.host().map(|host| Self { host: host.trim_matches(['[', ']']).to_owned(), port })
    }

    /// Its addresses: none, where its name has none now.
    pub(super) async fn addresses(&self) -> BTreeSet<SocketAddr> {
        let host = &self.host;
        let found = tokio::time::timeout(NAME_PATIENCE, tokio::net::lookup_host((host.as_str(), self.port))).await;
        let mut addresses = BTreeSet::new();
        match found {
            Ok(Ok(found)) => addresses.extend(found.take(MOST_ADDRESSES)),
            Ok(Err(error)) => tracing::debug!(%error, host, "the API server's name has no address"),
            Err(_) => tracing::debug!(host, "nobody says which addresses the API server's name has"),
        }
        addresses
    }
}

/// A client for the server that the settings name: the kubeconfig's, `--server`, or the one of the cluster we run in.
/// Nothing is sent yet; what is sent later is counted in `requests`.
///
/// # Errors
/// A kubeconfig that cannot be read or used, a server that is no URL, or no configuration at all.
pub(in crate::watch) async fn client(settings: &Settings, requests: &RestClient) -> anyhow::Result<Client> {
    Ok(client_and_place(settings, requests).await?.0)
}

/// As [`client`], and where the same reading of the configuration says the server is.
///
/// # Errors
/// As [`client`].
pub(super) async fn client_and_place(
    settings: &Settings,
    requests: &RestClient,
) -> anyhow::Result<(Client, Option<Place>)> {
    let mut config = config(settings).await?;
    // It would try for minutes without a word; those who ask try again, say so, and have pauses of their own.
    config.default_retry = false;
    let place = Place::of(&config.cluster_url);
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    if config.cluster_url.scheme_str() == Some("http") {
        // Nobody's certificate is looked at; the system's authorities, which are an error where there are none, are not needed.
        config.root_cert.get_or_insert_default();
    }
    let builder = ClientBuilder::try_from(config).context("the credentials for the API server cannot be used")?;
    Ok((builder.with_layer(&Bounded).with_layer(&Measured::new(host, requests.clone())).build(), place))
}

async fn config(settings: &Settings) -> anyhow::Result<Config> {
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
    Ok(config)
}

fn uri(server: &str) -> anyhow::Result<http::Uri> {
    let with_scheme = if server.contains("://") { server.to_owned() } else { format!("https://{server}") };
    with_scheme.parse().with_context(|| format!("--server {server:?} is no URL: write https://HOST:PORT"))
}
