//! What a rule of another program asks of a packet, as far as its links tell whether ours match. Pure.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::super::expr::Expr;
use super::super::sys::data;
use super::way::{Datagrams, Link, Named, Way};

/// Whether packets match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    No,
    /// All do.
    Yes,
    /// All do, because the rule names something about them.
    Named(Named),
    /// Some may: those that this describes.
    Some(Ask),
    /// Some may, and the rule names their port.
    OfPort(Ask),
}

/// What a rule asks of packets beyond what their way tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Their flow is in one of these states: bits of `enum ip_conntrack_info`, as nftables and iptables
    /// count them.
    States(u32),
    Other(String),
}

/// The state of a flow that was answered.
pub const ESTABLISHED: u32 = 2;
/// The state of a flow that begins.
pub const NEW: u32 = 8;

impl Ask {
    pub(super) fn other(text: impl Into<String>) -> Match {
        Match::Some(Self::Other(text.into()))
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::States(_) => f.write_str("ct state"),
            Self::Other(text) => f.write_str(text),
        }
    }
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

/// A link's name, padded with zero bytes. A longer value is a concatenation.
const NAME_BYTES: usize = 16;

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
                (1, 9, 1) | (1, 6, 1) => "protocol".into(),
                (1, 12, 1..=4) | (1, 8, 16) => "source".into(),
                (1, 16, 1..=4) | (1, 24, 16) => "destination".into(),
                (2, 0, 2) => "source port".into(),
                (2, 2, 2) => "port".into(),
                (2, 0, 4) => "ports".into(),
                (base, offset, _) => format!("payload {base},{offset}"),
            })),
            other @ ("fib" | "rt" | "socket" | "exthdr" | "numgen" | "hash") => {
                Some(Self::Field(other.into()))
            }
            _ => None,
        }
    }

    /// Whether the values of a set tell more than that packets may be in it.
    pub fn is_known(&self, way: Way) -> bool {
        match self {
            Self::InName | Self::OutName | Self::CtState => true,
            Self::Field(field) => known(field, way).is_some(),
        }
    }

    /// Whether packets that go this way have a value that compares so with this one.
    pub fn compare(&self, way: Way, link: &str, value: &[u8], how: Compare) -> Match {
        let equal = how == Compare::Equal;
        let (at, word) = match self {
            Self::InName => (way.incoming, "iifname"),
            Self::OutName => (way.outgoing, "oifname"),
            Self::CtState => return of_states(value, equal),
            Self::Field(field) => {
                if let Some(known) = known(field, way) {
                    return if how.holds(&known, value) { names(field, how) } else { Match::No };
                }
                let sign = if equal { "" } else { "not " };
                let ask = Ask::Other(format!("{field} {sign}{}", shown(field, value)));
                let has_port = match way.wireguard {
                    Some(Datagrams::To(port)) => value.get(2..).map(|it| it == port.to_be_bytes()),
                    Some(Datagrams::From(port)) => {
                        value.get(..2).map(|it| it == port.to_be_bytes())
                    }
                    None => None,
                };
                return match has_port.filter(|_| equal && field == "ports") {
                    Some(true) => Match::OfPort(ask),
                    Some(false) => Match::No,
                    None => Match::Some(ask),
                };
            }
        };
        if value.len() > NAME_BYTES {
            return Ask::other(format!("{word} with others"));
        }
        let name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        let is_wild = !value.contains(&0) && value.len() < NAME_BYTES;
        let is_ours = if is_wild { link.starts_with(&name) } else { link == name };
        let decided = |is| if is == equal { Match::Yes } else { Match::No };
        let star = if is_wild { "*" } else { "" };
        let sign = if equal { "" } else { "!= " };
        match at {
            Link::Ours if is_ours && equal => Match::Named(Named::Us),
            Link::Ours => decided(is_ours),
            Link::Absent => decided(false),
            Link::Another if (is_ours || name == "lo") && !is_wild => decided(false),
            Link::Another | Link::Unknown => Ask::other(format!("{word} {sign}{name}{star}")),
        }
    }
}

/// What all packets of a way have in a field.
fn known(field: &str, way: Way) -> Option<Vec<u8>> {
    const UDP: u8 = 17;
    match (field, way.wireguard?) {
        ("protocol", _) => Some(vec![UDP]),
        ("port", Datagrams::To(port)) | ("source port", Datagrams::From(port)) => {
            Some(port.to_be_bytes().to_vec())
        }
        _ => None,
    }
}

/// What a rule names that compares a known field so.
fn names(field: &str, how: Compare) -> Match {
    let is_ours = field != "protocol" && how != Compare::Other;
    Match::Named(if is_ours { Named::Us } else { Named::Protocol })
}

/// Flows in exactly this state, or with `equal` false in none of it.
fn of_states(value: &[u8], equal: bool) -> Match {
    if equal && is_invalid_only(value) {
        return Match::No;
    }
    match value.try_into().map(u32::from_ne_bytes) {
        Ok(states) if equal => Match::Some(Ask::States(states)),
        _ => Ask::other("ct state"),
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

pub const INVALID: u32 = 1;

/// A connection's state that no packet of a working flow has: dropping it harms none.
pub fn is_invalid_only(mask: &[u8]) -> bool {
    const INVALID_OR_UNTRACKED: u32 = INVALID | 0x40;
    let mask = mask.try_into().map_or(u32::MAX, u32::from_ne_bytes);
    mask != 0 && mask & !INVALID_OR_UNTRACKED == 0
}

/// How a value of a packet must compare with a rule's (`enum nft_cmp_ops`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal,
    Other,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Compare {
    fn holds(self, found: &[u8], value: &[u8]) -> bool {
        match self {
            Self::Equal => found == value,
            Self::Other => found != value,
            Self::Less => found < value,
            Self::AtMost => found <= value,
            Self::More => found > value,
            Self::AtLeast => found >= value,
        }
    }
}

/// The value of a `cmp`, and how it compares.
pub fn comparison(expr: &Expr) -> Option<(&[u8], Compare)> {
    const CMP_OP: u16 = 2;
    const CMP_DATA: u16 = 3;
    const ALL: [Compare; 6] = [
        Compare::Equal,
        Compare::Other,
        Compare::Less,
        Compare::AtMost,
        Compare::More,
        Compare::AtLeast,
    ];
    let op = u32::from_be_bytes(expr.find(&[CMP_OP])?.try_into().ok()?);
    Some((expr.find(&[CMP_DATA, data::VALUE])?, *ALL.get(usize::try_from(op).ok()?)?))
}

/// Whether packets have a value within the bounds of a `range`, or outside of them.
pub fn in_range(loaded: Option<&Loaded>, way: Way, expr: &Expr) -> Match {
    const OP: u16 = 2;
    const FROM: u16 = 3;
    const TO: u16 = 4;
    const OUTSIDE: &[u8] = &[0, 0, 0, 1];
    let bound = |path: u16| expr.find(&[path, data::VALUE]);
    let (Some(Loaded::Field(field)), Some((from, to))) = (loaded, bound(FROM).zip(bound(TO)))
    else {
        return Ask::other("range");
    };
    let Some(known) = known(field, way) else { return Ask::other("range") };
    let is_inside = Compare::AtLeast.holds(&known, from) && Compare::AtMost.holds(&known, to);
    match (is_inside, expr.find(&[OP]) == Some(OUTSIDE)) {
        (true, false) => names(field, Compare::Equal),
        (false, true) => names(field, Compare::Other),
        _ => Match::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(loaded: &Loaded, incoming: Link, value: &[u8], how: Compare) -> Match {
        let way = Way { incoming, outgoing: Link::Unknown, wireguard: None };
        loaded.compare(way, "gatepost0", value, how)
    }

    #[test]
    fn names_of_links_decide_where_the_way_is_known() {
        let ours = b"gatepost0\0\0\0\0\0\0\0";
        let docker = b"docker0\0\0\0\0\0\0\0\0\0";
        let (is, not) = (Compare::Equal, Compare::Other);
        for (incoming, value, how, matches) in [
            (Link::Ours, &ours[..], is, Match::Named(Named::Us)),
            (Link::Ours, &ours[..], not, Match::No),
            (Link::Ours, &docker[..], not, Match::Yes),
            (Link::Ours, b"gate", is, Match::Named(Named::Us)),
            (Link::Ours, b"docker", is, Match::No),
            (Link::Another, &ours[..], is, Match::No),
            (Link::Another, &docker[..], is, Ask::other("iifname docker0")),
            (Link::Another, b"gate", not, Ask::other("iifname != gate*")),
            (Link::Absent, &docker[..], not, Match::Yes),
        ] {
            let found = compare(&Loaded::InName, incoming, value, how);
            assert_eq!(found, matches, "{incoming:?} {value:?} {how:?}");
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
