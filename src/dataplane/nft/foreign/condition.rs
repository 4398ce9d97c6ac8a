//! What a rule of another program asks of a packet, as far as its links tell whether ours match. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::expr::Expr;
use super::super::sys::data;

/// By which link a packet comes or goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Ours,
    Another,
    /// None: the host itself sends the packet.
    Absent,
    /// Not routed yet, or not known at that hook.
    Unknown,
}

/// Packets of ours that a hook sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub incoming: Link,
    pub outgoing: Link,
}

/// Whether packets match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    No,
    Yes,
    /// Some may: those that this describes.
    Some(String),
}

/// What the last expression loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loaded {
    InName,
    OutName,
    CtState,
    Field(String),
}

// Attributes of expressions in linux/netfilter/nf_tables.h
const LOAD_REGISTER: u16 = 1;
const LOAD_KEY: u16 = 2;
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

impl Loaded {
    /// What an expression loads; `None`: nothing.
    pub fn by(expr: &Expr) -> Option<Self> {
        let number = |path| Some(u32::from_be_bytes(expr.find(&[path])?.try_into().ok()?));
        let key = number(LOAD_KEY);
        match expr.name() {
            // `meta` and `ct` also set values, from another register.
            "meta" | "ct" if expr.find(&[LOAD_REGISTER]).is_none() => None,
            "meta" => Some(match key? {
                6 => Self::InName,
                7 => Self::OutName,
                3 => Self::Field("mark".into()),
                15 => Self::Field("family".into()),
                16 => Self::Field("protocol".into()),
                key => Self::Field(format!("meta {key}")),
            }),
            "ct" => Some(match key? {
                0 => Self::CtState,
                1 => Self::Field("ct direction".into()),
                3 => Self::Field("ct mark".into()),
                key => Self::Field(format!("ct {key}")),
            }),
            "payload" => Some(Self::Field(match (key?, number(3)?, number(4)?) {
                (1, 12, 1..=4) | (1, 8, 16) => "source".into(),
                (1, 16, 1..=4) | (1, 24, 16) => "destination".into(),
                (2, 0, 2) => "source port".into(),
                (2, 2, 2) => "port".into(),
                (base, offset, _) => format!("payload {base},{offset}"),
            })),
            other @ ("fib" | "rt" | "socket" | "exthdr" | "numgen" | "hash") => {
                Some(Self::Field(other.into()))
            }
            _ => None,
        }
    }

    /// Whether packets that go this way have the value, or with `equal` false have it not.
    pub fn compare(&self, way: Way, link: &str, value: &[u8], equal: bool) -> Match {
        let (at, word) = match self {
            Self::InName => (way.incoming, "iifname"),
            Self::OutName => (way.outgoing, "oifname"),
            Self::CtState => return Match::Some("ct state".into()),
            Self::Field(field) => {
                let sign = if equal { "" } else { "not " };
                return Match::Some(format!("{field} {sign}{}", shown(field, value)));
            }
        };
        let name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        let is_wild = !value.contains(&0) && value.len() < 16;
        let is_ours = if is_wild { link.starts_with(&name) } else { link == name };
        let decided = |is| if is == equal { Match::Yes } else { Match::No };
        let star = if is_wild { "*" } else { "" };
        let sign = if equal { "" } else { "!= " };
        match at {
            Link::Ours => decided(is_ours),
            Link::Absent => decided(false),
            Link::Another if is_ours && !is_wild => decided(false),
            Link::Another | Link::Unknown => Match::Some(format!("{word} {sign}{name}{star}")),
        }
    }
}

/// A value in words.
fn shown(field: &str, value: &[u8]) -> String {
    match (field, value) {
        ("source" | "destination", [a, b, c, d]) => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
        ("source" | "destination", [a, b, rest @ ..]) if rest.len() == 14 => {
            let mut octets = [0; 16];
            octets[..2].copy_from_slice(&[*a, *b]);
            octets[2..].copy_from_slice(rest);
            Ipv6Addr::from(octets).to_string()
        }
        // A prefix of whole bytes.
        ("source" | "destination", prefix) => {
            let octets: Vec<_> = prefix.iter().map(u8::to_string).collect();
            format!("{}.*", octets.join("."))
        }
        ("port" | "source port", [high, low]) => u16::from_be_bytes([*high, *low]).to_string(),
        ("protocol", [1]) => "icmp".into(),
        ("protocol", [6]) => "tcp".into(),
        ("protocol", [17]) => "udp".into(),
        ("protocol", [58]) => "icmpv6".into(),
        ("family", [2]) => "ipv4".into(),
        ("family", [10]) => "ipv6".into(),
        (_, bytes) => {
            let digits: String = bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect();
            format!("0x{digits}")
        }
    }
}

/// A connection's state that no packet of a working flow has: dropping it harms none.
pub fn is_invalid_only(mask: &[u8]) -> bool {
    const INVALID_OR_UNTRACKED: u32 = 0x41;
    let mask = mask.try_into().map_or(u32::MAX, u32::from_ne_bytes);
    mask != 0 && mask & !INVALID_OR_UNTRACKED == 0
}

/// Whether packets match an extension of iptables.
pub fn matches_extension(expr: &Expr) -> Match {
    const STATE_MASK_AT: usize = 150;
    const INVALID: u8 = 1;
    let name = expr.text(&[MATCH_NAME]).unwrap_or_default();
    let info = expr.find(&[MATCH_INFO]).unwrap_or_default();
    // `struct xt_state_info`, and `state_mask` of `struct xt_conntrack_mtinfo3`.
    let states = match name {
        "state" => info.first(),
        "conntrack" => info.get(STATE_MASK_AT),
        "comment" => return Match::Yes,
        _ => None,
    };
    if states == Some(&INVALID) { Match::No } else { Match::Some(format!("match {name}")) }
}

/// The value of a `cmp`, and whether it asks for equality.
pub fn comparison(expr: &Expr) -> Option<(&[u8], bool)> {
    const CMP_OP: u16 = 2;
    const CMP_DATA: u16 = 3;
    let op = u32::from_be_bytes(expr.find(&[CMP_OP])?.try_into().ok()?);
    Some((expr.find(&[CMP_DATA, data::VALUE])?, op == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(loaded: &Loaded, incoming: Link, value: &[u8], equal: bool) -> Match {
        loaded.compare(Way { incoming, outgoing: Link::Unknown }, "gatepost0", value, equal)
    }

    #[test]
    fn names_of_links_decide_where_the_way_is_known() {
        let ours = b"gatepost0\0\0\0\0\0\0\0";
        let docker = b"docker0\0\0\0\0\0\0\0\0\0";
        for (incoming, value, equal, matches) in [
            (Link::Ours, &ours[..], true, Match::Yes),
            (Link::Ours, &ours[..], false, Match::No),
            (Link::Ours, &docker[..], false, Match::Yes),
            (Link::Ours, b"gate", true, Match::Yes),
            (Link::Ours, b"docker", true, Match::No),
            (Link::Another, &ours[..], true, Match::No),
            (Link::Another, &docker[..], true, Match::Some("iifname docker0".into())),
            (Link::Another, b"gate", false, Match::Some("iifname != gate*".into())),
            (Link::Absent, &docker[..], false, Match::Yes),
        ] {
            let found = compare(&Loaded::InName, incoming, value, equal);
            assert_eq!(found, matches, "{incoming:?} {value:?} {equal}");
        }
    }

    #[test]
    fn values_are_shown_in_words() {
        let field = |field: &str, value: &[u8]| shown(field, value);
        assert_eq!(field("destination", &[172, 17, 0, 2]), "172.17.0.2");
        assert_eq!(field("source", &[10, 8]), "10.8.*");
        assert_eq!(field("port", &[1, 187]), "443");
        assert_eq!(field("mark", &0x20000u32.to_le_bytes()), "0x00020000");
    }
}
