//! Whose certificates are believed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::{TlsError, certificates, provider, read};

/// The authorities that vouch for the servers that are dialled: public ones, or others, for all servers or for one.
#[derive(Clone, Debug)]
pub struct Trust {
    usual: Arc<ClientConfig>,
    special: HashMap<String, Arc<ClientConfig>>,
}

impl Trust {
    /// The authorities that browsers trust.
    pub fn public() -> Self {
        static PUBLIC: OnceLock<Arc<ClientConfig>> = OnceLock::new();
        let roots = || RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Self { usual: Arc::clone(PUBLIC.get_or_init(|| client(roots()))), special: HashMap::new() }
    }

    /// Only the authorities of a PEM file.
    ///
    /// # Errors
    /// The file cannot be read, or holds no certificate of an authority.
    pub fn of_file(file: &Path) -> Result<Self, TlsError> {
        Ok(Self { usual: client(roots(file)?), special: HashMap::new() })
    }

    /// Whoever answers: for a process that asks itself whether it lives, on an address that its certificate need not name.
    pub fn blind() -> Self {
        let mut config = ClientConfig::clone(&client(RootCertStore::empty()));
        config.dangerous().set_certificate_verifier(Arc::new(Blind(provider())));
        Self { usual: Arc::new(config), special: HashMap::new() }
    }

    /// For the server at `authority` (`host:port`), only the authorities of another file.
    ///
    /// # Errors
    /// As [`Trust::of_file`].
    pub fn with(mut self, authority: &str, file: &Path) -> Result<Self, TlsError> {
        self.special.insert(authority.to_owned(), client(roots(file)?));
        Ok(self)
    }

    pub(crate) fn for_authority(&self, authority: &str) -> Arc<ClientConfig> {
        Arc::clone(self.special.get(authority).unwrap_or(&self.usual))
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self::public()
    }
}

fn roots(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, &read(file)?)? {
        let wrong = |error: &dyn std::fmt::Display| TlsError::Content {
            file: file.to_owned(),
            what: format!("holds a certificate that is no authority's: {error}"),
        };
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    Ok(roots)
}

fn client(roots: RootCertStore) -> Arc<ClientConfig> {
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let versions = versions.expect("ring speaks TLS 1.2 and 1.3");
    let mut config = versions.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Believes every certificate, but not that somebody without its key has it.
#[derive(Debug)]
struct Blind(Arc<CryptoProvider>);

impl ServerCertVerifier for Blind {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
