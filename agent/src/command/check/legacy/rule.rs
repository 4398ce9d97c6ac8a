//! What one rule of `iptables-legacy` asks of packets, and where it sends them. Pure.

use gatepost::dataplane::nft::{Datagrams, Link, Named, Way};

/// What rules ask of packets beyond what their way tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asks {
    /// The states of flows that they leave; all bits: they ask for none.
    pub states: u32,
    /// They ask for something else, too.
    pub others: bool,
    pub named: Named,
}

impl Asks {
    pub const NOTHING: Self = Self { states: u32::MAX, others: false, named: Named::Nothing };

    /// Whether all packets match.
    pub const fn is_nothing(self) -> bool {
        self.states == u32::MAX && !self.others
    }

    /// Of what two rules ask together.
    pub fn and(self, other: Self) -> Self {
        Self {
            states: self.states & other.states,
            others: self.others || other.others,
            named: self.named.max(other.named),
        }
    }
}

/// The state of a flow that was answered.
pub const ESTABLISHED: u32 = 2;
/// The state of a flow that begins.
pub const NEW: u32 = 8;
const INVALID: u32 = 1;

/// A rule in words.
pub type Rule = Vec<String>;

/// The words of a line. Quotes hold spaces.
pub fn words(line: &str) -> Rule {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// The chain or verdict that a rule leads to, and whether packets come back from it.
pub fn target(rule: &Rule) -> Option<(&str, bool)> {
    let at = rule.iter().position(|word| word == "-j" || word == "-g")?;
    Some((rule.get(at + 1)?, rule.get(at)? == "-j"))
}

/// What a rule asks; `None`: no packet of this way matches.
pub fn asks(rule: &Rule, way: Way, link: &str) -> Option<Asks> {
    let mut asks = Asks::NOTHING;
    let mut negated = false;
    for (at, option) in rule.iter().enumerate() {
        let value = rule.get(at + 1).map_or("", String::as_str);
        let found = match option.as_str() {
            "-j" | "-g" => break,
            "!" => {
                negated = true;
                continue;
            }
            "-i" => by_link(value, way.incoming, link, negated)?,
            "-o" => by_link(value, way.outgoing, link, negated)?,
            "-p" if way.wireguard.is_some() && !negated => by_protocol(value)?,
            "--dport" | "--dports" if !negated => by_port(value, port_to(way))?,
            "--sport" | "--sports" if !negated => by_port(value, port_from(way))?,
            "--dst-type" if !negated && way.outgoing == Link::Absent => by_address_type(value)?,
            "--ctstate" | "--state" if !negated => by_states(value)?,
            "-m" if KNOWN.contains(&value) => Asks::NOTHING,
            "--comment" => Asks::NOTHING,
            option if option.starts_with('-') => Asks { others: true, ..Asks::NOTHING },
            _ => continue,
        };
        negated = false;
        asks = asks.and(found);
    }
    Some(asks)
}

/// Extensions that ask nothing without one of their options.
const KNOWN: [&str; 7] = ["udp", "tcp", "conntrack", "state", "multiport", "addrtype", "comment"];

/// What is sent to this host has a destination of its own.
fn by_address_type(list: &str) -> Option<Asks> {
    list.split(',').any(|kind| kind == "LOCAL").then_some(Asks::NOTHING)
}

fn by_link(name: &str, at: Link, link: &str, negated: bool) -> Option<Asks> {
    let (is_ours, is_wild) = match name.strip_suffix('+') {
        Some(beginning) => (link.starts_with(beginning), true),
        None => (name == link, false),
    };
    let decided = |is: bool| (is != negated).then_some(Asks::NOTHING);
    match at {
        Link::Ours if is_ours && !negated => Some(Asks { named: Named::Us, ..Asks::NOTHING }),
        Link::Ours => decided(is_ours),
        Link::Absent => decided(false),
        Link::Another if (is_ours || name == "lo") && !is_wild => decided(false),
        Link::Another | Link::Unknown => Some(Asks { others: true, ..Asks::NOTHING }),
    }
}

fn by_protocol(name: &str) -> Option<Asks> {
    match name {
        "udp" | "17" => Some(Asks { named: Named::Protocol, ..Asks::NOTHING }),
        "all" => Some(Asks::NOTHING),
        _ => None,
    }
}

/// The port to which all packets of a way go.
const fn port_to(way: Way) -> Option<u16> {
    match way.wireguard {
        Some(Datagrams::To(port)) => Some(port),
        _ => None,
    }
}

/// The port from which all packets of a way come.
const fn port_from(way: Way) -> Option<u16> {
    match way.wireguard {
        Some(Datagrams::From(port)) => Some(port),
        _ => None,
    }
}

fn by_port(list: &str, port: Option<u16>) -> Option<Asks> {
    let Some(port) = port else { return Some(Asks { others: true, ..Asks::NOTHING }) };
    let number =
        |text: &str, default| if text.is_empty() { Some(default) } else { text.parse().ok() };
    let has = |range: &str| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        let bounds = number(first, 0).zip(number(last, u16::MAX));
        bounds.is_some_and(|(first, last)| (first..=last).contains(&port))
    };
    list.split(',').any(has).then_some(Asks { named: Named::Us, ..Asks::NOTHING })
}

/// Dropping what no packet of a working flow has harms none.
fn by_states(list: &str) -> Option<Asks> {
    let bit = |name: &str| match name {
        "INVALID" => INVALID,
        "ESTABLISHED" => ESTABLISHED,
        "RELATED" => 4,
        "NEW" => NEW,
        _ => 0,
    };
    let states = list.split(',').fold(0, |all, name| all | bit(name));
    (states & !INVALID != 0).then_some(Asks { states, ..Asks::NOTHING })
}
