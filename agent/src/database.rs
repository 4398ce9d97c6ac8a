//! From the configuration to a connection.

use gatepost::store::{ConnectOptions, Password};

use crate::config::{Config, ConfigError, Secret, read_secret};

/// How to reach the configured database; reads the password.
///
/// # Errors
/// No URL, or a password file that cannot be read.
pub fn options(config: &Config) -> Result<ConnectOptions, ConfigError> {
    let password = read_secret(config, Secret::DatabasePassword)?;
    let mut options = ConnectOptions::new(config.database_url()?.expose_text());
    options.password = password.map(|text| Password::from(text.expose_text().to_owned()));
    options.tls = config.database.tls;
    options.tls_ca_file = config.database.tls_ca_file.as_deref().map(|path| config.path(path));
    options.statement_timeout = config.sync.statement_timeout;
    Ok(options)
}
