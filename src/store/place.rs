//! Which database an error is about.

use std::fmt;

use tokio_postgres::Config;
use tokio_postgres::config::Host;

/// A database and the role that connects to it. Holds no password.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// Those of the URL, or the one that an error is of.
    pub hosts: String,
    pub database: String,
    pub role: String,
    /// The other hosts, and what is wrong with each.
    pub others: Vec<String>,
}

impl Place {
    pub(super) fn of(config: &Config) -> Self {
        let ports = config.get_ports();
        let named = |(index, host): (usize, &Host)| {
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        };
        let hosts = Vec::from_iter(config.get_hosts().iter().enumerate().map(named)).join(",");
        let role = config.get_user().unwrap_or("?").to_owned();
        let database = config.get_dbname().unwrap_or(&role).to_owned();
        Self { hosts, database, role, others: Vec::new() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "database {} at {} as role {}", self.database, self.hosts, self.role)?;
        match &self.others[..] {
            [] => Ok(()),
            others => write!(f, " ({})", others.join("; ")),
        }
    }
}
