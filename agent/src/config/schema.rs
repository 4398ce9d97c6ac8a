//! Every section and key with its default.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use gatepost::dataplane::Backend;
use gatepost::model::{FailClosed, InterfaceName, MarkBit, Masquerade, NflogGroup, Ports};
use gatepost::plan::guard::MaxRemoved;
use gatepost::reconcile::{StalePolicy, SyncMode};
use ipnet::IpNet;
use serde::Deserialize;

use gatepost::store::{RequireAuth, Tls};

use super::url::{BrokerUrl, DatabaseUrl};
use super::value::{self, Fwmark};
use super::{ConfigError, SecretSearch};

/// The whole configuration, as [`load`](super::load()) returns it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub gateway: Gateway,
    pub database: Database,
    pub sync: Sync,
    pub hints: Hints,
    pub interface: Interface,
    pub firewall: Firewall,
    pub guard: Guard,
    pub stale: Stale,
    pub report: Report,
    pub metrics: Metrics,
    pub control: Control,
    pub cache: Cache,
    pub log: Log,
    /// The file that it was read from. It need not exist if it is the default one.
    #[serde(skip)]
    pub file: PathBuf,
    #[serde(skip)]
    pub secret_search: SecretSearch,
    /// Possible mistakes that do not stop the agent.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

impl Config {
    /// `gateways.name`.
    ///
    /// # Errors
    /// [`ConfigError::Missing`]
    pub fn gateway_name(&self) -> Result<&str, ConfigError> {
        self.gateway.name.as_deref().ok_or(ConfigError::Missing {
            key: "gateway.name",
            file: self.file.clone(),
            variable: "GATEPOST_GATEWAY_NAME",
        })
    }

    /// `database.url`.
    ///
    /// # Errors
    /// [`ConfigError::Missing`]
    pub fn database_url(&self) -> Result<&DatabaseUrl, ConfigError> {
        self.database.url.as_ref().ok_or(ConfigError::Missing {
            key: "database.url",
            file: self.file.clone(),
            variable: "GATEPOST_DATABASE_URL",
        })
    }

    /// Resolves a path relative to the configuration file's folder.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        self.file.parent().map_or_else(|| path.to_owned(), |folder| folder.join(path))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    #[serde(deserialize_with = "value::optional")]
    pub name: Option<String>,
    /// Default: credential `private_key`, else `private.key` beside the configuration.
    pub private_key_file: Option<PathBuf>,
    /// Sealing keys, which open preshared keys. Default: credential `psk_keys`, else `psk.keys` beside the
    /// configuration, else none.
    pub psk_keys_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    #[serde(deserialize_with = "value::optional")]
    pub url: Option<DatabaseUrl>,
    /// Default: credential `db_password`, else `db.password` beside the configuration, else none.
    /// A password in the URL takes precedence.
    pub password_file: Option<PathBuf>,
    /// For gateways that log in as one role: names this one. Default: credential `db_token`, else
    /// `db.token` beside the configuration, else none.
    pub token_file: Option<PathBuf>,
    /// Default `auto`: verified over TCP, off over a local socket.
    pub tls: Tls,
    /// Authorities, or the server's own certificate. Default: the system's certificates.
    pub tls_ca_file: Option<PathBuf>,
    /// The certificate that the agent shows, with the chain to its authority.
    pub tls_cert_file: Option<PathBuf>,
    pub tls_key_file: Option<PathBuf>,
    /// Default over TCP: SCRAM, and no login with a client certificate.
    #[serde(deserialize_with = "value::optional")]
    pub require_auth: Option<RequireAuth>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sync {
    pub mode: SyncMode,
    /// Default: 1 s in mode poll, and longer among more than 200 gateways; 10 s in mode listen.
    #[serde(deserialize_with = "value::optional_duration")]
    pub poll_interval: Option<Duration>,
    /// Between two full comparisons.
    #[serde(deserialize_with = "value::duration")]
    pub resync_interval: Duration,
    #[serde(deserialize_with = "value::duration")]
    pub statement_timeout: Duration,
}

impl Default for Sync {
    fn default() -> Self {
        Self {
            mode: SyncMode::Auto,
            poll_interval: None,
            resync_interval: Duration::from_mins(10),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// Where the bell gives hints of changes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hints {
    /// The NATS servers.
    #[serde(deserialize_with = "value::optional")]
    pub url: Option<BrokerUrl>,
    /// Default: credential `hints_login`, else `hints.login` beside the configuration, else none.
    pub credentials_file: Option<PathBuf>,
    /// Default: the system's certificates.
    pub tls_ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Interface {
    #[serde(deserialize_with = "value::parsed")]
    pub name: InterfaceName,
    pub backend: Backend,
    /// Default: 1420, which leaves room for IPv6 and WireGuard in 1500.
    #[serde(deserialize_with = "value::bytes")]
    pub mtu_bytes: u32,
    /// Tunnel addresses. Default: those in the database.
    #[serde(deserialize_with = "value::prefixes")]
    pub addresses: Vec<IpNet>,
    #[serde(deserialize_with = "value::parsed")]
    pub fwmark: Fwmark,
    /// Networks that may be behind peers, besides those in setting `gateway.site_prefixes`.
    #[serde(deserialize_with = "value::site_prefixes")]
    pub site_prefixes: Vec<IpNet>,
}

impl Default for Interface {
    fn default() -> Self {
        Self {
            name: "gatepost0".parse().expect("the default is an interface name"),
            backend: Backend::Auto,
            mtu_bytes: 1420,
            addresses: Vec::new(),
            fwmark: Fwmark::default(),
            site_prefixes: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Firewall {
    pub masquerade: Masquerade,
    #[serde(deserialize_with = "value::boolean")]
    pub deny_log: bool,
    /// The group of nflog that the log goes to, and that the agent reads.
    #[serde(deserialize_with = "value::nflog_group")]
    pub deny_log_group: NflogGroup,
    /// Delete the connection tracking entries of a tunnel address when another peer gets it.
    #[serde(deserialize_with = "value::boolean")]
    pub flush_conntrack: bool,
    /// No other program may change the table, where the kernel can see to that (from Linux 6.9).
    #[serde(deserialize_with = "value::boolean")]
    pub own_table: bool,
    /// New flows beyond this many of one address are denied; 0: any number.
    #[serde(deserialize_with = "value::parsed")]
    pub flows_per_address: u32,
    /// Forwarded packets of peers are dropped while the table is gone.
    #[serde(deserialize_with = "value::fail_closed")]
    pub fail_closed: FailClosed,
    /// The bit of packets' marks by which that is done.
    #[serde(deserialize_with = "value::mark_bit")]
    pub fail_closed_mark: MarkBit,
    /// UDP ports from which the gateway itself opens flows toward peers, besides those that the kernel
    /// gives to sockets that ask for none.
    #[serde(deserialize_with = "value::ports")]
    pub gateway_udp_ports: Ports,
    /// Protocols, besides TCP, UDP and ICMP, that the gateway itself speaks with peers.
    #[serde(deserialize_with = "value::protocols")]
    pub gateway_protocols: BTreeSet<u8>,
}

impl Default for Firewall {
    fn default() -> Self {
        Self {
            masquerade: Masquerade::default(),
            deny_log: true,
            deny_log_group: NflogGroup::DEFAULT,
            flush_conntrack: true,
            own_table: true,
            flows_per_address: 0,
            fail_closed: FailClosed::Auto,
            fail_closed_mark: MarkBit::default(),
            gateway_udp_ports: Ports::default(),
            gateway_protocols: BTreeSet::new(),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    #[serde(deserialize_with = "value::parsed")]
    pub max_removed_peers: MaxRemoved,
    /// How long a peer stays out whose revocation the database lost.
    #[serde(deserialize_with = "value::duration")]
    pub lost_history: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self { max_removed_peers: MaxRemoved::default(), lost_history: Duration::from_hours(1) }
    }
}

/// The treatment of peers when the rows are too old.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stale {
    pub policy: StalePolicy,
    #[serde(deserialize_with = "value::duration")]
    pub after: Duration,
}

impl Default for Stale {
    fn default() -> Self {
        Self { policy: StalePolicy::Keep, after: Duration::from_hours(24) }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Report {
    /// `last_sync_at` is rewritten at least this often while it stays true.
    #[serde(deserialize_with = "value::optional_duration")]
    pub heartbeat: Option<Duration>,
    /// The shortest time between two reports of handshakes.
    #[serde(deserialize_with = "value::duration")]
    pub interval: Duration,
}

impl Default for Report {
    fn default() -> Self {
        Self { heartbeat: None, interval: Duration::from_secs(15) }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    #[serde(deserialize_with = "value::socket_address")]
    pub listen: SocketAddr,
    /// Each peer has series of its own.
    #[serde(deserialize_with = "value::boolean")]
    pub per_peer: bool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7171)), per_peer: false }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    pub socket: PathBuf,
    /// Members may change something through the socket, as root may.
    #[serde(deserialize_with = "value::optional")]
    pub write_group: Option<String>,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: "/run/gatepost/control.sock".into(), write_group: None }
    }
}

/// The log of `run`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// In the syntax of `RUST_LOG`; `--log` and `RUST_LOG` take precedence.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".to_owned() }
    }
}

/// The last good rows, for a boot while the database is unreachable.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    pub file: PathBuf,
}

impl Default for Cache {
    fn default() -> Self {
        Self { file: "/var/lib/gatepost/last-good".into() }
    }
}
