//! What a server shows of itself, and the files it comes from, which may be replaced while it serves.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::validity::Validity;
use crate::{TlsError, certificates, provider, read};

/// Time between two looks at whether the files were replaced.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Two PEM files. They may be systemd credentials or links that a renewal turns elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, then those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// A certificate with its key. A connection that begins gets the newest.
#[derive(Debug)]
pub struct Identity {
    files: CertificateFiles,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    validity: Option<Validity>,
    /// Of both files, to see whether they changed.
    hash: u64,
}

impl Identity {
    /// Reads both files.
    ///
    /// # Errors
    /// A file cannot be read, does not hold what it should, or the two do not belong together.
    pub fn read(files: CertificateFiles) -> Result<Self, TlsError> {
        Ok(Self { current: ArcSwap::from_pointee(Current::read(&files)?), files })
    }

    /// Reads the files again; true when they hold something new. After an error the old certificate stays.
    ///
    /// # Errors
    /// As [`Identity::read`].
    pub fn reread(&self) -> Result<bool, TlsError> {
        let newer = Current::read(&self.files)?;
        let changed = newer.hash != self.current.load().hash;
        if changed {
            self.current.store(Arc::new(newer));
        }
        Ok(changed)
    }

    /// From when to when the certificate counts, where that can be read.
    pub fn validity(&self) -> Option<Validity> {
        self.current.load().validity
    }

    /// Looks at the files for ever, and takes what is new.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut last_error = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            // Small files, but on a disk that may be slow.
            let identity = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || identity.reread()).await;
            let error = match looked {
                Ok(Ok(true)) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "the certificate was replaced");
                    None
                }
                Ok(Ok(false)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(error) => Some(error.to_string()),
            };
            // A renewal may be caught between its two files: that is told once, and looked at again.
            if let Some(error) = error.as_ref().filter(|_| error != last_error) {
                tracing::warn!(%error, "the certificate in use stays, for the files cannot be used");
            }
            last_error = error;
        }
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.current.load().config).into()
    }
}

impl Current {
    fn read(files: &CertificateFiles) -> Result<Self, TlsError> {
        let CertificateFiles { certificate, key } = files;
        let (certificate_text, key_text) = (read(certificate)?, read(key)?);
        let mut hasher = DefaultHasher::new();
        (&certificate_text, &key_text).hash(&mut hasher);
        let chain = certificates(certificate, &certificate_text)?;
        let validity = chain.first().and_then(|first| Validity::of(first));
        let secret = PrivateKeyDer::from_pem_slice(&key_text).map_err(|_| TlsError::Content {
            file: key.clone(),
            what: "holds no private key: it should have a `-----BEGIN PRIVATE KEY-----`, without a passphrase".into(),
        })?;
        let pair =
            |error: &dyn std::fmt::Display| TlsError::Pair { certificate: certificate.clone(), key: key.clone(), why: error.to_string() };
        let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let versions = versions.map_err(|error| pair(&error))?;
        let mut config = versions.with_no_client_auth().with_single_cert(chain, secret).map_err(|error| pair(&error))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), validity, hash: hasher.finish() })
    }
}
