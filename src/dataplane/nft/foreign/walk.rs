//! Follows our packets through the chains of another program, and collects the rules that drop some.

use std::collections::BTreeSet;

use super::super::expr::{Expr, Rule};
use super::super::sys::{data, verdict};
use super::condition::{Link, Loaded, Match, Way, comparison, is_invalid_only, matches_extension};
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

/// The rules that drop some packets of ours, each by what it asks of them.
pub struct Walk<'a, T> {
    pub table: &'a mut T,
    pub link: &'a str,
    /// In the order in which they were found.
    pub drops: Vec<String>,
    /// What a base chain drops by default is told, too.
    pub with_default: bool,
    /// Chains that were followed already this way: each is followed once.
    seen: BTreeSet<(String, Way)>,
}

impl<'a, T: Table> Walk<'a, T> {
    pub fn new(table: &'a mut T, link: &'a str) -> Self {
        Self { table, link, drops: Vec::new(), with_default: false, seen: BTreeSet::new() }
    }

    /// Follows packets that go this way through a base chain. `drops`: its policy drops the rest.
    pub fn follow(&mut self, base: &str, way: Way, drops: bool) -> Result<(), NftError> {
        let end = self.chain(base, way, &[], 0)?;
        if end != End::Decided && drops && self.with_default {
            self.drops.push(described(way, &[]));
        }
        Ok(())
    }

    fn chain(
        &mut self,
        name: &str,
        way: Way,
        asked: &[String],
        depth: usize,
    ) -> Result<End, NftError> {
        if depth > DEPTH || !self.seen.insert((name.to_owned(), way)) {
            return Ok(End::Open);
        }
        let rules = self.table.rules(name)?;
        for (number, rule) in rules.iter().enumerate() {
            let is_default = !self.with_default && depth == 0 && number + 1 == rules.len();
            match self.rule(rule, way, asked, (depth, is_default))? {
                End::Open => {}
                End::Left => return Ok(End::Open),
                End::Decided => return Ok(End::Decided),
            }
        }
        Ok(End::Open)
    }

    fn rule(
        &mut self,
        rule: &[Expr],
        way: Way,
        asked: &[String],
        (depth, is_default): (usize, bool),
    ) -> Result<End, NftError> {
        let mut asks = asked.to_vec();
        let certain = asks.len();
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
                        let all = asks.len() == certain;
                        return self.map(set, loaded.as_ref(), way, &asks, (depth, all));
                    }
                    let inverted = expr.find(&[LOOKUP_FLAGS]).is_some_and(|it| it.ends_with(&[1]));
                    self.contains(set, loaded.as_ref(), way, !inverted)?
                }
                "match" => matches_extension(expr),
                "limit" | "range" | "quota" | "connlimit" | "osf" | "inner" => {
                    Match::Some(expr.name().to_owned())
                }
                _ => Match::Yes,
            };
            match matches {
                Match::No => return Ok(End::Open),
                Match::Yes => {}
                Match::Some(what) => asks.push(what),
            }
            if let Some(verdict) = verdict_of(expr) {
                let all = asks.len() == certain;
                return self.decide(&verdict, way, &asks, (depth, all && is_default), all);
            }
        }
        Ok(End::Open)
    }

    /// `all`: the verdict is for all packets that came here.
    fn decide(
        &mut self,
        verdict: &Verdict,
        way: Way,
        asks: &[String],
        (depth, is_default): (usize, bool),
        all: bool,
    ) -> Result<End, NftError> {
        let end = match verdict {
            Verdict::Accept => End::Decided,
            Verdict::Return => End::Left,
            Verdict::Drop => {
                if !is_default {
                    self.drops.push(described(way, asks));
                }
                End::Decided
            }
            Verdict::Go { chain, returns } => match self.chain(chain, way, asks, depth + 1)? {
                End::Open if !returns => End::Left,
                end => end,
            },
        };
        Ok(if all { end } else { End::Open })
    }

    /// A verdict map: each of its keys may decide.
    fn map(
        &mut self,
        map: &str,
        loaded: Option<&Loaded>,
        way: Way,
        asks: &[String],
        (depth, all): (usize, bool),
    ) -> Result<End, NftError> {
        for Member { key, verdict } in self.table.elements(map)? {
            let Some(verdict) = verdict else { continue };
            let matches = loaded.map(|loaded| loaded.compare(way, self.link, &key, true));
            let mut asks = asks.to_vec();
            let sure = match matches {
                Some(Match::No) => continue,
                Some(Match::Yes) => true,
                Some(Match::Some(what)) => {
                    asks.push(what);
                    false
                }
                None => false,
            };
            let end = self.decide(&verdict, way, &asks, (depth, false), sure && all)?;
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
        let (Some(loaded @ (Loaded::InName | Loaded::OutName)), false) = (loaded, set.is_empty())
        else {
            let sign = if equal { "" } else { "not " };
            return Ok(Match::Some(format!("{sign}in set {set}")));
        };
        let mut matches = Match::No;
        for Member { key, .. } in self.table.elements(set)? {
            match loaded.compare(way, self.link, &key, true) {
                Match::Yes => return Ok(if equal { Match::Yes } else { Match::No }),
                Match::Some(what) => matches = Match::Some(what),
                Match::No => {}
            }
        }
        Ok(match matches {
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
    let (Some(loaded), Some((value, equal))) = (loaded, comparison(expr)) else {
        return Match::Some("a comparison".into());
    };
    if *loaded == Loaded::CtState && !equal && mask.is_some_and(is_invalid_only) {
        return Match::No;
    }
    loaded.compare(way, link, value, equal)
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

fn described(way: Way, asks: &[String]) -> String {
    let who = match (way.incoming, way.outgoing) {
        (Link::Ours, _) => "from peers",
        _ => "to peers",
    };
    match asks {
        [] => format!("{who}: what no earlier rule lets pass"),
        asks => format!("{who}: {}", asks.join(", ")),
    }
}
