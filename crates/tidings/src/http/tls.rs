//! TLS: certificates from files, read anew when they change.
//!
//! The rule: a new file that cannot be used keeps the old certificate in use, and says so.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        version::{TLS12, TLS13},
    },
};

/// How often the files are looked at: renewals are weeks apart, and a minute late is early.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// A certificate that cannot be used, and what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct TlsError {
    /// Which file.
    pub file: String,
    /// Why not.
    pub reason: String,
}

/// A server's certificate and key.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    acceptor: RwLock<TlsAcceptor>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads a PEM chain and its PEM key.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let acceptor = RwLock::new(read(certificate, key)?);
        Ok(Self { certificate: certificate.into(), key: key.into(), acceptor })
    }

    /// Reads the files anew. Connections that are open keep their certificate.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificate stays in use.
    pub fn reload(&self) -> Result<(), TlsError> {
        let acceptor = read(&self.certificate, &self.key)?;
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
        Ok(())
    }

    /// Reloads whenever a file changes, for ever.
    pub async fn watch(self: Arc<Self>) {
        let stamp = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        let stamps = || (stamp(&self.certificate), stamp(&self.key));
        let mut last = stamps();
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        loop {
            look.tick().await;
            let now = stamps();
            if now == last {
                continue;
            }
            match self.reload() {
                Ok(()) => {
                    tracing::info!(certificate = %self.certificate.display(), "certificate reloaded");
                }
                // Said once: files are replaced one after the other, and the second one changes
                // the stamps again.
                Err(error) => tracing::error!(%error, "the old certificate stays in use"),
            }
            last = now;
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let wrong = |file: &Path, reason: String| TlsError { file: file.display().to_string(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(certificate, format!("no PEM certificate chain: {error}")))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "has no certificate".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| wrong(key, format!("no PEM private key: {error}")))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|error| wrong(certificate, error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| wrong(certificate, format!("does not fit its key: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
