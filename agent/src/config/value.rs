//! Values with units. Each may be a string, because environment variables are.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use async_nats::ServerAddr;
use gatepost::model::{FailClosed, MarkBit, NflogGroup, Ports};
use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

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

    /// What is doubtful about it.
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

/// A packet mark; 0: none. Written in decimal or as 0x...
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fwmark(pub u32);

/// The text that is no mark.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}: write a 32-bit mark such as 51820 or 0xca6c")]
pub struct FwmarkError(String);

impl FromStr for Fwmark {
    type Err = FwmarkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => text.parse(),
        }
        .map(Self)
        .map_err(|_| FwmarkError(text.to_owned()))
    }
}

/// Any scalar, parsed from its text.
pub(super) fn parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

/// An optional scalar, parsed from its text.
pub(super) fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    parsed(deserializer).map(Some)
}

/// `true` or `false`.
pub(super) fn boolean<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    text.parse().map_err(|_| D::Error::custom(format!("is {text:?}: write true or false")))
}

/// `auto`, `true` or `false`.
pub(super) fn fail_closed<'de, D>(deserializer: D) -> Result<FailClosed, D::Error>
where
    D: Deserializer<'de>,
{
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    match text.as_str() {
        "auto" => Ok(FailClosed::Auto),
        "true" => Ok(FailClosed::Always),
        "false" => Ok(FailClosed::Never),
        _ => Err(D::Error::custom(format!("is {text:?}: write \"auto\", true or false"))),
    }
}

/// One bit of packets' marks.
pub(super) fn mark_bit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MarkBit, D::Error> {
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    let bit = text.parse().ok().and_then(|Fwmark(bits)| MarkBit::new(bits));
    bit.ok_or_else(|| D::Error::custom(format!("is {text:?}: write one bit, such as 0x1000")))
}

/// A group of nflog.
pub(super) fn nflog_group<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<NflogGroup, D::Error> {
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    let group = text.parse().map(NflogGroup);
    group.map_err(|_| D::Error::custom(format!("is {text:?}: write a number from 0 to 65535")))
}

/// A duration with its unit, such as "10s", "250ms", "1h 30m".
pub(super) fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|_| {
        D::Error::custom(format!(
            "is {text:?}: write a duration with a unit, such as \"250ms\", \"10s\" or \"1h 30m\""
        ))
    })
}

/// An optional duration with its unit.
pub(super) fn optional_duration<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    duration(deserializer).map(Some)
}

/// An IP address and a port.
pub(super) fn socket_address<'de, D>(deserializer: D) -> Result<SocketAddr, D::Error>
where
    D: Deserializer<'de>,
{
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "is {text:?}: write an IP address and a port, such as \"127.0.0.1:7171\" or \"[::1]:7171\""
        ))
    })
}

/// A number of bytes.
pub(super) fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let Scalar(text) = Scalar::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!("is {text:?}: write a number of bytes, such as 1420"))
    })
}

/// A list of prefixes, or one string with commas.
pub(super) fn prefixes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let Words(words) = Words::deserialize(deserializer)?;
    let parse = |word: String| {
        word.parse().map_err(|_| {
            D::Error::custom(format!(
                "contains {word:?}: write each with its prefix length, such as \"10.8.0.1/24\""
            ))
        })
    };
    words.into_iter().map(parse).collect()
}

/// Like [`prefixes`], but none may contain every address.
pub(super) fn site_prefixes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<IpNet>, D::Error> {
    let sites = prefixes(deserializer)?;
    match sites.iter().find(|site| site.prefix_len() == 0) {
        Some(all) => Err(D::Error::custom(format!(
            "contains {all}, which is every address: write the networks behind peers, such as \"10.20.0.0/16\""
        ))),
        None => Ok(sites),
    }
}

/// A list of ports and ranges of ports.
pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ports, D::Error> {
    let Words(words) = Words::deserialize(deserializer)?;
    let parse = |word: String| {
        let (first, last) = word.split_once('-').unwrap_or((&word, &word));
        let range = first.parse::<u16>().ok().zip(last.parse().ok());
        range.filter(|(first, last)| 0 < *first && first <= last).ok_or_else(|| {
            D::Error::custom(format!(
                "contains {word:?}: write ports from 1 to 65535, or ranges such as \"5000-5010\""
            ))
        })
    };
    words.into_iter().map(parse).collect()
}

/// A list of IP protocols, by name or number.
pub(super) fn protocols<'de, D>(deserializer: D) -> Result<BTreeSet<u8>, D::Error>
where
    D: Deserializer<'de>,
{
    const NAMES: [(&str, u8); 7] = [
        ("ipip", 4),
        ("ipv6", 41),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("ospf", 89),
        ("sctp", 132),
    ];
    /// ICMP, TCP, UDP, ICMPv6: a packet shows whether it opens a flow.
    const JUDGED_BY_THE_PACKET: [u8; 4] = [1, 6, 17, 58];
    let Words(words) = Words::deserialize(deserializer)?;
    let parse = |word: String| {
        let named = NAMES.iter().find(|(name, _)| *name == word).map(|(_, number)| *number);
        let number = named.or_else(|| word.parse().ok());
        number.filter(|number| !JUDGED_BY_THE_PACKET.contains(number)).ok_or_else(|| {
            let names = NAMES.map(|(name, _)| name).join(", ");
            D::Error::custom(format!(
                "contains {word:?}: write {names}, or the number of another protocol than TCP, UDP \
                 and ICMP, which need not be listed"
            ))
        })
    };
    words.into_iter().map(parse).collect()
}

struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl Visitor<'_> for ScalarVisitor {
    type Value = Scalar;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one value")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
        Ok(Scalar(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
        Ok(Scalar(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
        Ok(Scalar(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
        Ok(Scalar(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
        Ok(Scalar(value.to_string()))
    }
}

struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordsVisitor;

        impl<'de> Visitor<'de> for WordsVisitor {
            type Value = Words;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Words, E> {
                let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
                Ok(Words(words.map(str::to_owned).collect()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(Scalar(word)) = list.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }

        deserializer.deserialize_any(WordsVisitor)
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

    #[test]
    fn fwmark_is_decimal_or_hexadecimal() {
        assert_eq!("0xca6c".parse(), Ok(Fwmark(51820)));
        assert_eq!("51820".parse(), Ok(Fwmark(51820)));
        assert!("ca6c".parse::<Fwmark>().is_err());
    }
}
