//! Connection options, parsed once. Errors name the setting.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode, SslNegotiation};
use tokio_postgres_rustls::MakeRustlsConnect;
use zeroize::Zeroizing;

use super::connector::Connector;
use super::error::{Place, StoreError};
use super::host;
use super::patience::{CONNECT_WITHIN, SILENT_FOR};
use super::require_auth::{RequireAuth, Rule};
use super::tls::{Material, Tls, TlsFiles};
use super::token::Token;

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
    /// Names the gateway in each call, if the role does not; default none.
    pub token: Option<Token>,
    pub tls: Tls,
    pub tls_files: TlsFiles,
    /// By which methods a server may ask for a login over TCP; default SCRAM, and none with a client
    /// certificate.
    pub require_auth: Option<RequireAuth>,
    /// For each host; default 5 s.
    pub connect_timeout: Duration,
    /// For each statement; default 30 s.
    pub statement_timeout: Duration,
    /// Connections for queries, besides the listening one; default 3.
    pub pool_size: usize,
    /// The host that reports; default none.
    pub host: host::Host,
}

impl ConnectOptions {
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            password: None,
            token: None,
            tls: Tls::Auto,
            tls_files: TlsFiles::default(),
            require_auth: None,
            connect_timeout: CONNECT_WITHIN,
            statement_timeout: Duration::from_secs(30),
            pool_size: 3,
            host: host::Host::default(),
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
        let (hosts, ports) = (config.get_hosts().len(), config.get_ports().len());
        if ports > 1 && ports != hosts {
            return Err(StoreError::Config {
                what: "database.url does not give each host one port".into(),
                fix: "write each port after its host: host1:5432,host2:5433",
            });
        }
        let transport = self.transport(&config)?;
        config
            .connect_timeout(self.connect_timeout)
            // Silence is noticed within 15 s: an idle connection is closed after 7 s, one that sends
            // shortly before that 7 s later.
            .keepalives_idle(Duration::from_secs(3))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(2)
            .tcp_user_timeout(SILENT_FOR);
        if config.get_application_name().is_none() {
            config.application_name("gatepost");
        }
        match transport {
            Transport::Socket => config.ssl_mode(SslMode::Disable),
            Transport::Tls => config.ssl_mode(SslMode::Require),
            // The connector's stream, without a negotiation before it.
            Transport::Plain => {
                config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct)
            }
        };
        let encrypted = transport == Transport::Tls;
        let material = Material::read(&self.tls_files)?;
        let rustls = if encrypted {
            let check_name = self.tls != Tls::VerifyCa;
            Some(MakeRustlsConnect::new(material.client_config(&self.tls_files, check_name)?))
        } else {
            None
        };
        let has_certificate = encrypted && self.tls_files.certificate.is_some();
        let rule = Rule::new(self.require_auth.clone(), encrypted, has_certificate);
        let tls = Connector { rustls, rule: Arc::new(rule), warned: Arc::default() };
        let secrets = Secrets { password: self.password.clone(), material };
        let token = self.token.clone();
        Ok(Target { place: Place::of(&config), config, tls, secrets, token })
    }

    fn transport(&self, config: &tokio_postgres::Config) -> Result<Transport, StoreError> {
        let wrong = |what: &str, fix| Err(StoreError::Config { what: what.into(), fix });
        let hosts = config.get_hosts();
        match hosts.iter().filter(|host| matches!(host, Host::Unix(_))).count() {
            0 if self.tls == Tls::Disable => Ok(Transport::Plain),
            0 if self.tls == Tls::VerifyCa && self.tls_files.ca.is_none() => wrong(
                "database.tls = \"verify-ca\" would trust any server with a public certificate",
                "name the authority of your servers in database.tls_ca_file",
            ),
            0 => Ok(Transport::Tls),
            sockets if sockets < hosts.len() => wrong(
                "database.url names unix sockets and other hosts",
                "name only sockets, or only hosts",
            ),
            _ if matches!(self.tls, Tls::VerifyFull | Tls::VerifyCa) => wrong(
                "database.url names a unix socket, which has no TLS",
                "name a host, or set database.tls = \"disable\"",
            ),
            _ if self.require_auth.is_some() => wrong(
                "database.require_auth is for TCP, and database.url names a unix socket",
                "remove require_auth: the socket's folder says who serves it",
            ),
            _ => Ok(Transport::Socket),
        }
    }
}

/// How bytes reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Socket,
    Tls,
    Plain,
}

impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("tls", &self.tls)
            .field("tls_files", &self.tls_files)
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
    pub secrets: Secrets,
    pub token: Option<Token>,
}

/// The secrets that are read from files, and may differ when they are read again.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secrets {
    pub password: Option<Password>,
    material: Material,
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
        assert!(target(host, Tls::Auto).unwrap().tls.rustls.is_some());
        assert!(target(host, Tls::Disable).unwrap().tls.rustls.is_none());
        assert!(mode(socket, Tls::VerifyFull).is_err());
        assert!(mode(host, Tls::VerifyCa).is_err(), "any public certificate would do");
        assert!(mode("postgres://a@db1,%2Frun/vpn", Tls::Disable).is_err(), "a socket beside");
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
            tls_files: TlsFiles { ca: Some("/nowhere/ca.pem".into()), ..TlsFiles::default() },
            ..ConnectOptions::new("postgres://a@db1/vpn")
        };
        assert!(options.target().err().unwrap().to_string().contains("/nowhere/ca.pem"));
    }
}
