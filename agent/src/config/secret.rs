//! Secrets: where they are, and reading them when they are needed.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use gatepost::model::PrivateKey;
use gatepost::model::psk::PskKeys;
use gatepost::store::Token;
use zeroize::Zeroizing;

use super::{Config, ConfigError, SecretSearch};
use crate::hints::Login;

/// A secret read from a file, overwritten when dropped. Its `Debug` shows no part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The text. The caller keeps it out of logs and errors.
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

/// The secrets of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    PrivateKey,
    DatabasePassword,
    /// Names the gateway to a database that many share by one role.
    DatabaseToken,
    /// The keys that open preshared keys.
    PskKeys,
    /// User and password at the broker.
    HintsLogin,
}

/// Where a secret is. The file need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    pub path: PathBuf,
    /// Provided by systemd: read-only.
    pub is_credential: bool,
}

impl Secret {
    const fn what(self) -> &'static str {
        match self {
            Self::PrivateKey => "the private key",
            Self::DatabasePassword => "the database password",
            Self::DatabaseToken => "the gateway's token",
            Self::PskKeys => "the sealing keys",
            Self::HintsLogin => "the login for hints",
        }
    }

    fn named(self, config: &Config) -> Option<&Path> {
        match self {
            Self::PrivateKey => config.gateway.private_key_file.as_deref(),
            Self::DatabasePassword => config.database.password_file.as_deref(),
            Self::DatabaseToken => config.database.token_file.as_deref(),
            Self::PskKeys => config.gateway.psk_keys_file.as_deref(),
            Self::HintsLogin => config.hints.credentials_file.as_deref(),
        }
    }

    const fn credentials(self) -> &'static [&'static str] {
        match self {
            Self::PrivateKey => &["private_key"],
            Self::DatabasePassword => &["db_password", "database_password"],
            Self::DatabaseToken => &["db_token"],
            Self::PskKeys => &["psk_keys"],
            Self::HintsLogin => &["hints_login"],
        }
    }

    const fn beside(self) -> &'static str {
        match self {
            Self::PrivateKey => "private.key",
            Self::DatabasePassword => "db.password",
            Self::DatabaseToken => "db.token",
            Self::PskKeys => "psk.keys",
            Self::HintsLogin => "hints.login",
        }
    }
}

/// Where the private key is: `gateway.private_key_file`, else credential `private_key`, else
/// `private.key` beside the configuration.
#[must_use]
pub fn private_key_file(config: &Config) -> SecretFile {
    named_or_credential(config, Secret::PrivateKey)
        .unwrap_or_else(|| beside(config, Secret::PrivateKey))
}

/// systemd passes this value in place of a missing file: without it, the unit fails with no more than
/// "Protocol error".
const MISSING_CREDENTIAL: &str = "missing";

/// Reads the gateway's private key.
///
/// # Errors
/// [`ConfigError::Secret`] if it cannot be read, [`ConfigError::Key`] if it is not a key.
pub fn read_private_key(config: &Config) -> Result<PrivateKey, ConfigError> {
    let SecretFile { path, is_credential } = private_key_file(config);
    let what = Secret::PrivateKey.what();
    let absent = "generate it with `gatepost key generate` or `gatepost enroll`";
    let text = read(&path, what, absent)?;
    if is_credential && text.expose_text() == MISSING_CREDENTIAL {
        let path = beside(config, Secret::PrivateKey).path;
        let remedy = "the unit's LoadCredential=private_key: names no file that exists; restore it, or make a \
                      new key with `gatepost enroll --new-key`";
        return Err(ConfigError::Secret {
            what,
            path,
            source: io::ErrorKind::NotFound.into(),
            remedy,
        });
    }
    let key = text.expose_text().trim().parse::<PrivateKey>();
    key.map_err(|source| ConfigError::Key { what: Secret::PrivateKey.what(), path, source })
}

/// Reads the password of the gateway's database role, if a file holds one.
///
/// # Errors
/// [`ConfigError::Secret`] if the file is named or exists, and cannot be read.
pub fn read_database_password(config: &Config) -> Result<Option<SecretText>, ConfigError> {
    let secret = Secret::DatabasePassword;
    optional(config, secret).map(|path| read(&path, secret.what(), CORRECT)).transpose()
}

/// Reads the gateway's token, if a file holds one.
///
/// # Errors
/// [`ConfigError::Secret`] if the file is named or exists, and cannot be read; [`ConfigError::Token`]
/// if it holds no token.
pub fn read_database_token(config: &Config) -> Result<Option<Token>, ConfigError> {
    let secret = Secret::DatabaseToken;
    let Some(path) = optional(config, secret) else { return Ok(None) };
    let token = read(&path, secret.what(), CORRECT)?.expose_text().parse();
    token.map(Some).map_err(|source| ConfigError::Token { path, source })
}

/// Reads the keys that open preshared keys, if there are any.
///
/// # Errors
/// [`ConfigError::Secret`] if the file is named or exists, and cannot be read;
/// [`ConfigError::PskKeys`] if a line is wrong.
pub fn read_psk_keys(config: &Config) -> Result<Option<PskKeys>, ConfigError> {
    optional(config, Secret::PskKeys).map(|path| read_psk_keys_file(&path)).transpose()
}

/// Reads the keys that open preshared keys from a file that the command line names.
///
/// # Errors
/// The errors of [`read_psk_keys`].
pub fn read_psk_keys_file(path: &Path) -> Result<PskKeys, ConfigError> {
    let text = read(path, Secret::PskKeys.what(), CORRECT)?;
    let keys = text.expose_text().parse();
    keys.map_err(|source| ConfigError::PskKeys { path: path.to_owned(), source })
}

/// Reads user and password at the broker of hints, if a file holds them.
///
/// # Errors
/// [`ConfigError::Secret`] if the file is named or exists, and cannot be read;
/// [`ConfigError::HintsLogin`] if it holds something else.
pub fn read_hints_login(path: &Path) -> Result<Login, ConfigError> {
    let text = read(path, Secret::HintsLogin.what(), CORRECT)?;
    let login = text.expose_text().parse();
    login.map_err(|source| ConfigError::HintsLogin { path: path.to_owned(), source })
}

/// The file of the login at the broker; `None`: it takes none.
#[must_use]
pub fn hints_login_file(config: &Config) -> Option<PathBuf> {
    optional(config, Secret::HintsLogin)
}

/// A sentence if users other than owner and group may read or change a secret's file.
#[must_use]
pub fn exposure(path: &Path) -> Option<String> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o007 != 0).then(|| {
        format!("{} is open to every user (mode {mode:04o}): chmod o= {0}", path.display())
    })
}

/// The files of all secrets that exist.
#[must_use]
pub fn secret_files(config: &Config) -> Vec<PathBuf> {
    let secrets =
        [Secret::DatabasePassword, Secret::DatabaseToken, Secret::PskKeys, Secret::HintsLogin];
    let optional = secrets.map(|it| optional(config, it));
    let tls_key = config.database.tls_key_file.as_deref().map(|path| config.path(path));
    let all = std::iter::once(private_key_file(config).path)
        .chain(optional.into_iter().flatten())
        .chain(tls_key);
    all.filter(|path| path.exists()).collect()
}

/// The text of every secret's file that can be read.
#[must_use]
pub fn known_secrets(config: &Config) -> Vec<SecretText> {
    let text = |path: &PathBuf| read(path, "a secret", CORRECT).ok();
    secret_files(config).iter().filter_map(text).collect()
}

/// The text of every secret's file beside a configuration that cannot be loaded, if it can be read.
#[must_use]
pub fn secrets_beside(configuration: &Path) -> Vec<SecretText> {
    let secrets = [
        Secret::PrivateKey,
        Secret::DatabasePassword,
        Secret::DatabaseToken,
        Secret::PskKeys,
        Secret::HintsLogin,
    ];
    let path = |secret: Secret| configuration.with_file_name(secret.beside());
    secrets.into_iter().filter_map(|it| read(&path(it), it.what(), CORRECT).ok()).collect()
}

/// Reads a secret from a file that the command line names.
///
/// # Errors
/// [`ConfigError::Secret`] if it cannot be read.
pub fn read_secret_file(path: &Path, what: &'static str) -> Result<SecretText, ConfigError> {
    read(path, what, CORRECT)
}

/// The remedy if the named file does not exist.
const CORRECT: &str = "correct the path";

/// The file of an optional secret, if there is one.
fn optional(config: &Config, secret: Secret) -> Option<PathBuf> {
    let file = named_or_credential(config, secret).or_else(|| {
        let is_gateways = matches!(config.secret_search, SecretSearch::Gateway { .. });
        is_gateways.then(|| beside(config, secret)).filter(|file| file.path.exists())
    });
    file.map(|file| file.path)
}

fn named_or_credential(config: &Config, secret: Secret) -> Option<SecretFile> {
    if let Some(path) = secret.named(config) {
        return Some(SecretFile { path: config.path(path), is_credential: false });
    }
    let SecretSearch::Gateway { credentials_dir: Some(folder) } = &config.secret_search else {
        return None;
    };
    let credentials = secret.credentials().iter().map(|name| folder.join(name));
    let path = credentials.into_iter().find(|path| path.exists())?;
    Some(SecretFile { path, is_credential: true })
}

fn beside(config: &Config, secret: Secret) -> SecretFile {
    SecretFile { path: config.path(Path::new(secret.beside())), is_credential: false }
}

fn read(path: &Path, what: &'static str, absent: &'static str) -> Result<SecretText, ConfigError> {
    /// A secret is a few lines; a larger file is the wrong one.
    const MOST_BYTES: u64 = 1 << 20;
    let text = std::fs::metadata(path).and_then(|file| {
        if file.len() > MOST_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file is over 1 MiB"));
        }
        std::fs::read_to_string(path)
    });
    match text {
        Ok(mut text) => {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
            Ok(SecretText(Zeroizing::new(text)))
        }
        Err(source) => {
            let remedy = match source.kind() {
                io::ErrorKind::NotFound => absent,
                io::ErrorKind::PermissionDenied => {
                    "run this as root, or let this user read the file"
                }
                _ => "correct the path",
            };
            Err(ConfigError::Secret { what, path: path.to_owned(), source, remedy })
        }
    }
}
