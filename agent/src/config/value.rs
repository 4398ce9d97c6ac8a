//! Values with units. Each may be a string, because environment variables are.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use gatepost::model::{FailClosed, MarkBit, NflogGroup, Ports};
use ipnet::IpNet;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

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
    fn fwmark_is_decimal_or_hexadecimal() {
        assert_eq!("0xca6c".parse(), Ok(Fwmark(51820)));
        assert_eq!("51820".parse(), Ok(Fwmark(51820)));
        assert!("ca6c".parse::<Fwmark>().is_err());
    }
}
