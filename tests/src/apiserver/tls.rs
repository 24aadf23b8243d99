//! Certificates of our own making, and the kubeconfig that trusts them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;

/// A server's side of TLS, and the authority that clients are to trust.
pub(super) struct Certificates {
    pub server: Arc<ServerConfig>,
    pub authority_pem: String,
}

impl Certificates {
    /// Makes an authority and a certificate of it for these names and addresses.
    pub fn new(names: &[&str]) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "kubeferry test authority");
        let key = KeyPair::generate()?;
        let authority = params.self_signed(&key)?;
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        Ok(Self { server: Arc::new(server), authority_pem: authority.pem() })
    }
}

/// Writes a kubeconfig and the authority's certificate into a folder; returns the kubeconfig's path.
pub(super) fn write_kubeconfig(
    folder: &Path,
    url: &str,
    authority: Option<&str>,
    token: Option<&str>,
) -> Result<PathBuf> {
    let mut cluster = format!("server: {url}");
    if let Some(authority) = authority {
        let path = folder.join("authority.crt");
        std::fs::write(&path, authority)?;
        cluster += &format!("\n    certificate-authority: {}", path.display());
    }
    let user = token.map_or("{}".into(), |token| format!("{{token: {token}}}"));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters:\n- name: test\n  cluster:\n    {cluster}\n\
         users:\n- name: test\n  user: {user}\n\
         contexts:\n- name: test\n  context: {{cluster: test, user: test}}\n"
    );
    let path = folder.join("kubeconfig");
    std::fs::write(&path, text)?;
    Ok(path)
}
