//! Follows our packets through the chains of another program, and collects the rules that drop some.

use std::collections::BTreeSet;

use super::super::expr::{Expr, Rule};
use super::super::sys::{data, verdict};
use super::condition::{
    Ask, Compare, ESTABLISHED, Loaded, Match, NEW, comparison, in_range, is_invalid_only,
};
use super::extension::matches_extension;
use super::fate::Fate;
use super::way::{Datagrams, Link, Named, Way};
use crate::dataplane::nft::NftError;

/// Chains and sets of one table.
pub trait Table {
    fn rules(&mut self, chain: &str) -> Result<Vec<Rule>, NftError>;
    /// Keys, each with the verdict that a map has for it.
    fn elements(&mut self, set: &str) -> Result<Vec<Member>, NftError>;
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub key: Vec<u8>,
    pub verdict: Option<Verdict>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Go { chain: String, returns: bool },
    Return,
}

/// What becomes of packets that no condition of the way so far kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Some go on.
    Open,
    /// All have left the chain.
    Left,
    /// All were accepted or dropped.
    Decided,
}

/// How deep calls are followed; the kernel allows no more.
const DEPTH: usize = 16;
// linux/netfilter/nf_tables.h and nf_tables_compat.h
const LOOKUP_SET: u16 = 1;
const LOOKUP_REGISTER: u16 = 3;
const LOOKUP_FLAGS: u16 = 5;
const BITWISE_MASK: u16 = 4;
const IMMEDIATE_DATA: u16 = 2;
const TARGET_NAME: u16 = 1;
const FLOWTABLE_NAME: u16 = 1;

/// The rules that drop some packets of ours, each by what it asks of them.
pub struct Walk<'a, T> {
    pub table: &'a mut T,
    pub link: &'a str,
    /// In the order in which they were found.
    pub drops: Vec<String>,
    /// The flowtables to which rules add some packets' flows.
    pub flowtables: BTreeSet<String>,
    /// What is dropped without any condition is told, too.
    pub with_default: bool,
    /// Chains that were followed already this way: each is followed once for each kind of condition, and
    /// for what the rules before it name.
    seen: BTreeSet<(String, Way, Kind, Named)>,
    /// What was found on the present way.
    found: Found,
}

#[derive(Debug, Default)]
struct Found {
    /// A rule drops what no earlier one decided.
    drops_rest: bool,
    /// In these states packets pass, whatever else they are.
    accepted_states: u32,
    /// A rule that names us accepts some packets.
    accepts_named: bool,
}

/// What the rules on the way to a place ask of packets.
#[derive(Debug, Clone, Default)]
struct Path {
    asks: Vec<Ask>,
    named: Named,
    depth: usize,
}

/// Which conditions lead to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    None,
    States(u32),
    Other,
}

impl Path {
    fn add(&mut self, matches: Match) {
        match matches {
            Match::No | Match::Yes => {}
            Match::Named(named) => self.named = self.named.max(named),
            Match::Some(what) => self.asks.push(what),
            Match::OfPort(what) => {
                self.named = Named::Us;
                self.asks.push(what);
            }
        }
    }

    /// The states that the rules ask for, if they ask for nothing else.
    fn states(&self) -> Option<u32> {
        self.asks.iter().try_fold(u32::MAX, |all, ask| match ask {
            Ask::States(states) => Some(all & states),
            Ask::Other(_) => None,
        })
    }

    fn kind(&self) -> Kind {
        match (self.asks.is_empty(), self.states()) {
            (true, _) => Kind::None,
            (false, Some(states)) => Kind::States(states),
            (false, None) => Kind::Other,
        }
    }
}

impl<'a, T: Table> Walk<'a, T> {
    pub fn new(table: &'a mut T, link: &'a str) -> Self {
        let (drops, flowtables) = (Vec::new(), BTreeSet::new());
        let (seen, found) = (BTreeSet::new(), Found::default());
        Self { table, link, drops, flowtables, with_default: false, seen, found }
    }

    /// Follows packets that go this way through a base chain. `drops`: its policy drops the rest.
    pub fn follow(&mut self, base: &str, way: Way, drops: bool) -> Result<Fate, NftError> {
        self.found = Found::default();
        let end = self.chain(base, way, &Path::default())?;
        let by_policy = end != End::Decided && drops;
        if by_policy && self.with_default {
            self.drops.push(described(way, &[]));
        }
        let Found { drops_rest, accepted_states, accepts_named } = self.found;
        let accepts = |states| accepted_states & states == states;
        Ok(match by_policy || drops_rest {
            true if !accepts(NEW | ESTABLISHED) => {
                Fate::Dropped { accepts_answers: accepts(ESTABLISHED), accepts_some: accepts_named }
            }
            _ => Fate::Passes,
        })
    }

    fn chain(&mut self, name: &str, way: Way, path: &Path) -> Result<End, NftError> {
        let place = (name.to_owned(), way, path.kind(), path.named);
        if path.depth > DEPTH || !self.seen.insert(place) {
            return Ok(End::Open);
        }
        for rule in self.table.rules(name)? {
            match self.rule(&rule, way, path)? {
                End::Open => {}
                End::Left => return Ok(End::Open),
                End::Decided => return Ok(End::Decided),
            }
        }
        Ok(End::Open)
    }

    fn rule(&mut self, rule: &[Expr], way: Way, from: &Path) -> Result<End, NftError> {
        let mut path = from.clone();
        let certain = path.asks.len();
        let (mut loaded, mut mask) = (None, None);
        for expr in rule {
            if let Some(load) = Loaded::by(expr) {
                (loaded, mask) = (Some(load), None);
                continue;
            }
            let matches = match expr.name() {
                "bitwise" => {
                    mask = expr.find(&[BITWISE_MASK, data::VALUE]).map(<[u8]>::to_vec);
                    continue;
                }
                "cmp" => compare(loaded.as_ref(), mask.as_deref(), way, self.link, expr),
                "lookup" => {
                    let Some(set) = expr.text(&[LOOKUP_SET]) else { continue };
                    if expr.find(&[LOOKUP_REGISTER]).is_some() {
                        let all = path.asks.len() == certain;
                        return self.map(set, loaded.as_ref(), way, &path, all);
                    }
                    let inverted = expr.find(&[LOOKUP_FLAGS]).is_some_and(|it| it.ends_with(&[1]));
                    self.contains(set, loaded.as_ref(), way, !inverted)?
                }
                "match" => matches_extension(expr, way),
                "range" => in_range(loaded.as_ref(), way, expr),
                "flow_offload" => {
                    let name = expr.text(&[FLOWTABLE_NAME]);
                    self.flowtables.extend(name.map(str::to_owned));
                    continue;
                }
                "limit" | "quota" | "connlimit" | "osf" | "inner" => {
                    Match::Some(Ask::Other(expr.name().to_owned()))
                }
                _ => Match::Yes,
            };
            if matches == Match::No {
                return Ok(End::Open);
            }
            path.add(matches);
            if let Some(verdict) = verdict_of(expr) {
                let all = path.asks.len() == certain;
                return self.decide(&verdict, way, &path, all);
            }
        }
        Ok(End::Open)
    }

    /// `all`: the verdict is for all packets that came here.
    fn decide(
        &mut self,
        verdict: &Verdict,
        way: Way,
        path: &Path,
        all: bool,
    ) -> Result<End, NftError> {
        let end = match verdict {
            Verdict::Accept => {
                self.found.accepted_states |= path.states().unwrap_or_default();
                // WireGuard sends wherever a peer is: what is accepted by link or address may be that.
                let may_be_sent = matches!(way.wireguard, Some(Datagrams::From(_)));
                self.found.accepts_named |= path.named == Named::Us || may_be_sent;
                End::Decided
            }
            Verdict::Return => End::Left,
            Verdict::Drop => {
                let is_default = path.asks.is_empty();
                self.found.drops_rest |= is_default;
                // Other datagrams of the host are no matter of ours.
                let is_ours = way.wireguard.is_none() || path.named != Named::Nothing;
                if is_ours && (!is_default || self.with_default) {
                    self.drops.push(described(way, &path.asks));
                }
                End::Decided
            }
            Verdict::Go { chain, returns } => {
                let path = Path { depth: path.depth + 1, ..path.clone() };
                match self.chain(chain, way, &path)? {
                    End::Open if !returns => End::Left,
                    end => end,
                }
            }
        };
        Ok(if all { end } else { End::Open })
    }

    /// A verdict map: each of its keys may decide.
    fn map(
        &mut self,
        map: &str,
        loaded: Option<&Loaded>,
        way: Way,
        from: &Path,
        all: bool,
    ) -> Result<End, NftError> {
        for Member { key, verdict } in self.table.elements(map)? {
            let Some(verdict) = verdict else { continue };
            let matches = loaded.map(|it| it.compare(way, self.link, &key, Compare::Equal));
            let mut path = from.clone();
            let sure = matches!(matches, Some(Match::Yes | Match::Named(_)));
            match matches {
                Some(Match::No) => continue,
                Some(matches) => path.add(matches),
                None => path.asks.push(Ask::Other(format!("map {map}"))),
            }
            let end = self.decide(&verdict, way, &path, sure && all)?;
            if end != End::Open {
                return Ok(end);
            }
        }
        Ok(End::Open)
    }

    fn contains(
        &mut self,
        set: &str,
        loaded: Option<&Loaded>,
        way: Way,
        equal: bool,
    ) -> Result<Match, NftError> {
        let sign = if equal { "" } else { "not " };
        let some = Match::Some(Ask::Other(format!("{sign}in set {set}")));
        let Some(loaded) = loaded.filter(|_| !set.is_empty()) else { return Ok(some) };
        if !loaded.is_known(way) {
            return Ok(some);
        }
        let (mut matches, mut states) = (Match::No, 0);
        for Member { key, .. } in self.table.elements(set)? {
            match loaded.compare(way, self.link, &key, Compare::Equal) {
                found @ (Match::Yes | Match::Named(_)) => {
                    return Ok(if equal { found } else { Match::No });
                }
                Match::Some(Ask::States(state)) => states |= state,
                found @ (Match::Some(_) | Match::OfPort(_)) => matches = found,
                Match::No => {}
            }
        }
        Ok(match matches {
            _ if states != 0 && equal => Match::Some(Ask::States(states)),
            _ if states != 0 => some,
            Match::No if !equal => Match::Yes,
            other => other,
        })
    }
}

fn compare(
    loaded: Option<&Loaded>,
    mask: Option<&[u8]>,
    way: Way,
    link: &str,
    expr: &Expr,
) -> Match {
    let (Some(loaded), Some((value, how))) = (loaded, comparison(expr)) else {
        return Match::Some(Ask::Other("a comparison".into()));
    };
    match (loaded, mask) {
        // `ct state established` is a mask and a comparison with zero.
        (Loaded::CtState, Some(mask)) if how == Compare::Other => {
            if is_invalid_only(mask) {
                return Match::No;
            }
            let states = mask.try_into().map_or(0, u32::from_ne_bytes);
            Match::Some(Ask::States(states))
        }
        (Loaded::CtState | Loaded::Field(_), Some(_)) if loaded.is_known(way) => {
            Match::Some(Ask::Other("a comparison".into()))
        }
        _ => loaded.compare(way, link, value, how),
    }
}

/// What an expression decides; `None`: nothing.
fn verdict_of(expr: &Expr) -> Option<Verdict> {
    match expr.name() {
        "reject" => Some(Verdict::Drop),
        "target" => {
            let drops = matches!(expr.text(&[TARGET_NAME]), Some("DROP" | "REJECT"));
            drops.then_some(Verdict::Drop)
        }
        "immediate" => {
            let code = expr.find(&[IMMEDIATE_DATA, data::VERDICT, data::VERDICT_CODE])?;
            let chain = expr.text(&[IMMEDIATE_DATA, data::VERDICT, data::VERDICT_CHAIN]);
            verdict_with(i32::from_be_bytes(code.try_into().ok()?), chain)
        }
        _ => None,
    }
}

/// A verdict by its code; `None`: packets go on, as with a queue.
pub fn verdict_with(code: i32, chain: Option<&str>) -> Option<Verdict> {
    const RETURN: i32 = -5;
    let go = |returns| Some(Verdict::Go { chain: chain?.to_owned(), returns });
    match code {
        verdict::DROP => Some(Verdict::Drop),
        verdict::ACCEPT => Some(Verdict::Accept),
        verdict::JUMP => go(true),
        verdict::GOTO => go(false),
        RETURN => Some(Verdict::Return),
        _ => None,
    }
}

fn described(way: Way, asks: &[Ask]) -> String {
    let who = match (way.wireguard, way.incoming) {
        (Some(Datagrams::To(_)), _) => "to WireGuard",
        (Some(Datagrams::From(_)), _) => "by WireGuard",
        (None, Link::Ours) => "from peers",
        _ => "to peers",
    };
    let asks: Vec<_> = asks.iter().map(Ask::to_string).collect();
    match asks.as_slice() {
        [] => format!("{who}: what no earlier rule lets pass"),
        asks => format!("{who}: {}", asks.join(", ")),
    }
}
