//! From the configuration to a connection.

use gatepost::store::{ConnectOptions, Password};

use crate::config::{Config, ConfigError, read_database_password};

/// How to reach the configured database; reads the password, unless the URL brings one.
///
/// # Errors
/// No URL, or a password file that cannot be read.
pub fn options(config: &Config) -> Result<ConnectOptions, ConfigError> {
    let url = config.database_url()?;
    let password = if url.has_password() { None } else { read_database_password(config)? };
    let mut options = ConnectOptions::new(url.expose_text());
    options.password = password.map(|text| Password::from(text.expose_text().to_owned()));
    options.tls = config.database.tls;
    options.tls_ca_file = config.database.tls_ca_file.as_deref().map(|path| config.path(path));
    options.statement_timeout = config.sync.statement_timeout;
    Ok(options)
}
