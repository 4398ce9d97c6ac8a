//! Connection options, parsed once. Errors name the setting.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_postgres::Socket;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

use super::error::{Place, StoreError};

/// `database.tls`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tls {
    /// `VerifyFull`, or no TLS if every host is a unix socket.
    #[default]
    Auto,
    /// Encrypted, and the server's certificate must be valid for the host name.
    VerifyFull,
    /// No TLS. The data read includes every preshared key's envelope.
    Disable,
}

/// A password. `Debug` prints no part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Zeroizing<String>);

impl Password {
    /// The text. The caller must keep it out of logs and errors.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self(Zeroizing::new(text))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(secret)")
    }
}

/// How to reach the database. The URL is libpq's, with several hosts and `target_session_attrs`. It
/// may hold a password, so `Debug` omits it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectOptions {
    pub url: String,
    /// Overrides a password in the URL.
    pub password: Option<Password>,
    pub tls: Tls,
    /// Certificates to trust instead of the system's, PEM.
    pub tls_ca_file: Option<PathBuf>,
    /// For each host; default 5 s.
    pub connect_timeout: Duration,
    /// For each statement; default 30 s.
    pub statement_timeout: Duration,
    /// Connections for queries, besides the listening one; default 3.
    pub pool_size: usize,
}

impl ConnectOptions {
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password: None,
            tls: Tls::Auto,
            tls_ca_file: None,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
            pool_size: 3,
        }
    }

    /// Reads the URL and the certificates.
    pub(super) fn target(&self) -> Result<Target, StoreError> {
        let mut config: tokio_postgres::Config =
            self.url.parse().map_err(|error: tokio_postgres::Error| StoreError::Config {
                what: format!("database.url is no connection URL ({})", source_text(&error)),
                fix: "write postgres://role@host1,host2/database?target_session_attrs=read-write; \
                      TLS is set by database.tls",
            })?;
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        if config.get_hosts().is_empty() {
            return Err(StoreError::Config {
                what: "database.url names no host".into(),
                fix: "write postgres://role@host/database, or ?host=/run/postgresql for the socket",
            });
        }
        let sockets = config.get_hosts().iter().filter(|host| is_socket(host)).count();
        let encrypt = match self.tls {
            Tls::Disable => false,
            Tls::Auto if sockets == config.get_hosts().len() => false,
            Tls::Auto | Tls::VerifyFull if sockets == 0 => true,
            Tls::Auto | Tls::VerifyFull => {
                return Err(StoreError::Config {
                    what: "database.url names a unix socket, which has no TLS".into(),
                    fix: "name only sockets, or only hosts, or set database.tls = \"disable\"",
                });
            }
        };
        config
            .ssl_mode(if encrypt { SslMode::Require } else { SslMode::Disable })
            .connect_timeout(self.connect_timeout)
            // Silence is noticed within 15 s: an idle connection is closed after 7 s, one that sends
            // shortly before that 7 s later.
            .keepalives_idle(Duration::from_secs(3))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(2)
            .tcp_user_timeout(Duration::from_secs(7));
        if config.get_application_name().is_none() {
            config.application_name("gatepost");
        }
        let rustls = MakeRustlsConnect::new(if encrypt {
            client_config(self.tls_ca_file.as_deref())?
        } else {
            trusting(rustls::RootCertStore::empty())?
        });
        let tls = Connector { rustls, encrypt };
        Ok(Target { place: place(&config), config, tls })
    }
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("tls", &self.tls)
            .field("tls_ca_file", &self.tls_ca_file)
            .field("statement_timeout", &self.statement_timeout)
            .finish_non_exhaustive()
    }
}

/// A parsed [`ConnectOptions`].
#[derive(Clone)]
pub(super) struct Target {
    pub place: Place,
    pub config: tokio_postgres::Config,
    pub tls: Connector,
}

/// TLS by rustls, or none. The driver asks for a connector even if it does not use it, and passes a
/// socket's path as the host name, which rustls refuses.
#[derive(Clone)]
pub(super) struct Connector {
    rustls: MakeRustlsConnect,
    encrypt: bool,
}

impl MakeTlsConnect<Socket> for Connector {
    type Stream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, host: &str) -> Result<Self::TlsConnect, Self::Error> {
        let host = if self.encrypt { host } else { "unused.invalid" };
        MakeTlsConnect::<Socket>::make_tls_connect(&mut self.rustls, host)
    }
}

fn is_socket(host: &Host) -> bool {
    matches!(host, Host::Unix(_))
}

fn place(config: &tokio_postgres::Config) -> Place {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        })
        .collect();
    let role = config.get_user().unwrap_or("?").to_owned();
    let database = config.get_dbname().unwrap_or(&role).to_owned();
    Place { hosts: hosts.join(","), database, role }
}

fn client_config(ca_file: Option<&std::path::Path>) -> Result<rustls::ClientConfig, StoreError> {
    let mut roots = rustls::RootCertStore::empty();
    let certificates: Vec<CertificateDer<'static>> =
        match ca_file {
            Some(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(
                |error| StoreError::Config {
                    what: format!(
                        "database.tls_ca_file {} cannot be read: {error}",
                        path.display()
                    ),
                    fix: "name a PEM file of certificates that the agent may read",
                },
            )?,
            None => rustls_native_certs::load_native_certs().certs,
        };
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(StoreError::Config {
            what: "no certificate to verify the database's with".into(),
            fix: "set database.tls_ca_file, or install ca-certificates",
        });
    }
    trusting(roots)
}

fn trusting(roots: rustls::RootCertStore) -> Result<rustls::ClientConfig, StoreError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Config {
            what: format!("TLS cannot be set up: {error}"),
            fix: "this build of gatepost lacks TLS 1.2 and 1.3",
        })?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn source_text(error: &tokio_postgres::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str, tls: Tls) -> Result<Target, StoreError> {
        ConnectOptions { tls, ..ConnectOptions::new(url) }.target()
    }

    #[test]
    fn tls_is_off_only_on_a_socket_or_when_told() {
        let mode = |url, tls| target(url, tls).map(|target| target.config.get_ssl_mode());
        let (socket, host) =
            ("postgres:///vpn?host=/run/postgresql&user=a", "postgres://a@db1/vpn");
        assert_eq!(mode(socket, Tls::Auto).unwrap(), SslMode::Disable);
        assert_eq!(mode(host, Tls::Auto).unwrap(), SslMode::Require);
        assert_eq!(mode(host, Tls::Disable).unwrap(), SslMode::Disable);
        assert!(mode(socket, Tls::VerifyFull).is_err());
        // A URL cannot weaken what the setting says.
        let prefer = "postgres://a@db1/vpn?sslmode=disable";
        assert_eq!(mode(prefer, Tls::VerifyFull).unwrap(), SslMode::Require);
    }

    #[test]
    fn errors_say_the_place_and_never_the_password() {
        let target = target("postgres://a:hunter2@db1,db2:6432/vpn", Tls::Disable).unwrap();
        assert_eq!(target.place.to_string(), "database vpn at db1:5432,db2:6432 as role a");
        let wrong = super::ConnectOptions::new("postgres://a:hunter2@db1/vpn?tls=full");
        let words = wrong.target().err().unwrap().to_string();
        assert!(words.contains("database.url") && !words.contains("hunter2"), "{words}");
        assert!(!format!("{wrong:?}").contains("hunter2"));
    }

    #[test]
    fn a_missing_certificate_file_is_named() {
        let options = ConnectOptions {
            tls_ca_file: Some("/nowhere/ca.pem".into()),
            ..ConnectOptions::new("postgres://a@db1/vpn")
        };
        assert!(options.target().err().unwrap().to_string().contains("/nowhere/ca.pem"));
    }
}
