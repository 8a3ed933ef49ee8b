//! Connections: [`Dialer`] opens them, in the clear, under TLS or in memory; [`Pool`] asks over them and keeps them for the next request; [`Serving`]
//! accepts them, within a limit, until told to stop.
//!
//! Whom the one side believes is [`Trust`]; what the other side shows is [`Identity`]. Where names lead, [`Names`] knows.

mod dial;
mod http1;
mod identity;
mod names;
mod pool;
mod serve;
mod trust;
mod validity;
mod wire;

pub use dial::{DialWaits, Dialer, Line};
pub use http1::AnswerError;
pub use identity::{CertificateFiles, Identity};
pub use names::{Answer, Names, Resolve, SystemResolver};
pub use pool::{Pool, PooledBody, SendError};
pub use serve::Serving;
pub use trust::Trust;
pub use validity::Validity;
pub use wire::Wire;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};

/// Why certificates cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No such file, or no permission.
    #[error("cannot read {}: {why}; whoever runs this must be able to read it", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The file does not hold what it should.
    #[error("{} {what}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What is missing, and how it should be.
        what: String,
    },
    /// Certificate and key are of different pairs, or of a kind that is not supported.
    #[error("the certificate {} and the key {} cannot be used together: {why}", certificate.display(), key.display())]
    Pair {
        /// The file with the certificate.
        certificate: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// What the library says.
        why: String,
    },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read(file: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(file).map_err(|error| TlsError::Unreadable { file: file.to_owned(), why: error.to_string() })
}

/// All certificates of a PEM file; at least one.
fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |what: String| TlsError::Content { file: file.to_owned(), what };
    let all: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    let all = all.map_err(|error| wrong(format!("is not PEM: {error}")))?;
    match all.is_empty() {
        true => Err(wrong("holds no certificate: it should have a `-----BEGIN CERTIFICATE-----`".into())),
        false => Ok(all),
    }
}
