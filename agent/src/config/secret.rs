//! Secrets: where they are, and reading them when they are needed.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gatepost::model::PrivateKey;

use super::{Config, ConfigError};

/// A secret read from a file. Prints no part of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// The text. The caller keeps it from logs and errors.
    #[must_use]
    pub fn expose_text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(secret)")
    }
}

/// Where the private key is, whether or not it is there yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrivateKeyFile {
    pub path: PathBuf,
    /// Handed over by systemd: not ours to write.
    pub is_credential: bool,
}

/// Where the private key is: the key `private_key_file`, else credential `private_key`, else
/// `private.key` beside the configuration.
#[must_use]
pub fn private_key_file(config: &Config) -> PrivateKeyFile {
    let named = config.gateway.private_key_file.as_deref();
    match (named, credential(config, &["private_key"])) {
        (Some(path), _) => PrivateKeyFile { path: config.path(path), is_credential: false },
        (None, Some(path)) => PrivateKeyFile { path, is_credential: true },
        (None, None) => {
            PrivateKeyFile { path: config.path(Path::new("private.key")), is_credential: false }
        }
    }
}

/// Reads the gateway's private key.
///
/// # Errors
/// [`ConfigError::Secret`] if it cannot be read, [`ConfigError::Key`] if it is no key.
pub fn read_private_key(config: &Config) -> Result<PrivateKey, ConfigError> {
    let path = private_key_file(config).path;
    let remedy = "make it with `gatepost key generate` or `gatepost enroll`";
    let SecretText(text) = read(&path, "the private key", remedy)?;
    let key = text.trim().parse::<PrivateKey>();
    key.map_err(|source| ConfigError::Key { what: "the private key", path, source })
}

/// The secrets that may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    DatabasePassword,
    PskKeys,
}

/// Reads a secret: from the file that the configuration names, else from a credential, else none.
///
/// # Errors
/// [`ConfigError::Secret`] if it is named and cannot be read.
pub fn read_secret(config: &Config, secret: Secret) -> Result<Option<SecretText>, ConfigError> {
    let (named, credentials, what): (_, &[&str], _) = match secret {
        Secret::DatabasePassword => (
            config.database.password_file.as_deref(),
            &["db_password", "database_password"],
            "the database password",
        ),
        Secret::PskKeys => {
            (config.gateway.psk_keys_file.as_deref(), &["psk_keys"], "the preshared-key keys")
        }
    };
    let path = named.map(|path| config.path(path)).or_else(|| credential(config, credentials));
    let remedy = "correct the path, or let this user read the file";
    path.map(|path| read(&path, what, remedy)).transpose()
}

/// Says so if others than owner and group may read or change a secret's file.
#[must_use]
pub fn exposure(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o007 != 0).then(|| {
        format!("{} is open to every user (mode {mode:04o}): chmod o= {0}", path.display())
    })
}

/// The files of all secrets that are there.
#[must_use]
pub fn secret_files(config: &Config) -> Vec<PathBuf> {
    let named = [&config.database.password_file, &config.gateway.psk_keys_file];
    let named = named.into_iter().flatten().map(|path| config.path(path));
    std::iter::once(private_key_file(config).path).chain(named).filter(|p| p.exists()).collect()
}

/// Reads a secret from a file that the command line names.
///
/// # Errors
/// [`ConfigError::Secret`] if it cannot be read.
pub fn read_secret_file(path: &Path, what: &'static str) -> Result<SecretText, ConfigError> {
    read(path, what, "correct the path, or let this user read the file")
}

fn credential(config: &Config, names: &[&str]) -> Option<PathBuf> {
    let folder = config.credentials_dir.as_deref()?;
    names.iter().map(|name| folder.join(name)).find(|path| path.exists())
}

fn read(path: &Path, what: &'static str, remedy: &'static str) -> Result<SecretText, ConfigError> {
    /// A secret is a line or a few: more is the wrong file.
    const MOST_BYTES: u64 = 1 << 20;
    let text = std::fs::metadata(path).and_then(|file| {
        if file.len() > MOST_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is over 1 MiB"));
        }
        std::fs::read_to_string(path)
    });
    match text {
        Ok(text) => Ok(SecretText(text.trim_end_matches(['\r', '\n']).to_owned())),
        Err(source) => Err(ConfigError::Secret { what, path: path.to_owned(), source, remedy }),
    }
}
