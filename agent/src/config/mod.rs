//! The configuration: one TOML file, whose keys environment variables override.
//!
//! `GATEPOST_<SECTION>_<KEY>` overrides `key` of `[section]`: `GATEPOST_DATABASE_URL` is `url` of
//! `[database]`, `GATEPOST_SYNC_POLL_INTERVAL` is `poll_interval` of `[sync]`. Lists are separated
//! by commas. `GATEPOST_CONFIG` names the file, as `--config` does.
//!
//! Relative paths are relative to the file's folder. Secrets are read when they are needed: from the
//! file that the configuration names, else from a systemd credential, else from `private.key`,
//! `db.password` and `psk.keys` beside the configuration.

#[cfg(test)]
mod described;
mod error;
mod load;
mod reload;
mod schema;
#[cfg(test)]
pub(crate) mod scratch;
mod search;
mod secret;
mod url;
mod value;

pub use error::{ConfigError, Origin};
pub use load::{Source, load};
pub use schema::{Backend, Config};
pub use search::SecretSearch;
pub use secret::{
    exposure, hints_login_file, known_secrets, private_key_file, read_database_password,
    read_database_token, read_hints_login, read_private_key, read_psk_keys, read_psk_keys_file,
    read_secret_file, secret_files, secrets_beside,
};
pub use url::{BrokerUrl, DatabaseUrlError};

/// The configuration file, unless `--config` or `GATEPOST_CONFIG` names another.
pub const DEFAULT_FILE: &str = "/etc/gatepost/gatepost.toml";

/// The configuration file of `gatepost bell`, unless `--config` or `GATEPOST_CONFIG` names another.
pub const BELL_FILE: &str = "/etc/gatepost-bell/bell.toml";
