//! Reads everything that stands in our table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::attr::{self, Attr, Attrs, find_be32, find_be64, find_text};
use super::element::Element;
use super::error::NftError;
use super::name::{Block, TABLE, block_chain_name, block_of_chain, chain_name, profile_of_chain};
use super::profile::ProfileRule;
use super::set::Set;
use super::socket::NftSocket;
use super::sys::{LIST_ELEM, chain, counter, data, elem, expr, msg, rule, set, table};
use crate::model::ProfileId;

/// Our table as the kernel says it is.
#[derive(Debug, Default)]
pub struct Dump {
    pub flags: u32,
    /// How many chains, sets and other objects the table holds.
    pub objects: usize,
    /// The declarations of the chains that are no profile's and no block's.
    pub chains: BTreeMap<String, Vec<u8>>,
    /// Those chains' rules, each as its list of expressions.
    pub rules: BTreeMap<String, Vec<Vec<u8>>>,
    /// The profiles' chains; a rule that we would not write is `None`.
    pub profiles: BTreeMap<ProfileId, Vec<Option<ProfileRule>>>,
    /// The rules of the blocks' chains, each as its list of expressions.
    pub blocks: BTreeMap<Block, Vec<Vec<u8>>>,
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

/// Reads what all is of one generation of the ruleset, and says which: as often as it takes, but
/// not for long, since whoever waits for it does nothing else.
pub fn settled<T>(
    socket: &mut NftSocket,
    mut read: impl FnMut(&mut NftSocket) -> Result<T, NftError>,
) -> Result<(T, u32), NftError> {
    const ATTEMPTS: usize = 16;
    const AT_LEAST: usize = 3;
    const PATIENCE: Duration = Duration::from_secs(1);
    let begun = Instant::now();
    for attempt in 1..=ATTEMPTS {
        let generation = socket.generation()?;
        match read(socket) {
            Ok(found) if socket.generation()? == generation => return Ok((found, generation)),
            Ok(_) | Err(NftError::Changed) => {}
            Err(error) => return Err(error),
        }
        if attempt >= AT_LEAST && begun.elapsed() > PATIENCE {
            return Err(NftError::Unstable { attempts: attempt });
        }
    }
    Err(NftError::Unstable { attempts: ATTEMPTS })
}

/// The handles of a profile chain's rules, in order.
pub fn handles(socket: &mut NftSocket, id: ProfileId) -> Result<Vec<u64>, NftError> {
    dump_rules(socket, &chain_name(id), |handles: &mut Vec<u64>, body| {
        handles.extend(find_be64(body, rule::HANDLE));
    })
}

/// The counters in the rules of a profile's chain, in order.
pub fn counters(socket: &mut NftSocket, id: ProfileId) -> Result<Vec<Counter>, NftError> {
    dump_rules(socket, &chain_name(id), |counters: &mut Vec<Counter>, body| {
        counters.extend(Attrs(expressions(body)).filter_map(|(_, dumped)| counter_in(dumped)));
    })
}

/// What a set that counts for each profile of a block has counted for one; `None`: the set does
/// not have it.
pub fn member_of(
    socket: &mut NftSocket,
    set: &Set,
    ProfileId(id): ProfileId,
) -> Result<Option<Counter>, NftError> {
    let key = Attr::nest(elem::KEY, vec![Attr::bytes(data::VALUE, id.to_ne_bytes())]);
    let list = Attr::nest(elem::LIST_ELEMENTS, vec![Attr::nest(LIST_ELEM, vec![key])]);
    let found = socket.get(msg::GETSETELEM, &[&elements_of(set)[..], &[list]].concat())?;
    Ok(found.and_then(|body| {
        let dumped = attr::find_in(&body, &[elem::LIST_ELEMENTS, LIST_ELEM])?;
        Some(member(set, dumped)?.1)
    }))
}

fn member(set: &Set, dumped: &[u8]) -> Option<(ProfileId, Counter)> {
    match Element::decode(set, dumped)? {
        Element::Member(id) => Some((id, counter_in(attr::find(dumped, elem::EXPR)?)?)),
        _ => None,
    }
}

fn counter_in(dumped: &[u8]) -> Option<Counter> {
    let data = attr::find(dumped, expr::DATA)?;
    (find_text(dumped, expr::NAME) == Some("counter")).then(|| Counter {
        packets: find_be64(data, counter::PACKETS).unwrap_or_default(),
        bytes: find_be64(data, counter::BYTES).unwrap_or_default(),
    })
}

/// Dumps one chain's rules. The kernel finds a chain by hash; a dump of a whole table it resumes by
/// counting from the first rule again, which takes minutes with a million rules
/// (`nf_tables_dump_rules`).
fn dump_rules<T: Default>(
    socket: &mut NftSocket,
    chain: &str,
    take: impl FnMut(&mut T, &[u8]),
) -> Result<T, NftError> {
    let filter = [Attr::text(rule::TABLE, TABLE), Attr::text(rule::CHAIN, chain)];
    socket.dump(msg::GETRULE, &filter, take)
}

fn expressions(body: &[u8]) -> &[u8] {
    attr::find(body, rule::EXPRESSIONS).unwrap_or_default()
}

/// The table; `None`: there is none.
pub fn dump(socket: &mut NftSocket) -> Result<Option<Dump>, NftError> {
    let Some(found) = socket.get(msg::GETTABLE, &[Attr::text(table::NAME, TABLE)])? else {
        return Ok(None);
    };
    let mut dump = socket.dump(msg::GETCHAIN, &[], Dump::take_chain)?;
    dump.flags = find_be32(&found, table::FLAGS).unwrap_or_default();
    dump.objects = find_be32(&found, table::USE).unwrap_or_default() as usize;
    for name in dump.chains.keys() {
        let rules = dump_rules(socket, name, |rules: &mut Vec<Vec<u8>>, body| {
            rules.push(expressions(body).to_vec());
        })?;
        dump.rules.insert(name.clone(), rules);
    }
    for (block, rules) in &mut dump.blocks {
        *rules = dump_rules(socket, &block_chain_name(*block), |rules: &mut Vec<_>, body| {
            rules.push(expressions(body).to_vec());
        })?;
    }
    for (id, rules) in &mut dump.profiles {
        *rules = dump_rules(socket, &chain_name(*id), |rules: &mut Vec<_>, body| {
            rules.push(ProfileRule::decode(*id, expressions(body)));
        })?;
    }
    let sets = socket.dump(msg::GETSET, &[Attr::text(set::TABLE, TABLE)], Dump::take_set)?;
    dump.sets = sets.sets;
    dump.strange_sets = sets.strange_sets;
    for (set, elements) in &mut dump.sets {
        match read_elements(socket, set)? {
            Some(found) => *elements = found,
            None => dump.strange_sets.push(set.to_string()),
        }
    }
    Ok(Some(dump))
}

/// A set's elements, ascending; `None`: some are such as we would not write.
///
/// The kernel goes through a hash table for each part of the dump from the start again. When it
/// re-orders a table between two parts, as it does while that grows or shrinks, some elements come
/// twice and others never, and nothing else tells of it.
fn read_elements(socket: &mut NftSocket, set: &Set) -> Result<Option<Vec<Element>>, NftError> {
    const ATTEMPTS: usize = 8;
    if matches!(set, Set::DenyLog(_)) {
        return Ok(Some(vec![])); // filled by packets, not by us
    }
    for _ in 0..ATTEMPTS {
        let found = socket.dump(
            msg::GETSETELEM,
            &elements_of(set),
            |found: &mut Vec<Option<Element>>, body| {
                let list = attr::find(body, elem::LIST_ELEMENTS).unwrap_or_default();
                found.extend(Attrs(list).map(|(_, dumped)| Element::decode(set, dumped)));
            },
        )?;
        let Some(mut found) = found.into_iter().collect::<Option<Vec<Element>>>() else {
            return Ok(None);
        };
        found.sort_unstable();
        if !twice(&found) {
            return Ok(Some(found));
        }
    }
    Err(NftError::Changed)
}

/// Whether a key comes twice in ascending elements.
fn twice(elements: &[Element]) -> bool {
    elements.windows(2).any(|pair| match pair {
        [Element::Profile(one, _), Element::Profile(other, _)] => one == other,
        [one, other] => one == other,
        _ => false,
    })
}

fn elements_of(set: &Set) -> [Attr; 2] {
    [Attr::text(elem::LIST_TABLE, TABLE), Attr::text(elem::LIST_SET, &set.to_string())]
}

impl Dump {
    fn take_chain(&mut self, body: &[u8]) {
        let (Some(TABLE), Some(name)) =
            (find_text(body, chain::TABLE), find_text(body, chain::NAME))
        else {
            return;
        };
        let plain = attr::find(body, chain::HOOK).is_none();
        match (profile_of_chain(name), block_of_chain(name)) {
            (Some(id), _) if plain => _ = self.profiles.insert(id, vec![]),
            (_, Some(block)) if plain => _ = self.blocks.insert(block, vec![]),
            _ => _ = self.chains.insert(name.to_owned(), body.to_vec()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_comes_twice_is_seen() {
        let at = |text: &str, id| Element::Profile(text.parse().unwrap(), ProfileId(id));
        assert!(!twice(&[]));
        assert!(!twice(&[at("10.0.0.1", 1), at("10.0.0.2", 1), at("fd00::1", 1)]));
        assert!(twice(&[at("10.0.0.1", 1), at("10.0.0.2", 1), at("10.0.0.2", 2)]));
        assert!(twice(&[Element::Member(ProfileId(7)), Element::Member(ProfileId(7))]));
    }
}
