//! The server's certificate: read, checked against its key, and replaced while connections go on.
//!
//! **Invariant:** a certificate that cannot be used never replaces one that can; connections that are open keep what they have.

use crate::config::Tls;
use crate::follow::follow;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;
use tokio_rustls::TlsAcceptor;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file could not be read.
    #[error("cannot read {what} from {}", path.display())]
    Pem {
        /// Certificate or key.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not fit, or are of a kind that is not supported.
    #[error("certificate and private key cannot be used")]
    Config(#[from] rustls::Error),
}

/// The certificate in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    files: Tls,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl ServerCertificate {
    /// Reads certificate and key.
    pub fn load(files: &Tls) -> Result<Self, TlsError> {
        let current = Arc::new(Current(RwLock::new(Arc::new(read(files)?))));
        Ok(Self { files: files.clone(), current })
    }

    /// What connections are accepted with; it follows [`Self::reload`].
    pub fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads both files again and serves new connections with them. On an error, what there was stays.
    pub fn reload(&self) -> Result<(), TlsError> {
        let key = Arc::new(read(&self.files)?);
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    /// Reloads when a file has changed or `nudge` says so, for ever.
    pub async fn follow(self, nudge: tokio::signal::unix::Signal) {
        follow("certificate and private key", nudge, || self.changed_at(), || self.reload()).await;
    }

    fn changed_at(&self) -> [Option<SystemTime>; 2] {
        [&self.files.certificate, &self.files.private_key].map(|path| std::fs::metadata(path).and_then(|m| m.modified()).ok())
    }
}

fn read(files: &Tls) -> Result<CertifiedKey, TlsError> {
    let fail = |what, path: &PathBuf| {
        let path = path.clone();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(fail("certificates", &files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.private_key).map_err(fail("a private key", &files.private_key))?;
    if chain.is_empty() {
        return Err(rustls::Error::NoCertificatesPresented.into());
    }
    // Compares the certificate's key with the private one.
    Ok(CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())?)
}
