//! Verifies the server's certificate by the rules of libpq (PostgreSQL manual, "SSL Support").

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// Object identifiers of RFC 5280: the attribute commonName, the extension subjectAltName.
const COMMON_NAME: &str = "2.5.4.3";
const SUBJECT_ALT_NAME: &str = "2.5.29.17";

/// The requirements on a server. rustls by itself differs from libpq in two ways: it refuses a certificate of
/// an authority (`CA:TRUE`, which `openssl req -x509` makes) as a server's, even if that very certificate is
/// trusted, and ignores the common name.
#[derive(Debug)]
pub(super) struct Verifier {
    pub roots: RootCertStore,
    /// Certificates that are trusted as a server's own.
    pub exact: Vec<CertificateDer<'static>>,
    /// `verify-full`, not `verify-ca`.
    pub check_name: bool,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        if self.exact.contains(end_entity) {
            check_time(&decode(end_entity)?, now)?;
        } else {
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &self.roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        if self.check_name {
            verify_server_name(&parsed, server_name)
                .or_else(|error| check_common_name(&decode(end_entity)?, server_name, error))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn decode(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding.into())
}

fn check_time(certificate: &Certificate, now: UnixTime) -> Result<(), Error> {
    let validity = &certificate.tbs_certificate.validity;
    let not_before = UnixTime::since_unix_epoch(validity.not_before.to_unix_duration());
    let not_after = UnixTime::since_unix_epoch(validity.not_after.to_unix_duration());
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    Ok(())
}

/// Whether the certificate names the host by its common name. As in libpq, that counts only without a
/// subjectAltName, and `*` stands for the first label.
fn check_common_name(
    certificate: &Certificate,
    host: &ServerName<'_>,
    error: Error,
) -> Result<(), Error> {
    let certificate = &certificate.tbs_certificate;
    let mut extensions = certificate.extensions.iter().flatten();
    if extensions.any(|extension| extension.extn_id.to_string() == SUBJECT_ALT_NAME) {
        return Err(error);
    }
    let attributes = certificate.subject.0.iter().flat_map(|name| name.0.iter());
    let names = attributes
        .filter(|attribute| attribute.oid.to_string() == COMMON_NAME)
        .filter_map(|attribute| std::str::from_utf8(attribute.value.value()).ok());
    let presented: Vec<String> = names.map(str::to_owned).collect();
    if presented.iter().any(|name| matches(name, &host.to_str())) {
        return Ok(());
    }
    let expected = host.to_owned();
    Err(CertificateError::NotValidForNameContext { expected, presented }.into())
}

fn matches(name: &str, host: &str) -> bool {
    match (name.strip_prefix("*."), host.split_once('.')) {
        (Some(parent), Some((label, rest))) => {
            !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
        }
        _ => name.eq_ignore_ascii_case(host),
    }
}
