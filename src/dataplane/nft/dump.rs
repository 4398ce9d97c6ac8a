//! Reads everything that our table holds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::attr::Attr;
use super::chain::Declaration;
use super::difference::Difference;
use super::element::Element;
use super::error::NftError;
use super::expr::{Rule, read_rule};
use super::name::{
    Block, PASSED, TABLE, block_chain_name, block_of_chain, chain_name, profile_of_chain,
};
use super::profile::ProfileRule;
use super::set::Set;
use super::socket::NftSocket;
use super::sys::{LIST_ELEM, counter, data, elem, expr, msg, rule, set, table};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};
use crate::model::ProfileId;

/// Our table as the kernel dumps it.
#[derive(Debug, Default)]
pub struct Dump {
    pub flags: u32,
    /// How many chains, sets and other objects the table holds.
    pub objects: usize,
    /// The declarations of the chains that belong to no profile and no block.
    pub chains: BTreeMap<String, Declaration>,
    /// The rules of those chains.
    pub rules: BTreeMap<String, Vec<Rule>>,
    /// The profiles' chains; a rule that we would not write is `None`.
    pub profiles: BTreeMap<ProfileId, Vec<Option<ProfileRule>>>,
    /// The rules of the blocks' chains.
    pub blocks: BTreeMap<Block, Vec<Rule>>,
    pub sets: BTreeMap<Set, Vec<Element>>,
    /// Sets and maps that are declared otherwise than ours, or hold what we would not write.
    pub strange_sets: Vec<Difference>,
}

/// What a counter counted since its rule was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

/// Reads something of one generation of the ruleset, and says which: repeatedly, but not for long, as
/// the caller does nothing else meanwhile.
pub fn at_one_generation<T>(
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
    dump_chain(socket, &chain_name(id), |handles: &mut Vec<u64>, rule| {
        handles.push(rule.require(rule::HANDLE)?.be64()?);
        Ok(())
    })
}

/// The counters in the rules of a profile's chain, in order.
pub fn counters(socket: &mut NftSocket, id: ProfileId) -> Result<Vec<Counter>, NftError> {
    counters_in(socket, &chain_name(id))
}

/// The counters of a chain's rules, in order.
pub fn counters_in(socket: &mut NftSocket, chain: &str) -> Result<Vec<Counter>, NftError> {
    dump_chain(socket, chain, |counters: &mut Vec<Counter>, rule| {
        for expr in expressions(rule)?.into_iter().flatten() {
            counters.extend(counter_in(&expr?)?);
        }
        Ok(())
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
    let found =
        socket.get(msg::GETSETELEM, &[&elements_of(set)[..], &[list]].concat(), |found| {
            let member = found.require(elem::LIST_ELEMENTS)?.nested().require(LIST_ELEM)?.nested();
            member.find(elem::EXPR)?.map_or(Ok(None), |expr| counter_in(&expr))
        })?;
    Ok(found.flatten())
}

/// What an expression has counted; `None`: it is no counter.
fn counter_in(expr: &Attribute<'_>) -> Result<Option<Counter>, NetlinkError> {
    let expr = expr.nested();
    if expr.require(expr::NAME)?.text()? != "counter" {
        return Ok(None);
    }
    let data = expr.require(expr::DATA)?.nested();
    let packets = data.require(counter::PACKETS)?.be64()?;
    Ok(Some(Counter { packets, bytes: data.require(counter::BYTES)?.be64()? }))
}

/// Dumps one chain's rules. The kernel finds a chain by hash; a dump of a whole table it resumes by
/// counting from the first rule again, which takes minutes with a million rules
/// (`nf_tables_dump_rules`).
fn dump_chain<T: Default>(
    socket: &mut NftSocket,
    chain: &str,
    read: impl FnMut(&mut T, Attributes<'_>) -> Result<(), NetlinkError>,
) -> Result<T, NftError> {
    let filter = [Attr::text(rule::TABLE, TABLE), Attr::text(rule::CHAIN, chain)];
    socket.dump(msg::GETRULE, &filter, read)
}

/// A chain's rules, each made into a `T`.
fn dump_rules<T>(
    socket: &mut NftSocket,
    chain: &str,
    make: impl Fn(Rule) -> T,
) -> Result<Vec<T>, NftError> {
    dump_chain(socket, chain, |rules: &mut Vec<T>, rule| {
        rules.push(make(expressions(rule)?.map_or(Ok(vec![]), read_rule)?));
        Ok(())
    })
}

/// A rule's list of expressions; a rule without any may have none.
pub fn expressions(rule: Attributes<'_>) -> Result<Option<Attributes<'_>>, NetlinkError> {
    Ok(rule.find(rule::EXPRESSIONS)?.map(Attribute::nested))
}

/// The table; `None`: there is none.
pub fn dump(socket: &mut NftSocket) -> Result<Option<Dump>, NftError> {
    let found = socket.get(msg::GETTABLE, &[Attr::text(table::NAME, TABLE)], |table| {
        Ok((table.require(table::FLAGS)?.be32()?, table.require(table::USE)?.be32()?))
    })?;
    let Some((flags, objects)) = found else { return Ok(None) };
    let mut dump = socket.dump(msg::GETCHAIN, &[], Dump::add_chain)?;
    (dump.flags, dump.objects) = (flags, objects as usize);
    for name in dump.chains.keys() {
        dump.rules.insert(name.clone(), dump_rules(socket, name, |rule| rule)?);
    }
    for (block, rules) in &mut dump.blocks {
        *rules = dump_rules(socket, &block_chain_name(*block), |rule| rule)?;
    }
    let former = !dump.chains.contains_key(PASSED);
    for (id, rules) in &mut dump.profiles {
        let decode = |rule: Rule| ProfileRule::decode(*id, &rule, former);
        *rules = dump_rules(socket, &chain_name(*id), decode)?;
    }
    let sets = socket.dump(msg::GETSET, &[Attr::text(set::TABLE, TABLE)], Dump::add_set)?;
    dump.sets = sets.sets;
    dump.strange_sets = sets.strange_sets;
    for (set, elements) in &mut dump.sets {
        match read_elements(socket, set)? {
            Some(found) => *elements = found,
            None => dump.strange_sets.push(Difference::Element(set.to_string())),
        }
    }
    Ok(Some(dump))
}

/// A set's elements, ascending; `None`: one of them is not such as we would write.
///
/// The kernel walks a hash table from its start again for each part of the dump. When it reorders the
/// table between two parts, as it does while that grows or shrinks, some elements come twice and
/// others never, and nothing else shows it.
fn read_elements(socket: &mut NftSocket, set: &Set) -> Result<Option<Vec<Element>>, NftError> {
    const ATTEMPTS: usize = 8;
    if matches!(set, Set::DenyLog(_) | Set::Flows(_)) {
        return Ok(Some(vec![])); // filled by packets, not by us
    }
    for _ in 0..ATTEMPTS {
        let read = |found: &mut Vec<Option<Element>>, list: Attributes<'_>| {
            for element in list.require(elem::LIST_ELEMENTS)?.nested() {
                found.push(Element::decode(set, element?.nested())?);
            }
            Ok(())
        };
        let found = socket.dump(msg::GETSETELEM, &elements_of(set), read)?;
        let Some(mut found) = found.into_iter().collect::<Option<Vec<Element>>>() else {
            return Ok(None);
        };
        found.sort_unstable();
        if !has_duplicate(&found) {
            return Ok(Some(found));
        }
    }
    Err(NftError::Changed)
}

/// Whether a key comes twice in ascending elements.
fn has_duplicate(elements: &[Element]) -> bool {
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
    pub fn add_chain(&mut self, chain: Attributes<'_>) -> Result<(), NetlinkError> {
        let chain = Declaration::read(chain)?;
        if chain.table == TABLE {
            let is_plain = chain.hook.is_none();
            match (profile_of_chain(&chain.name), block_of_chain(&chain.name)) {
                (Some(id), _) if is_plain => _ = self.profiles.insert(id, vec![]),
                (_, Some(block)) if is_plain => _ = self.blocks.insert(block, vec![]),
                _ => _ = self.chains.insert(chain.name.clone(), chain),
            }
        }
        Ok(())
    }

    pub fn add_set(&mut self, found: Attributes<'_>) -> Result<(), NetlinkError> {
        let name = found.require(set::NAME)?.text()?;
        if found.require(set::TABLE)?.text()? == TABLE {
            match Set::named(name) {
                Some(set) if set.is(found)? => _ = self.sets.insert(set, vec![]),
                _ => self.strange_sets.push(Difference::Set(name.to_owned())),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duplicate_key_is_seen() {
        let at = |text: &str, id| Element::Profile(text.parse().unwrap(), ProfileId(id));
        assert!(!has_duplicate(&[]));
        assert!(!has_duplicate(&[at("10.0.0.1", 1), at("10.0.0.2", 1), at("fd00::1", 1)]));
        assert!(has_duplicate(&[at("10.0.0.1", 1), at("10.0.0.2", 1), at("10.0.0.2", 2)]));
        assert!(has_duplicate(&[Element::Member(ProfileId(7)), Element::Member(ProfileId(7))]));
    }
}
