//! Where the tests' PostgreSQL is: one that `GATEPOST_TEST_POSTGRES_URL` names, else our own.

#[path = "../../support/postgres.rs"]
mod cluster;

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::OnceLock;

pub use cluster::Cluster;
pub use cluster::pooler::Pooler;

/// A server and its superuser's password.
#[derive(Debug, Clone)]
pub struct Server {
    pub address: SocketAddr,
    pub password: String,
}

impl Server {
    /// The one server of this test program.
    pub fn shared() -> &'static Self {
        static SERVER: OnceLock<Server> = OnceLock::new();
        SERVER.get_or_init(|| match std::env::var("GATEPOST_TEST_POSTGRES_URL") {
            Ok(url) => Self::of_url(&url),
            Err(_) => Self {
                address: SocketAddr::from(([127, 0, 0, 1], Cluster::shared().port)),
                password: "unused".to_owned(),
            },
        })
    }

    /// Puts this rule before all others of our own server's pg_hba.conf, for its next reload.
    pub fn require(rule: &str) {
        if std::env::var_os("GATEPOST_TEST_POSTGRES_URL").is_none() {
            Cluster::shared().require(rule);
        }
    }

    /// From `postgres://postgres:PASSWORD@ADDRESS:PORT/...`.
    fn of_url(url: &str) -> Self {
        let config: tokio_postgres::Config =
            url.parse().unwrap_or_else(|error| panic!("GATEPOST_TEST_POSTGRES_URL: {error}"));
        let [tokio_postgres::config::Host::Tcp(host)] = config.get_hosts() else {
            panic!("GATEPOST_TEST_POSTGRES_URL must name one TCP host");
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        Self {
            address: (host.as_str(), port).to_socket_addrs().unwrap().next().unwrap(),
            password: String::from_utf8(config.get_password().unwrap_or_default().to_vec())
                .unwrap(),
        }
    }
}
