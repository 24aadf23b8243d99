//! A cluster behind an API server that the tests know only as any client does: by a kubeconfig, over HTTP. The scripted one is
//! always among them, and the one that `KUBEFERRY_TEST_KUBECONFIG` names.
//!
//! A test's objects lie in a namespace of its own, with a Node of its own, and are deleted when the [`Cluster`] is dropped.

mod relay;

use std::collections::BTreeSet;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::apiserver::{ApiServer, Resource};
use crate::client::DEADLINE;
use crate::netns::Netns;

pub use relay::Relay;

/// Names the kubeconfig of a cluster to play with.
pub const VARIABLE: &str = "KUBEFERRY_TEST_KUBECONFIG";
/// What the scripted server allots ClusterIPs from.
const SERVICE_CIDRS: &str = "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, \
                             spec: {cidrs: [10.96.0.0/16, 'fd00:10:96::/112']}}";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A place for the objects of one test in a cluster.
#[derive(Debug)]
pub struct Cluster {
    /// What its server is, for people.
    pub server: String,
    /// The name of the test's namespace and of its Node.
    pub name: String,
    salt: u32,
    kubeconfig: Kubeconfig,
    config: Config,
    client: ClientOf,
    made: Mutex<Made>,
    /// Ends after what is in it has been deleted.
    scripted: Option<ApiServer>,
}

/// What has been made, to be deleted at the end, and the ClusterIPs among it.
#[derive(Default, Debug)]
struct Made {
    objects: Vec<(Resource, String)>,
    cluster_ips: BTreeSet<IpAddr>,
}

struct ClientOf {
    runtime: Runtime,
    client: Client,
}

impl std::fmt::Debug for ClientOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a client")
    }
}

impl Cluster {
    /// A new place in every cluster there is: the scripted one, and the one that [`VARIABLE`] names.
    ///
    /// # Errors
    /// As [`Cluster::scripted`] and [`Cluster::open`].
    pub fn all() -> Result<Vec<Self>> {
        let mut all = vec![Self::scripted()?];
        if let Some(path) = std::env::var_os(VARIABLE) {
            let path = Path::new(&path);
            all.push(Self::open(path).with_context(|| format!("{VARIABLE} names {}", path.display()))?);
        }
        Ok(all)
    }

    /// A new place in a cluster of its own: the scripted server, with TLS, on this machine's loopback.
    ///
    /// # Errors
    /// The server cannot be started; as [`Cluster::open`].
    pub fn scripted() -> Result<Self> {
        let server = ApiServer::start_tls_by_name()?;
        server.apply(SERVICE_CIDRS)?;
        let mut cluster = Self::open(&server.kubeconfig())?;
        cluster.server = format!("the scripted one at {}", cluster.config.cluster_url);
        cluster.scripted = Some(server);
        Ok(cluster)
    }

    /// A new place in the cluster of a kubeconfig's current context: the namespace is made.
    ///
    /// # Errors
    /// The kubeconfig cannot be used, or needs what is out of reach for a node in a network namespace (a credential
    /// plugin, a proxy); the server does not answer or refuses.
    pub fn open(path: &Path) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(path)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let options = KubeConfigOptions::default();
        let config = runtime.block_on(Config::from_custom_kubeconfig(kubeconfig.clone(), &options))?;
        ensure!(
            config.auth_info.exec.is_none() && config.auth_info.auth_provider.is_none(),
            "the kubeconfig's user asks a plugin, which has no network where the tests run: use a token or a certificate"
        );
        ensure!(
            config.proxy_url.is_none(),
            "the API server is behind a proxy, which is not reached from where the tests run"
        );
        let client = runtime.block_on(async { Client::try_from(config.clone()) })?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
        // Addresses have to do with few bits: of two runs, of two tests of one run.
        let salt = (time.subsec_micros() ^ std::process::id() << 4).wrapping_add(number) & 0x1fff;
        let cluster = Self {
            server: format!("the real one at {}, of {}", config.cluster_url, path.display()),
            name: format!("kubeferry-test-{}-{}-{number}", time.as_millis(), std::process::id()),
            salt,
            kubeconfig,
            config,
            client: ClientOf { runtime, client },
            made: Mutex::default(),
            scripted: None,
        };
        cluster.create(&format!("{{kind: Namespace, metadata: {{name: {}}}}}", cluster.name))?;
        Ok(cluster)
    }

    /// Whether it is the scripted one of this very process, of which all is known.
    pub fn is_scripted(&self) -> bool {
        self.scripted.is_some()
    }

    /// Gives a node's namespace a way to this server, and to nothing else.
    ///
    /// # Errors
    /// As [`Relay::start`].
    pub fn relay(&self, node: &Netns) -> Result<Relay> {
        Relay::start(node, &self.kubeconfig, &self.config.cluster_url)
    }

    /// An address, the same for each of the numbers 0 to 15, that hardly another test uses: of 198.18.0.0/15 (RFC 2544) or
    /// 2001:db8::/32 (RFC 3849).
    pub fn address(&self, is_ipv6: bool, number: u8) -> IpAddr {
        let (salt, number) = (self.salt, u32::from(number & 15));
        match is_ipv6 {
            true => Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(salt) << 64 | u128::from(number)).into(),
            false => Ipv4Addr::from_bits(0xc612_0000 | salt << 4 | number).into(),
        }
    }

    /// The ClusterIPs that its Services have been given.
    pub fn cluster_ips(&self) -> BTreeSet<IpAddr> {
        self.made.lock().map(|made| made.cluster_ips.clone()).unwrap_or_default()
    }

    /// Creates an object of the test's namespace, or of none, from YAML (the `apiVersion` is known); returns it as the server
    /// holds it.
    ///
    /// # Errors
    /// No YAML, a kind that is not known, or the server refuses.
    pub fn create(&self, manifest: &str) -> Result<Value> {
        let mut object: Value = serde_yaml_ng::from_str(manifest).with_context(|| manifest.to_owned())?;
        let kind = object["kind"].as_str().and_then(Resource::of_kind).context("no kind that is known here")?;
        object["apiVersion"] = kind.api_version().into();
        let object: DynamicObject = serde_json::from_value(object)?;
        let name = object.metadata.name.clone().context("no name")?;
        // Noted first: it may have been made although the answer was lost.
        self.note(|made| made.objects.push((kind, name)));
        let held = self.ask(manifest, self.api(kind).create(&PostParams::default(), &object))?;
        let ips = held["spec"]["clusterIPs"].as_array().into_iter().flatten();
        let ips: Vec<IpAddr> = ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect();
        self.note(|made| made.cluster_ips.extend(ips));
        Ok(held)
    }

    /// Changes an object by a JSON merge patch written as YAML; returns it as the server holds it.
    ///
    /// # Errors
    /// There is no such object, or the server refuses.
    pub fn change(&self, kind: Resource, name: &str, patch: &str) -> Result<Value> {
        let body: Value = serde_yaml_ng::from_str(patch).with_context(|| patch.to_owned())?;
        self.ask(patch, self.api(kind).patch(name, &PatchParams::default(), &Patch::Merge(body)))
    }

    /// Changes an object's status, by a merge patch of its status subresource.
    ///
    /// # Errors
    /// As [`Cluster::change`].
    pub fn change_status(&self, kind: Resource, name: &str, status: &str) -> Result<Value> {
        let body: Value = serde_yaml_ng::from_str(status).with_context(|| status.to_owned())?;
        let body = json!({"status": body});
        self.ask(status, self.api(kind).patch_status(name, &PatchParams::default(), &Patch::Merge(body)))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// There is no such object, or the server refuses.
    pub fn delete(&self, kind: Resource, name: &str) -> Result<()> {
        let api = self.api(kind);
        let deletion = async { api.delete(name, &kube::api::DeleteParams::default()).await.map(drop) };
        self.wait(deletion).with_context(|| format!("deleting the {} {name}", kind.kind()))?;
        self.note(|made| made.objects.retain(|(made, called)| (*made, called.as_str()) != (kind, name)));
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Made)) {
        change(&mut self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn api(&self, kind: Resource) -> Api<DynamicObject> {
        let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind.kind()), kind.plural());
        let client = self.client.client.clone();
        match kind.is_namespaced() {
            true => Api::namespaced_with(client, &self.name, &resource),
            false => Api::all_with(client, &resource),
        }
    }

    fn ask(&self, what: &str, request: impl Future<Output = kube::Result<DynamicObject>>) -> Result<Value> {
        let held =
            self.wait(request).with_context(|| format!("the API server, {}, was asked for\n{what}", self.server))?;
        Ok(serde_json::to_value(held)?)
    }

    fn wait<T>(&self, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
        let answer = self.client.runtime.block_on(async { tokio::time::timeout(DEADLINE, request).await });
        Ok(answer.with_context(|| format!("no answer within {DEADLINE:?}"))??)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        // The namespace, the first, goes last.
        for (kind, name) in made.objects.into_iter().rev() {
            let is_gone = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code == 404);
            if let Err(error) = self.delete(kind, &name)
                && !is_gone(&error)
            {
                eprintln!("in the API server, {}, something may be left: {error:#}", self.server);
            }
        }
    }
}
