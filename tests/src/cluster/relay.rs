//! The way from a node's namespace, which has no route outside, to the API server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use http::Uri;
use http::uri::Scheme;
use kube::config::Kubeconfig;
use tempfile::TempDir;

use crate::netns::Netns;

/// A port of a namespace's loopback whose connections are carried to an API server from where the test process is; ends when
/// the value is dropped.
#[derive(Debug)]
pub struct Relay {
    listener: Arc<TcpListener>,
    acceptor: Option<JoinHandle<()>>,
    kubeconfig: PathBuf,
    _folder: TempDir,
}

impl Relay {
    /// Listens in `node`, and writes the kubeconfig that leads there: the server's certificate is still checked for the name
    /// in `server`, by `tls-server-name`.
    ///
    /// # Errors
    /// The kubeconfig has no current cluster; no port can be bound, or no file written.
    pub fn start(node: &Netns, kubeconfig: &Kubeconfig, server: &Uri) -> Result<Self> {
        let listener = Arc::new(node.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??);
        let folder = tempfile::Builder::new().prefix("kubeferry-test-relay-").tempdir()?;
        let path = folder.path().join("kubeconfig");
        let rewritten = rewritten(kubeconfig.clone(), server, &listener.local_addr()?.to_string())?;
        std::fs::write(&path, serde_yaml_ng::to_string(&rewritten)?)?;
        let (for_acceptor, target) = (listener.clone(), target(server)?);
        let acceptor = Some(thread::spawn(move || accept(&for_acceptor, &target)));
        Ok(Self { listener, acceptor, kubeconfig: path, _folder: folder })
    }

    /// The kubeconfig for use in the namespace. It holds the credentials of the one that it was made from.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Linux wakes the thread in accept(2). Connections end with their clients.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            // A panic of the acceptor has been printed.
            drop(acceptor.join());
        }
    }
}

/// Host, without an IPv6 address' brackets, and port.
fn target(server: &Uri) -> Result<(String, u16)> {
    let host = server.host().with_context(|| format!("{server} has no host"))?.trim_matches(['[', ']']);
    let default = if server.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
    Ok((host.to_owned(), server.port_u16().unwrap_or(default)))
}

fn rewritten(mut kubeconfig: Kubeconfig, server: &Uri, relay: &str) -> Result<Kubeconfig> {
    let current = kubeconfig.current_context.as_deref();
    let context = kubeconfig.contexts.iter().find(|context| Some(context.name.as_str()) == current);
    let name = context.and_then(|context| Some(context.context.as_ref()?.cluster.clone()));
    let clusters = &mut kubeconfig.clusters;
    let cluster = clusters.iter_mut().find(|cluster| Some(&cluster.name) == name.as_ref());
    let cluster = cluster.and_then(|named| named.cluster.as_mut()).context("the kubeconfig has no current cluster")?;
    let scheme = server.scheme_str().unwrap_or("https");
    cluster.server = Some(format!("{scheme}://{relay}{}", server.path().trim_end_matches('/')));
    if cluster.tls_server_name.is_none() {
        cluster.tls_server_name = Some(target(server)?.0);
    }
    Ok(kubeconfig)
}

fn accept(listener: &TcpListener, server: &(String, u16)) {
    for stream in listener.incoming().map_while(Result::ok) {
        let server = server.clone();
        thread::spawn(move || match TcpStream::connect((server.0.as_str(), server.1)) {
            Ok(far) => carry(&stream, &far),
            // The client sees its connection end, and says so itself.
            Err(error) => eprintln!("cannot reach the API server at {server:?}: {error}"),
        });
    }
}

/// Carries both ways until both have ended.
fn carry(near: &TcpStream, far: &TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| copy(near, far));
        copy(far, near);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // One that is closed already is as good.
    drop(to.shutdown(Shutdown::Write));
    drop(from.shutdown(Shutdown::Read));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_keeps_all_but_the_address() {
        let text = "
            apiVersion: v1
            kind: Config
            current-context: b
            contexts: [{name: a, context: {cluster: x}}, {name: b, context: {cluster: y, user: z}}]
            users: [{name: z, user: {token: secret}}]
            clusters: [{name: x, cluster: {server: 'https://x:1'}}, {name: y, cluster: {server: 'https://[2001:db8::1]/k8s/'}}]";
        let kubeconfig = Kubeconfig::from_yaml(text).unwrap();
        let server = "https://[2001:db8::1]/k8s/".parse().unwrap();
        let rewritten = rewritten(kubeconfig, &server, "127.0.0.1:9").unwrap();
        let written = serde_yaml_ng::to_string(&rewritten).unwrap();
        let read = Kubeconfig::from_yaml(&written).unwrap();
        let [other, ours] = [0, 1].map(|number| read.clusters[number].cluster.clone().unwrap());
        assert_eq!((other.server.as_deref(), other.tls_server_name), (Some("https://x:1"), None));
        assert_eq!(ours.server.as_deref(), Some("https://127.0.0.1:9/k8s"));
        assert_eq!(ours.tls_server_name.as_deref(), Some("2001:db8::1"));
        assert!(written.contains("token: secret"), "{written}");
        assert_eq!(target(&server).unwrap(), ("2001:db8::1".to_owned(), 443));
    }
}
