//! What a rule of another program asks of a packet, as far as its links tell whether ours match. Pure.

use std::fmt;
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
    /// They are datagrams to this port. `None`: they may be anything.
    pub udp_port: Option<u16>,
}

impl Way {
    /// What peers send through the gateway.
    pub const FROM_PEERS: Self = Self::between(Link::Ours, Link::Another);
    /// What others send to peers through the gateway.
    pub const TO_PEERS: Self = Self::between(Link::Another, Link::Ours);

    pub const fn between(incoming: Link, outgoing: Link) -> Self {
        Self { incoming, outgoing, udp_port: None }
    }

    /// What other hosts send to WireGuard's port.
    pub const fn of_wireguard(port: u16) -> Self {
        Self { udp_port: Some(port), ..Self::between(Link::Another, Link::Absent) }
    }
}

/// Whether packets match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    No,
    /// All do.
    Yes,
    /// All do, because the rule names our link, or the port or protocol of these packets.
    Named,
    /// Some may: those that this describes.
    Some(Ask),
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
    fn other(text: impl Into<String>) -> Match {
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
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

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
                    return if how.holds(&known, value) { Match::Named } else { Match::No };
                }
                let sign = if equal { "" } else { "not " };
                return Ask::other(format!("{field} {sign}{}", shown(field, value)));
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
            Link::Ours if is_ours && equal => Match::Named,
            Link::Ours => decided(is_ours),
            Link::Absent => decided(false),
            Link::Another if is_ours && !is_wild => decided(false),
            Link::Another | Link::Unknown => Ask::other(format!("{word} {sign}{name}{star}")),
        }
    }
}

/// What all packets of a way have in a field.
fn known(field: &str, way: Way) -> Option<Vec<u8>> {
    const UDP: u8 = 17;
    match (field, way.udp_port?) {
        ("protocol", _) => Some(vec![UDP]),
        ("port", port) => Some(port.to_be_bytes().to_vec()),
        _ => None,
    }
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

const INVALID: u32 = 1;

/// A connection's state that no packet of a working flow has: dropping it harms none.
pub fn is_invalid_only(mask: &[u8]) -> bool {
    const INVALID_OR_UNTRACKED: u32 = INVALID | 0x40;
    let mask = mask.try_into().map_or(u32::MAX, u32::from_ne_bytes);
    mask != 0 && mask & !INVALID_OR_UNTRACKED == 0
}

/// Whether packets match an extension of iptables.
pub fn matches_extension(expr: &Expr, way: Way) -> Match {
    let name = expr.text(&[MATCH_NAME]).unwrap_or_default();
    let info = expr.find(&[MATCH_INFO]).unwrap_or_default();
    let states = match name {
        "comment" => return Match::Yes,
        // `struct xt_state_info`
        "state" => info.first().copied().map(u32::from),
        "conntrack" => conntrack_states(info),
        "udp" | "tcp" | "multiport" => return of_port(name, info, way.udp_port),
        _ => None,
    };
    match states {
        Some(INVALID) => Match::No,
        Some(states) => Match::Some(Ask::States(states)),
        None => Ask::other(format!("match {name}")),
    }
}

/// The states for which `struct xt_conntrack_mtinfo3` asks, if it asks for nothing else.
fn conntrack_states(info: &[u8]) -> Option<u32> {
    const FLAGS_AT: usize = 146;
    const INVERTED_AT: usize = 148;
    const STATES_AT: usize = 150;
    // XT_CONNTRACK_STATE and XT_CONNTRACK_STATE_ALIAS
    const STATE: u16 = 1 | 1 << 13;
    let asks_only_that = word(info, FLAGS_AT)? & !STATE == 0 && word(info, INVERTED_AT)? & 1 == 0;
    asks_only_that.then_some(u32::from(word(info, STATES_AT)?))
}

/// `iptables` compares ports by structures of its own, in host order: `struct xt_udp` is a source and
/// a destination range and what is inverted, `struct xt_multiport_v1` flags, a count and the ports.
fn of_port(name: &str, info: &[u8], port: Option<u16>) -> Match {
    const DESTINATION: u8 = 1;
    let any = Ask::other(format!("match {name}"));
    let Some(port) = port else { return any };
    match name {
        "tcp" => Match::No,
        "udp" if info.starts_with(&[0, 0, 0xff, 0xff]) && info.get(8) == Some(&0) => {
            let range = word(info, 4).zip(word(info, 6)).map(|(first, last)| first..=last);
            match range {
                Some(range) if range.contains(&port) => Match::Named,
                Some(_) => Match::No,
                None => any,
            }
        }
        "multiport" if info.first() == Some(&DESTINATION) => {
            let count = info.get(1).copied().unwrap_or_default();
            let is_named = (0..usize::from(count)).any(|n| word(info, 2 + 2 * n) == Some(port));
            if is_named && info.last() == Some(&0) { Match::Named } else { any }
        }
        _ => any,
    }
}

fn word(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(loaded: &Loaded, incoming: Link, value: &[u8], how: Compare) -> Match {
        let way = Way { incoming, outgoing: Link::Unknown, udp_port: None };
        loaded.compare(way, "gatepost0", value, how)
    }

    #[test]
    fn names_of_links_decide_where_the_way_is_known() {
        let ours = b"gatepost0\0\0\0\0\0\0\0";
        let docker = b"docker0\0\0\0\0\0\0\0\0\0";
        let (is, not) = (Compare::Equal, Compare::Other);
        for (incoming, value, how, matches) in [
            (Link::Ours, &ours[..], is, Match::Named),
            (Link::Ours, &ours[..], not, Match::No),
            (Link::Ours, &docker[..], not, Match::Yes),
            (Link::Ours, b"gate", is, Match::Named),
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
    fn ports_in_the_structures_of_iptables_are_found() {
        let words =
            |words: &[u16]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
        let of = |name: &str, info: &[u8], port| of_port(name, info, Some(port));
        let udp = words(&[0, u16::MAX, 51820, 51830, 0]);
        assert_eq!(of("udp", &udp, 51820), Match::Named);
        assert_eq!(of("udp", &udp, 51831), Match::No);
        assert_eq!(of("tcp", &udp, 51820), Match::No);
        assert!(matches!(of_port("udp", &udp, None), Match::Some(_)), "any packet");
        assert!(matches!(of("udp", &[], 7), Match::Some(_)));
        let multiport = [vec![1, 2], words(&[53, 51820, 7]), vec![0]].concat();
        assert_eq!(of("multiport", &multiport, 51820), Match::Named);
        assert!(matches!(of("multiport", &multiport, 7), Match::Some(_)), "it counts two");
        assert!(matches!(of("multiport", &[1, 200], 7), Match::Some(_)));
    }

    #[test]
    fn states_of_iptables_count_if_it_asks_for_nothing_else() {
        let asks = |flags: u16, inverted: u16, states: u16| {
            let mut info = vec![0; 160];
            for (at, word) in [(146, flags), (148, inverted), (150, states)] {
                info[at..at + 2].copy_from_slice(&word.to_ne_bytes());
            }
            conntrack_states(&info)
        };
        assert_eq!(asks(1, 0, 6), Some(6));
        assert_eq!(asks(1 | 1 << 13, 0, 2), Some(2));
        assert_eq!(asks(1, 1, 6), None, "inverted");
        assert_eq!(asks(1 | 1 << 12, 0, 6), None, "a direction, too");
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
