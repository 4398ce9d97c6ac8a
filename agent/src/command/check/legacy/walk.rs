//! Follows our packets through the chains of one table of `iptables-legacy`. Pure.

use std::collections::{BTreeMap, BTreeSet};

use gatepost::dataplane::nft::{Datagrams, Fate, Named, Way};

use super::rule::{Asks, ESTABLISHED, NEW, Rule, asks, target, words};

/// A chain that jumps lead to, or a built-in one.
#[derive(Debug, Default)]
pub struct Chain<'a> {
    drops_by_policy: bool,
    rules: Vec<(&'a str, Rule)>,
}

pub type Chains<'a> = BTreeMap<&'a str, Chain<'a>>;

/// The tables of a text, each with its chains.
pub fn tables(text: &str) -> Vec<(&str, Chains<'_>)> {
    let mut tables: Vec<(&str, Chains<'_>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push((name.trim(), Chains::new()));
        }
        let Some((_, chains)) = tables.last_mut() else { continue };
        if let Some(declared) = line.strip_prefix(':') {
            let mut words = declared.split_whitespace();
            let chain = words.next().unwrap_or_default();
            chains.entry(chain).or_default().drops_by_policy = words.next() == Some("DROP");
        } else if let Some((chain, rule)) =
            line.strip_prefix("-A ").and_then(|rule| rule.split_once(' '))
        {
            chains.entry(chain).or_default().rules.push((line, words(rule)));
        }
    }
    tables
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

/// The rules of one table that drop some packets of ours.
pub struct Walk<'a> {
    chains: &'a Chains<'a>,
    link: &'a str,
    drops: Vec<String>,
    /// Chains that were followed already this way, under these conditions.
    seen: BTreeSet<(&'a str, Way, Asks)>,
    drops_rest: bool,
    accepted_states: u32,
    accepts_named: bool,
}

impl<'a> Walk<'a> {
    pub fn new(chains: &'a Chains<'a>, link: &'a str) -> Self {
        Self {
            chains,
            link,
            drops: Vec::new(),
            seen: BTreeSet::new(),
            drops_rest: false,
            accepted_states: 0,
            accepts_named: false,
        }
    }

    /// Follows packets that go this way through a built-in chain.
    pub fn follow(&mut self, base: &'a str, way: Way) -> Fate {
        (self.drops_rest, self.accepted_states, self.accepts_named) = (false, 0, false);
        let end = self.chain(base, way, Asks::NOTHING);
        let has_policy = self.chains.get(base).is_some_and(|chain| chain.drops_by_policy);
        let by_policy = end != End::Decided && has_policy;
        let accepts = |states| self.accepted_states & states == states;
        match by_policy || self.drops_rest {
            true if !accepts(NEW | ESTABLISHED) => Fate::Dropped {
                accepts_answers: accepts(ESTABLISHED),
                accepts_some: self.accepts_named,
            },
            _ => Fate::Passes,
        }
    }

    /// The rules that drop some, as they are saved.
    pub fn into_drops(self) -> Vec<String> {
        self.drops
    }

    fn tell(&mut self, rule: &str) {
        if !self.drops.iter().any(|told| told == rule) {
            self.drops.push(rule.to_owned());
        }
    }

    fn chain(&mut self, name: &'a str, way: Way, from: Asks) -> End {
        let chains = self.chains;
        let Some(chain) = chains.get(name).filter(|_| self.seen.insert((name, way, from))) else {
            return End::Open;
        };
        for (line, rule) in &chain.rules {
            match self.rule(line, rule, way, from) {
                End::Open => {}
                End::Left => return End::Open,
                End::Decided => return End::Decided,
            }
        }
        End::Open
    }

    fn rule(&mut self, line: &str, rule: &'a Rule, way: Way, from: Asks) -> End {
        let Some(asked) = asks(rule, way, self.link) else { return End::Open };
        let Some((target, returns)) = target(rule) else { return End::Open };
        let asks = from.and(asked);
        let end = match target {
            "ACCEPT" => {
                self.accepted_states |= if asks.others { 0 } else { asks.states };
                // WireGuard sends wherever a peer is: what is accepted by link or address may be that.
                let may_be_sent = matches!(way.wireguard, Some(Datagrams::From(_)));
                self.accepts_named |= asks.named == Named::Us || may_be_sent;
                End::Decided
            }
            "DROP" | "REJECT" => {
                self.drop(line, way, asks);
                End::Decided
            }
            "RETURN" => End::Left,
            chain => match self.chain(chain, way, asks) {
                End::Open if !returns => End::Left,
                end => end,
            },
        };
        if asked.is_nothing() { end } else { End::Open }
    }

    fn drop(&mut self, line: &str, way: Way, asks: Asks) {
        self.drops_rest |= asks.is_nothing();
        // Other datagrams of the host are no matter of ours.
        let is_ours = way.wireguard.is_none() || asks.named != Named::Nothing;
        if is_ours && !asks.is_nothing() {
            self.tell(line);
        }
    }
}
