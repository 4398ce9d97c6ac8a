//! Where the database and the brokers of hints are. Neither URL shows a password.

use std::fmt;
use std::str::FromStr;

use async_nats::ServerAddr;

/// A PostgreSQL connection URL. Its `Display` and `Debug` leave the password out.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The whole text with the password. The caller keeps it out of logs and errors.
    #[must_use]
    pub fn expose_text(&self) -> &str {
        &self.0
    }

    /// Whether it contains a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        let (head, query) = self.0.split_once('?').unwrap_or((&self.0, ""));
        let (_, rest) = head.split_once("://").unwrap_or_default();
        let login = authority(rest).split_once('@').map_or("", |(login, _)| login);
        login.contains(':') || query.split('&').any(|pair| pair.starts_with("password="))
    }
}

/// Why a text is no database URL. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseUrlError {
    #[error("is not a database URL: write postgres://ROLE@HOST/DATABASE")]
    Scheme,
    #[error("has two @ before its host: percent-encode the one in the password as %40")]
    TwoAts,
    #[error("has / or ? in its password: percent-encode them as %2F and %3F")]
    Unencoded,
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(rest) = ["postgres://", "postgresql://"].iter().find_map(|s| text.strip_prefix(s))
        else {
            return Err(DatabaseUrlError::Scheme);
        };
        // The driver would take the text after the first @ for the host, and print it in errors.
        if authority(rest).matches('@').count() > 1 {
            return Err(DatabaseUrlError::TwoAts);
        }
        // The rest of the password would be taken for the database or an option, and be printed.
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let in_path = path.split_once('/').is_some_and(|(_, database)| database.contains('@'));
        if in_path || query.split('&').any(|pair| pair.contains('@') && !pair.contains('=')) {
            return Err(DatabaseUrlError::Unencoded);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Login and hosts of a URL without its scheme.
fn authority(rest: &str) -> &str {
    rest.split(['/', '?']).next().unwrap_or_default()
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, query) = self.0.split_once('?').unwrap_or((&self.0, ""));
        let (scheme, rest) = head.split_once("://").unwrap_or(("postgres", head));
        match rest.rsplit_once('@') {
            Some((role, place)) => {
                let role = role.split(':').next().unwrap_or_default();
                write!(f, "{scheme}://{role}@{place}")?;
            }
            None => write!(f, "{scheme}://{rest}")?,
        }
        let shown = query.split('&').filter(|pair| !pair.is_empty() && !pair.contains("password"));
        for (index, pair) in shown.enumerate() {
            write!(f, "{}{pair}", if index == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// The NATS servers that carry hints: `tls://HOST:PORT` or `nats://HOST:PORT`, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerUrl(Vec<ServerAddr>);

/// Why a text names no NATS servers. The text is not repeated: it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokerUrlError {
    #[error("is no URL of NATS servers: write tls://HOST:4222, several separated by commas")]
    Scheme,
    #[error(
        "contains a login: write USER:PASSWORD into the file that hints.credentials_file names"
    )]
    Login,
}

impl BrokerUrl {
    /// At least one.
    #[must_use]
    pub fn servers(&self) -> &[ServerAddr] {
        &self.0
    }

    /// Warns of a doubtful part of the URL.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let in_clear = self.0.iter().find(|server| {
            let local = ["localhost", "127.0.0.1", "[::1]", "::1"].contains(&server.host());
            !server.tls_required() && !local
        })?;
        let host = in_clear.host();
        Some(format!(
            "hints.url connects to {host} by nats://, which sends the login in clear unless the server \
             insists on TLS: write tls://{host}"
        ))
    }
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let server = |text: &str| {
            let text = text.trim();
            let rest = ["tls://", "nats://"].iter().find_map(|scheme| text.strip_prefix(scheme));
            let rest = rest.filter(|rest| !rest.is_empty()).ok_or(BrokerUrlError::Scheme)?;
            if rest.contains('@') {
                return Err(BrokerUrlError::Login);
            }
            text.parse().map_err(|_| BrokerUrlError::Scheme)
        };
        text.split(',').map(server).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, server) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", server.host(), server.port())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_prints_without_its_password() {
        let show = |text: &str| text.parse::<DatabaseUrl>().unwrap().to_string();
        assert_eq!(show("postgres://gw:s3cret@db1,db2/vpn"), "postgres://gw@db1,db2/vpn");
        assert_eq!(show("postgres://gw@db1:5433/vpn"), "postgres://gw@db1:5433/vpn");
        assert_eq!(
            show("postgresql:///vpn?host=/run/pg&password=s3cret&port=5"),
            "postgresql:///vpn?host=/run/pg&port=5"
        );
        assert_eq!(show("postgres://gw:p%40ss@db/vpn"), "postgres://gw@db/vpn");
        assert_eq!(
            "postgres://gw:p@ss@db/vpn".parse::<DatabaseUrl>(),
            Err(DatabaseUrlError::TwoAts)
        );
        for unencoded in ["postgres://gw:p/ss@db/vpn", "postgres://gw:p?ss@db/vpn"] {
            let error = unencoded.parse::<DatabaseUrl>().unwrap_err();
            assert_eq!(error, DatabaseUrlError::Unencoded, "{unencoded}");
        }
        assert_eq!(show("postgres://gw@db/vpn?application_name=a@b").matches('@').count(), 2);
    }

    #[test]
    fn password_in_a_url_is_noticed() {
        let has = |text: &str| text.parse::<DatabaseUrl>().unwrap().has_password();
        assert!(has("postgres://gw:s3cret@db1:5433/vpn"));
        assert!(has("postgres:///vpn?host=/run/pg&password=s3cret"));
        assert!(!has("postgres://gw@db1:5433/vpn"));
        assert!(!has("postgres://db1:5433/vpn?user=gw&passfile=x:y@z"));
    }
}
