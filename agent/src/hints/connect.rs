//! The connection to the broker.

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};

use super::{BrokerError, Login};
use crate::config::{BrokerUrl, Config, ConfigError, hints_login_file, read_hints_login};

/// A connection on which nothing comes for so long is asked whether it is alive, and given up after
/// two questions without an answer.
const PING_EVERY: Duration = Duration::from_secs(5);
const CONNECTS_WITHIN: Duration = Duration::from_secs(5);

/// Where the broker is and how to log in, as `[hints]` says.
#[derive(Clone)]
pub struct Broker {
    url: BrokerUrl,
    login: Option<Login>,
    /// Read anew for each connection: the login may have changed.
    login_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl Broker {
    /// Reads the login. `None`: there is no `hints.url`.
    ///
    /// # Errors
    /// [`ConfigError`] if the file with the login cannot be read or is wrong.
    pub fn of(config: &Config) -> Result<Option<Self>, ConfigError> {
        let Some(url) = config.hints.url.clone() else { return Ok(None) };
        let ca_file = config.hints.tls_ca_file.as_deref().map(|path| config.path(path));
        let login_file = hints_login_file(config);
        let login = login_file.as_deref().map(read_hints_login).transpose()?;
        Ok(Some(Self { url, login, login_file, ca_file }))
    }

    /// Connects, trying each server once. A connection that is lost later is made again as often; after
    /// that its subscriptions end. `name` is what the server's monitoring shows. `events` gets what
    /// happens to the connection, and must not block.
    ///
    /// # Errors
    /// [`BrokerError`] of the last server.
    pub async fn connect(
        &self,
        name: &str,
        events: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Client, BrokerError> {
        // A file that cannot be read now leaves the former login in use.
        let renewed = self.login_file.as_deref().and_then(|file| read_hints_login(file).ok());
        let mut options = ConnectOptions::new()
            .name(name)
            .ping_interval(PING_EVERY)
            .connection_timeout(CONNECTS_WITHIN)
            .max_reconnects(self.url.servers().len())
            .ignore_discovered_servers()
            .event_callback(move |event| {
                events(event);
                std::future::ready(())
            });
        if let Some(Login { user, password }) = renewed.as_ref().or(self.login.as_ref()) {
            options = options.user_and_password(user.clone(), password.to_string());
        }
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        let connected = options.connect(self.url.servers().to_vec()).await;
        connected.map_err(|error| BrokerError::of_connect(&error, self.url.to_string()))
    }
}
