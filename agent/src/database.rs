//! How to connect to the configured database.

use gatepost::store::{ConnectOptions, Password};

use crate::config::{Config, ConfigError, read_database_password};

/// Connection options from the configuration. Reads the password file, unless the URL has a password.
///
/// # Errors
/// No URL, or an unreadable password file.
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
