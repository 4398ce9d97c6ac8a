//! Reads everything that stands in our table.

use std::collections::BTreeMap;

use super::attr::{self, Attr, Attrs, find_be32, find_be64, find_text};
use super::error::NftError;
use super::profile::{ProfileRule, chain_name, profile_of_chain};
use super::set::{Element, Set};
use super::socket::NftSocket;
use super::sys::{chain, counter, elem, expr, msg, rule, set, table};
use super::table::TABLE;
use crate::model::ProfileId;

/// Our table as the kernel says it is.
#[derive(Debug, Default)]
pub struct Dump {
    pub flags: u32,
    /// How many chains, sets and other objects the table holds.
    pub objects: usize,
    /// The declarations of the chains that are no profile's.
    pub chains: BTreeMap<String, Vec<u8>>,
    /// Those chains' rules, each as its list of expressions.
    pub rules: BTreeMap<String, Vec<Vec<u8>>>,
    /// The profiles' chains; a rule that we would not write is `None`.
    pub profiles: BTreeMap<ProfileId, Vec<Option<ProfileRule>>>,
    pub sets: BTreeMap<Set, Vec<Element>>,
    /// Sets and maps that are declared otherwise than ours, or hold what we would not write.
    pub strange_sets: Vec<String>,
}

/// What a counter counted since its rule was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Reads the table at one generation of the ruleset; `None`: there is no such table.
pub fn dump(socket: &mut NftSocket) -> Result<(Option<Dump>, u32), NftError> {
    const ATTEMPTS: usize = 16;
    for _ in 0..ATTEMPTS {
        let generation = socket.generation()?;
        let dump = dump_once(socket)?;
        if socket.generation()? == generation {
            return Ok((dump, generation));
        }
    }
    Err(NftError::Unstable { attempts: ATTEMPTS })
}

/// The handles of a profile chain's rules, in order.
pub fn handles(socket: &mut NftSocket, id: ProfileId) -> Result<Vec<u64>, NftError> {
    socket.dump(msg::GETRULE, &rules_of(&chain_name(id)), |handles: &mut Vec<u64>, body| {
        handles.extend(find_be64(body, rule::HANDLE));
    })
}

/// The counters in the rules of every chain (`None`) or of one, chain by chain, in order.
pub fn counters(
    socket: &mut NftSocket,
    chain: Option<&str>,
) -> Result<BTreeMap<String, Vec<Counter>>, NftError> {
    type Counters = BTreeMap<String, Vec<Counter>>;
    let filter =
        chain.map_or_else(|| vec![Attr::text(rule::TABLE, TABLE)], |name| rules_of(name).into());
    socket.dump(msg::GETRULE, &filter, |counters: &mut Counters, body| {
        let Some((name, exprs)) = our_rule(body) else { return };
        let found = Attrs(exprs).filter_map(|(_, dumped)| counter_in(dumped));
        counters.entry(name.to_owned()).or_default().extend(found);
    })
}

fn counter_in(dumped: &[u8]) -> Option<Counter> {
    let data = attr::find(dumped, expr::DATA)?;
    (find_text(dumped, expr::NAME) == Some("counter")).then(|| Counter {
        packets: find_be64(data, counter::PACKETS).unwrap_or_default(),
        bytes: find_be64(data, counter::BYTES).unwrap_or_default(),
    })
}

fn rules_of(chain: &str) -> [Attr; 2] {
    [Attr::text(rule::TABLE, TABLE), Attr::text(rule::CHAIN, chain)]
}

fn dump_once(socket: &mut NftSocket) -> Result<Option<Dump>, NftError> {
    let Some(found) = socket.get(msg::GETTABLE, &[Attr::text(table::NAME, TABLE)])? else {
        return Ok(None);
    };
    let chains = socket.dump(msg::GETCHAIN, &[], Dump::take_chain)?;
    let rules = socket.dump(msg::GETRULE, &[Attr::text(rule::TABLE, TABLE)], Dump::take_rule)?;
    let sets = socket.dump(msg::GETSET, &[Attr::text(set::TABLE, TABLE)], Dump::take_set)?;
    let mut profiles = chains.profiles;
    profiles.extend(rules.profiles);
    let mut dump = Dump {
        flags: find_be32(&found, table::FLAGS).unwrap_or_default(),
        objects: find_be32(&found, table::USE).unwrap_or_default() as usize,
        chains: chains.chains,
        rules: rules.rules,
        profiles,
        ..sets
    };
    for (set, elements) in &mut dump.sets {
        match read_elements(socket, set)? {
            Some(found) => *elements = found,
            None => dump.strange_sets.push(set.to_string()),
        }
    }
    Ok(Some(dump))
}

/// A set's elements; `None`: some are such as we would not write.
fn read_elements(socket: &mut NftSocket, set: &Set) -> Result<Option<Vec<Element>>, NftError> {
    if matches!(set, Set::DenyLog(_)) {
        return Ok(Some(vec![])); // filled by packets, not by us
    }
    let name = set.to_string();
    let filter = [Attr::text(elem::LIST_TABLE, TABLE), Attr::text(elem::LIST_SET, &name)];
    let found =
        socket.dump(msg::GETSETELEM, &filter, |found: &mut Vec<Option<Element>>, body| {
            let list = attr::find(body, elem::LIST_ELEMENTS).unwrap_or_default();
            found.extend(Attrs(list).map(|(_, dumped)| Element::decode(set, dumped)));
        })?;
    Ok(found.into_iter().collect())
}

/// The chain and the expressions of a dumped rule, if it is in our table.
fn our_rule(body: &[u8]) -> Option<(&str, &[u8])> {
    let ours = find_text(body, rule::TABLE)? == TABLE;
    let exprs = attr::find(body, rule::EXPRESSIONS).unwrap_or_default();
    ours.then_some((find_text(body, rule::CHAIN)?, exprs))
}

impl Dump {
    fn take_chain(&mut self, body: &[u8]) {
        let (Some(TABLE), Some(name)) =
            (find_text(body, chain::TABLE), find_text(body, chain::NAME))
        else {
            return;
        };
        match profile_of_chain(name).filter(|_| attr::find(body, chain::HOOK).is_none()) {
            Some(id) => _ = self.profiles.insert(id, vec![]),
            None => _ = self.chains.insert(name.to_owned(), body.to_vec()),
        }
    }

    fn take_rule(&mut self, body: &[u8]) {
        let Some((name, exprs)) = our_rule(body) else { return };
        if let Some(id) = profile_of_chain(name) {
            self.profiles.entry(id).or_default().push(ProfileRule::decode(id, exprs));
        } else if let Some(rules) = self.rules.get_mut(name) {
            rules.push(exprs.to_vec());
        } else {
            self.rules.insert(name.to_owned(), vec![exprs.to_vec()]);
        }
    }

    fn take_set(&mut self, body: &[u8]) {
        let (Some(TABLE), Some(name)) = (find_text(body, set::TABLE), find_text(body, set::NAME))
        else {
            return;
        };
        match Set::named(name).filter(|set| set.is(body)) {
            Some(set) => _ = self.sets.insert(set, vec![]),
            None => self.strange_sets.push(name.to_owned()),
        }
    }
}
