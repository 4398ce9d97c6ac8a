//! TLS to the database: which certificates are trusted, and the client's own.

mod verify;
pub(super) mod words;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::error::StoreError;
use verify::Verifier;

/// `database.tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// `VerifyFull`, or no TLS if every host is a unix socket.
    #[default]
    Auto,
    /// Encrypted, and the server's certificate must be valid for the host name.
    VerifyFull,
    /// Encrypted, and the server's certificate must be trusted, whatever name it has.
    VerifyCa,
    /// No TLS. The data read includes every preshared key's envelope.
    Disable,
}

/// `database.tls_ca_file`, `tls_cert_file` and `tls_key_file`, PEM.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Certificates to trust instead of the system's: authorities, or the server's own certificate.
    pub ca: Option<PathBuf>,
    /// The certificate that this client shows, and the chain to its authority.
    pub certificate: Option<PathBuf>,
    /// The private key of `certificate`, not encrypted.
    pub key: Option<PathBuf>,
}

/// The contents of [`TlsFiles`] at one time.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Material {
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl Material {
    /// Reads the files.
    ///
    /// # Errors
    /// [`StoreError::Config`]: a file cannot be read, or one of certificate and key is not named.
    pub fn read(files: &TlsFiles) -> Result<Self, StoreError> {
        let client = match (&files.certificate, &files.key) {
            (Some(certificate), Some(key)) => Some((
                read("database.tls_cert_file", certificate)?,
                Zeroizing::new(read("database.tls_key_file", key)?),
            )),
            (None, None) => None,
            (certificate, _) => {
                let (set, missing) = match certificate {
                    Some(_) => ("tls_cert_file", "tls_key_file"),
                    None => ("tls_key_file", "tls_cert_file"),
                };
                return Err(StoreError::Config {
                    what: format!("database.{set} is set and database.{missing} is not"),
                    fix: "a client certificate needs both",
                });
            }
        };
        let ca = files.ca.as_deref().map(|path| read("database.tls_ca_file", path)).transpose()?;
        Ok(Self { ca, client })
    }

    /// The configuration for rustls. `check_name`: the certificate must be valid for the host's name.
    ///
    /// # Errors
    /// [`StoreError::Config`]: a file holds no certificate or key, or they do not match.
    pub fn client_config(
        &self,
        files: &TlsFiles,
        check_name: bool,
    ) -> Result<ClientConfig, StoreError> {
        let trusted = match (&self.ca, &files.ca) {
            (Some(pem), Some(path)) => certificates("database.tls_ca_file", path, pem)?,
            _ => rustls_native_certs::load_native_certs().certs,
        };
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        if roots.is_empty() {
            return Err(StoreError::Config {
                what: "no certificate to verify the database's with".into(),
                fix: "set database.tls_ca_file, or install ca-certificates",
            });
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        // Only what an operator named is trusted as a server's own certificate.
        let exact = if files.ca.is_some() { trusted } else { Vec::new() };
        let algorithms = provider.signature_verification_algorithms;
        let verifier = Verifier { roots, exact, check_name, algorithms };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| StoreError::Config {
                what: format!("TLS cannot be set up: {error}"),
                fix: "this build of gatepost lacks TLS 1.2 and 1.3",
            })?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let (Some((chain, key)), Some(path), Some(key_path)) =
            (&self.client, &files.certificate, &files.key)
        else {
            return Ok(config.with_no_client_auth());
        };
        let chain = certificates("database.tls_cert_file", path, chain)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| StoreError::Config {
            what: format!("database.tls_key_file {} holds no private key", key_path.display()),
            fix: "name a PEM file with the key of tls_cert_file, without a passphrase",
        })?;
        config.with_client_auth_cert(chain, key).map_err(|_| StoreError::Config {
            what: format!(
                "database.tls_key_file {} is not the key of the certificate in \
                 database.tls_cert_file {}",
                key_path.display(),
                path.display()
            ),
            fix: "name the two files of one certificate",
        })
    }
}

fn read(setting: &str, path: &Path) -> Result<Vec<u8>, StoreError> {
    std::fs::read(path).map_err(|error| StoreError::Config {
        what: format!("{setting} {} cannot be read: {error}", path.display()),
        fix: "name a PEM file that the agent's user may read",
    })
}

fn certificates(
    setting: &str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| StoreError::Config {
        what: format!("{setting} {} holds no certificate", path.display()),
        fix: "name a PEM file of certificates (-----BEGIN CERTIFICATE-----)",
    })
}
