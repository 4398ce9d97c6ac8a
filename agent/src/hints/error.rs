//! Failures of the broker's connection in words, each with its remedy.

use std::error::Error;

use async_nats::rustls::{self, CertificateError};
use async_nats::{ConnectError, ConnectErrorKind};
use gatepost::causes::{chain, find};

/// Why the broker cannot be heard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error("NATS at {servers} is unreachable: {why}")]
    Unreachable { servers: String, why: String },
    #[error("NATS at {servers}: {why}")]
    Tls { servers: String, why: String },
    #[error(
        "NATS at {servers} refuses the login: compare the file that hints.credentials_file names with \
         the server's users"
    )]
    Login { servers: String },
    #[error(
        "NATS refuses what this program asks for ({what}): correct the user's permissions on the server"
    )]
    Permissions { what: String },
    #[error("NATS says: {0}")]
    Server(String),
    #[error("the connection to NATS was lost")]
    Lost,
}

impl BrokerError {
    /// Why no connection to these servers could be made.
    #[must_use]
    pub fn of_connect(error: &ConnectError, servers: String) -> Self {
        if let Some(error) = find::<rustls::Error>(error) {
            return Self::Tls { servers, why: of_rustls(error) };
        }
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                Self::Login { servers }
            }
            ConnectErrorKind::Tls => Self::Tls { servers, why: innermost(error) },
            ConnectErrorKind::TimedOut => {
                Self::Unreachable { servers, why: "no answer in time".into() }
            }
            ConnectErrorKind::ServerParse
            | ConnectErrorKind::Dns
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => {
                Self::Unreachable { servers, why: innermost(error) }
            }
        }
    }

    /// Classifies a server's error by its text.
    #[must_use]
    pub fn of_server(text: &str) -> Self {
        let text = text.trim_matches('\'');
        match text.strip_prefix("Permissions Violation for ") {
            Some(what) => Self::Permissions { what: what.replace('"', "").to_lowercase() },
            None => Self::Server(text.to_owned()),
        }
    }
}

fn of_rustls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no trusted authority signed the server's certificate: name its authority's \
             certificate in hints.tls_ca_file"
                .into()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "the server's certificate is not for the host in hints.url: correct one of them".into()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the server's certificate has expired: renew it on the server".into(),
        // The library of certificates has no public type for it.
        rustls::Error::InvalidCertificate(CertificateError::Other(other))
            if other.to_string().contains("CaUsedAsEndEntity") =>
        {
            "the server shows the certificate of an authority: make one with \
             basicConstraints=CA:FALSE"
                .into()
        }
        rustls::Error::InvalidCertificate(error) => {
            format!("the server's certificate is not accepted: {error}")
        }
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => {
            "the server offers no TLS: add a tls section to its configuration, or, on a network \
             that you trust, write nats:// in hints.url"
                .into()
        }
        _ => format!("TLS failed ({error}): see the server's log"),
    }
}

fn innermost(outer: &(dyn Error + 'static)) -> String {
    chain(outer).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_subscription_names_it_and_the_remedy() {
        let text = "Permissions Violation for Subscription to \"gatepost.hint.all\"";
        assert_eq!(
            BrokerError::of_server(text).to_string(),
            "NATS refuses what this program asks for (subscription to gatepost.hint.all): correct the \
             user's permissions on the server"
        );
        let other = BrokerError::of_server("maximum connections exceeded").to_string();
        assert_eq!(other, "NATS says: maximum connections exceeded");
    }
}
