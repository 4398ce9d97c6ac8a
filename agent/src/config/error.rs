//! Errors of the configuration. Each names the key, the value, its origin and the remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use gatepost::model::KeyError;
use gatepost::model::psk::PskKeysError;
use gatepost::store::TokenError;

use crate::hints::LoginError;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(PathBuf),
    Variable(String),
    Argument(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Argument(name) => f.write_str(name),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {}: {source}; {}", path.display(), remedy(.source))]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not valid TOML: line {line}, column {column}: {message}", path.display())]
    Syntax { path: PathBuf, line: usize, column: usize, message: String },
    #[error("{origin}: unknown {what} `{key}`{hint}")]
    Unknown { origin: Origin, what: &'static str, key: String, hint: Hint },
    #[error("{origin}: `{key}` {why}")]
    Value { origin: Origin, key: String, why: String },
    #[error("`{key}` is not set; set it in {} or in environment variable {variable}", file.display())]
    Missing { key: &'static str, file: PathBuf, variable: &'static str },
    #[error("cannot read {what} from {}: {source}; {remedy}", path.display())]
    Secret {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
        remedy: &'static str,
    },
    #[error("{} {source}", path.display())]
    Token {
        path: PathBuf,
        #[source]
        source: TokenError,
    },
    #[error("{what} in {} {source}; generate one with `gatepost key generate`", path.display())]
    Key {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("{}: {source}", path.display())]
    PskKeys {
        path: PathBuf,
        #[source]
        source: PskKeysError,
    },
    #[error("{}: {source}", path.display())]
    HintsLogin {
        path: PathBuf,
        #[source]
        source: LoginError,
    },
}

impl ConfigError {
    /// Whether this user may not read a file. The configuration itself need not be wrong.
    #[must_use]
    pub fn is_permission_denied(&self) -> bool {
        match self {
            Self::Unreadable { source, .. } | Self::Secret { source, .. } => {
                source.kind() == io::ErrorKind::PermissionDenied
            }
            _ => false,
        }
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "run this as root or as a member of group gatepost",
        io::ErrorKind::InvalidData => "save it as UTF-8 text",
        _ => "name another file with --config",
    }
}

/// "did you mean ...?", or all known words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(String);

impl Hint {
    /// The known word that is nearest to `word`, or all known words if none is near.
    #[must_use]
    pub fn nearest(word: &str, known: &[&str]) -> Self {
        // At most one typing error in three letters.
        let near = known
            .iter()
            .map(|name| (strsim::damerau_levenshtein(word, name), *name))
            .filter(|(typos, _)| *typos <= (word.len() / 3).max(1))
            .min_by_key(|(typos, _)| *typos);
        Self(match near {
            Some((_, name)) => format!("; did you mean `{name}`?"),
            None => format!("; expected one of: {}", known.join(", ")),
        })
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
