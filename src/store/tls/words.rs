//! Failures of TLS in words, each with its remedy.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use rustls::{AlertDescription, CertificateError};

use crate::causes::find;

/// The TLS flaw that the driver's error is about, if it is about one.
pub(in crate::store) fn tls_trouble(error: &tokio_postgres::Error) -> Option<String> {
    /// The driver has no type for it.
    const NO_TLS: &str = "server does not support TLS";
    let outer: &(dyn Error + 'static) = error;
    if let Some(error) = find::<rustls::Error>(outer) {
        return Some(of_rustls(error));
    }
    let text = error.source().map(ToString::to_string).unwrap_or_default();
    if text == NO_TLS {
        return Some(
            "the server offers no TLS: set ssl = on in its postgresql.conf, or, on a network that \
             you trust, database.tls = \"disable\""
                .into(),
        );
    }
    if find::<rustls::pki_types::InvalidDnsNameError>(outer).is_some() {
        return Some(
            "the host in database.url is neither a DNS name nor an address, so no certificate can \
             be valid for it: correct it"
                .into(),
        );
    }
    let ended = error.to_string().starts_with("error performing TLS handshake")
        && find::<io::Error>(outer).is_some();
    ended.then(|| {
        format!("the connection ended during the TLS handshake ({text}): see the server's log")
    })
}

fn of_rustls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => of_certificate(error),
        rustls::Error::AlertReceived(alert) => of_alert(*alert),
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            "what answers does not speak TLS: check host and port in database.url".into()
        }
        rustls::Error::PeerIncompatible(_) => {
            "the server and this agent have no version of TLS or \
             cipher in common: allow TLS 1.2 or 1.3 on the server (ssl_min_protocol_version, \
             ssl_ciphers)"
                .into()
        }
        _ => format!("TLS failed ({error}): see the server's log"),
    }
}

fn of_certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "no trusted authority signed the server's certificate: \
             name its authority's certificate, or the server's own, in database.tls_ca_file"
            .into(),
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "the server's certificate expired at {}: renew it on the server",
            time(not_after.as_secs())
        ),
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the server's certificate is valid from {} on: check the clocks of server and gateway",
            time(not_before.as_secs())
        ),
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = presented.iter().map(|name| bare(name)).collect::<Vec<_>>().join(", ");
            let names = if names.is_empty() { "other names".to_owned() } else { names };
            let host = expected.to_str();
            format!(
                "the server's certificate is for {names}, not for {host}: write a name of the \
                 certificate in database.url (and the address as ?hostaddr=...), or set \
                 database.tls = \"verify-ca\", which ignores the name"
            )
        }
        CertificateError::InvalidPurposeContext { .. } => "the server's certificate is not for \
             servers: use one with extended key usage serverAuth"
            .into(),
        CertificateError::BadSignature => {
            "the server does not have the key of its certificate, or \
             the certificate was not signed by its authority: check ssl_cert_file and ssl_key_file \
             on the server"
                .into()
        }
        CertificateError::Other(_) => {
            "the server's certificate is an authority's (CA:TRUE) or has \
             another form than a server's: name exactly this certificate in \
             database.tls_ca_file, or give the server one with CA:FALSE"
                .into()
        }
        _ => {
            "the server's certificate cannot be verified: read it with `openssl s_client -starttls \
             postgres -connect HOST:PORT`"
                .into()
        }
    }
}

fn of_alert(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "the server requires a client certificate: set \
             database.tls_cert_file and database.tls_key_file"
            .into(),
        AlertDescription::UnknownCA => "the server does not know the authority of our client \
             certificate: put that authority's certificate into the server's ssl_ca_file, or \
             correct database.tls_cert_file"
            .into(),
        AlertDescription::CertificateExpired => "our client certificate has expired: renew \
             database.tls_cert_file"
            .into(),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateRevoked
        | AlertDescription::DecryptError => "the server does not accept our client certificate: \
             check database.tls_cert_file, and the server's log"
            .into(),
        _ => "the server ended the TLS handshake: see the server's log".into(),
    }
}

/// rustls presents a name as `DnsName("db1")` or `IpAddress(192.0.2.1)`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').map_or(name, |(_, inner)| inner);
    inner.trim_end_matches(')').trim_matches('"')
}

fn time(secs: u64) -> String {
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(secs))
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_of_a_type_is_shown() {
        let presented = vec!["DnsName(\"db1\")".to_owned(), "IpAddress(192.0.2.1)".to_owned()];
        let expected = "db2".try_into().unwrap();
        let error = CertificateError::NotValidForNameContext { expected, presented };
        let words = of_certificate(&error);
        assert!(words.contains("is for db1, 192.0.2.1, not for db2:"), "{words}");
    }
}
