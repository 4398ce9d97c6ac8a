//! How to connect to the configured database, and what to do where that fails.

use std::path::PathBuf;
use std::sync::Arc;

use gatepost::store::{ConnectOptions, Host, Password, Source, Store, StoreError, TlsFiles};

use crate::config::{Config, ConfigError, read_database_password, read_database_token};

/// Connection options from the configuration. Reads the password file, unless the URL has a password.
///
/// # Errors
/// No URL, or an unreadable password file.
pub fn options(config: &Config) -> Result<ConnectOptions, ConfigError> {
    let url = config.database_url()?;
    let password = if url.has_password() { None } else { read_database_password(config)? };
    let mut options = ConnectOptions::new(url.expose_text());
    options.password = password.map(|text| Password::from(text.expose_text().to_owned()));
    options.token = read_database_token(config)?;
    options.tls = config.database.tls;
    let database = &config.database;
    let file = |path: &Option<PathBuf>| path.as_deref().map(|path| config.path(path));
    options.tls_files = TlsFiles {
        ca: file(&database.tls_ca_file),
        certificate: file(&database.tls_cert_file),
        key: file(&database.tls_key_file),
    };
    options.require_auth.clone_from(&database.require_auth);
    options.statement_timeout = config.sync.statement_timeout;
    options.host = this_host();
    Ok(options)
}

/// Reads the password, the token and the certificates that this configuration names.
pub fn source(config: Config) -> Source {
    source_with(config, |_| ())
}

/// Like [`source`], with options that are changed so.
pub fn source_with(
    config: Config,
    change: impl Fn(&mut ConnectOptions) + Send + Sync + 'static,
) -> Source {
    Arc::new(move || {
        let mut options = options(&config).map_err(|error| error.to_string())?;
        change(&mut options);
        Ok(options)
    })
}

/// From now on the store reads its files again when a login is refused.
pub fn follow_files(store: &Store, source: Source) {
    // What was read a moment ago can be read again, and if not, it stays in use.
    if let Err(why) = store.follow(source) {
        tracing::debug!(why, "the database's options were not read again: {why}");
    }
}

/// This host, as the database knows it. A file that is missing counts as empty.
#[must_use]
pub fn this_host() -> Host {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let machine = ["/etc/machine-id", "/var/lib/dbus/machine-id"].map(text).concat();
    let kernel = |what: &str| text(&format!("/proc/sys/kernel/{what}"));
    let machine = machine.lines().next().unwrap_or_default();
    Host::new(machine, &kernel("random/boot_id"), &kernel("hostname"))
}

/// The remedy for an error whose own text does not name one.
#[must_use]
pub fn remedy(error: &StoreError) -> Option<&'static str> {
    match error {
        StoreError::Unreachable { .. } => {
            Some("check that the server is running and that database.url is right, then try again")
        }
        StoreError::Query { source, .. }
            if source.code().is_some_and(|state| state.code() == "3D000") =>
        {
            Some("create the database with `createdb`, or correct database.url")
        }
        // Its own text says it.
        StoreError::PoolFull { .. } => None,
        error if error.is_want_of_room() => None,
        error if error.is_transient() => Some("try again; if it persists, see the server's log"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use gatepost::store::Place;

    use super::*;

    #[test]
    fn trying_again_is_the_remedy_only_where_it_can_help() {
        let (hosts, database, role) = ("db1:5432".into(), "vpn".into(), "gw".into());
        let place = Place { hosts, database, role, ..Place::default() };
        let closed = StoreError::Closed { place: Box::new(place.clone()) };
        assert!(remedy(&closed).is_some_and(|remedy| remedy.starts_with("try again")));
        let unmigrated = StoreError::Unmigrated { place: Box::new(place) };
        assert_eq!(remedy(&unmigrated), None, "{unmigrated}");
        assert!(unmigrated.to_string().ends_with("run `gatepost migrate`"));
    }
}
