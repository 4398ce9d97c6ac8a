//! A change of the firewall as the requests of one transaction.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use ipnet::IpNet;

use super::attr::Attr;
use super::batch::Batch;
use super::block::{self, Placed};
use super::chain::declare;
use super::element::Element;
use super::error::NftError;
use super::name::{Block, FORWARD, Family, INPUT, TABLE, block_chain_name, chain_name};
use super::owner::Ownership;
use super::profile::{self, ProfileRule};
use super::rules::{Whose, block_rules, site_rule};
use super::set::Set;
use super::sets::{known, write_sets_of};
use super::sys::{msg, table};
use super::table::{Fixed, fixed_elements, table_declaration};
use crate::model::{
    Address, FirewallBase, FirewallChange, ObservedFirewall, Profile, ProfileId, Ranges,
};

/// The handles of a profile chain's rules, in order.
pub type Handles = BTreeMap<ProfileId, Vec<u64>>;

/// The profiles whose rules must be written in place: their rules' handles are needed.
pub fn rewritten<'a>(
    change: &'a FirewallChange,
    observed: Option<&'a ObservedFirewall>,
) -> impl Iterator<Item = ProfileId> + 'a {
    let before = observed.filter(|_| change.load_base.is_none());
    change.put_profiles.iter().filter_map(move |(id, (new, profile))| {
        let old = before.filter(|_| !new)?.profiles().get(id)?;
        match (Placed::of(*id, old), Placed::of(*id, profile)) {
            (Placed::InChain(old), Placed::InChain(new)) => {
                (profile::rules(old) != profile::rules(new)).then_some(*id)
            }
            _ => None,
        }
    })
}

/// Appends the requests that make the table what `change` wants, given what it is, and that
/// [`new_sets`](super::sets::new_sets) are there. A table that is made has this ownership.
pub fn write(
    batch: &mut Batch,
    ownership: Ownership,
    change: &FirewallChange,
    observed: Option<&ObservedFirewall>,
    handles: &Handles,
) -> Result<(), NftError> {
    let before = observed.filter(|_| change.load_base.is_none());
    if let Some(base) = &change.load_base {
        load_base(batch, ownership, base, observed);
    }
    unassign(batch, change, before);
    let mut put = Elements::default();
    for (id, (new, profile)) in &change.put_profiles {
        let is_new = *new || change.load_base.is_some();
        let old = (!is_new).then(|| known(before, *id)).transpose()?;
        if change.load_base.is_some() {
            write_sets_of(batch, *id, profile);
        }
        write_profile(batch, &mut put, *id, (old, Some(profile)), handles)?;
    }
    put.write(batch, before);
    assign(batch, change, before);
    let mut removed = Elements::default();
    for id in &change.remove_profiles {
        write_profile(batch, &mut removed, *id, (Some(known(before, *id)?), None), handles)?;
    }
    removed.write(batch, before);
    Ok(())
}

/// Removes profiles in chains of their own that this change made, and that no peer has.
pub fn take_back(batch: &mut Batch, change: &FirewallChange) {
    for (id, (_, profile)) in &change.put_profiles {
        remove_profile(batch, *id, profile);
    }
}

/// Deletes the whole table. Nothing is filtered any more.
pub fn remove_table(batch: &mut Batch) {
    batch.delete(msg::DELTABLE, &[Attr::text(table::NAME, TABLE)]);
}

/// The map that has this prefix, and its key there.
pub fn place(prefix: &IpNet) -> (Set, std::net::IpAddr) {
    let address = prefix.network();
    let family = Family::of(&address);
    if prefix.prefix_len() == prefix.max_prefix_len() {
        (Set::Peers(family), address)
    } else {
        (Set::Sites(family, prefix.prefix_len()), address)
    }
}

fn load_base(
    batch: &mut Batch,
    ownership: Ownership,
    base: &FirewallBase,
    observed: Option<&ObservedFirewall>,
) {
    // Only a table that exists can be deleted, so it is added first. All of this is one transaction:
    // there is a table at every instant.
    batch.add(msg::NEWTABLE, &[Attr::text(table::NAME, TABLE)]);
    if observed.is_some_and(|table| table.guards(base.interface.as_str())) {
        // In the new generation the former rules judge beside the new ones until their chain is unhooked, and find
        // its maps empty (`nf_tables_commit_chain_prepare`, `nft_map_deactivate`): they would deny everything for as
        // long as the kernel takes to delete all rules and sets. What is deleted first is unhooked first.
        [FORWARD, INPUT].iter().for_each(|chain| batch.delete_chain(chain));
    }
    remove_table(batch);
    batch.create(msg::NEWTABLE, &table_declaration(ownership));
    let fixed = Fixed::of(base);
    for set in &fixed.sets {
        batch.add_set(set);
        batch.add_elements(set, &fixed_elements(base, set));
    }
    for chain in &fixed.chains {
        batch.create(msg::NEWCHAIN, &declare(chain.name, chain.hook.as_ref()));
    }
    for chain in &fixed.chains {
        chain.rules.iter().for_each(|rule| batch.add_rule(chain.name, None, rule));
    }
}

/// Elements to delete and to add.
#[derive(Debug, Default)]
struct Elements {
    gone: BTreeMap<Set, Vec<Element>>,
    added: BTreeMap<Set, Vec<Element>>,
}

impl Elements {
    fn write(&self, batch: &mut Batch, before: Option<&ObservedFirewall>) {
        self.gone.iter().for_each(|(set, elements)| batch.delete_elements(set, elements));
        make_blocks(batch, &self.added, before);
        self.added.iter().for_each(|(set, elements)| batch.add_elements(set, elements));
    }

    fn change(&mut self, id: ProfileId, old: Option<&Profile>, new: Option<&Profile>) {
        let of = |profile: Option<&Profile>| -> BTreeSet<(Set, Element)> {
            profile.into_iter().flat_map(|profile| block::elements(id, profile)).collect()
        };
        let (old, new) = (of(old), of(new));
        for (set, element) in old.difference(&new) {
            self.gone.entry(*set).or_default().push(*element);
        }
        for (set, element) in new.difference(&old) {
            self.added.entry(*set).or_default().push(*element);
        }
    }
}

/// Replaces the profile with this number by another one, each in a chain of its own or in a block.
fn write_profile(
    batch: &mut Batch,
    elements: &mut Elements,
    id: ProfileId,
    (old, new): (Option<&Profile>, Option<&Profile>),
    handles: &Handles,
) -> Result<(), NftError> {
    let placed = |profile| Placed::of(id, profile);
    let (old, new) = (old.map(placed), new.map(placed));
    if let (Some(Placed::InChain(old)), Some(Placed::InChain(new))) = (old, new) {
        return edit_profile(batch, id, old, new, handles);
    }
    if let Some(Placed::InChain(old)) = old {
        remove_profile(batch, id, old);
    }
    if let Some(Placed::InChain(new)) = new {
        create_profile(batch, id, new);
        elements.added.entry(Set::Chains).or_default().push(Element::Chain(id));
    }
    elements.change(id, old.and_then(Placed::in_block), new.and_then(Placed::in_block));
    Ok(())
}

fn create_profile(batch: &mut Batch, id: ProfileId, profile: &Profile) {
    let name = chain_name(id);
    batch.create(msg::NEWCHAIN, &declare(&name, None));
    for rule in profile::rules(profile) {
        batch.add_rule(&name, None, &rule.encode(id));
    }
}

/// Changes what differs. The first and the last rule stay, and with them what they counted.
fn edit_profile(
    batch: &mut Batch,
    id: ProfileId,
    old: &Profile,
    new: &Profile,
    handles: &Handles,
) -> Result<(), NftError> {
    let had_and_has = |family| (profile::has_set(old, family), profile::has_set(new, family));
    for family in Family::BOTH {
        match (had_and_has(family), family) {
            ((true, true), Family::V4) => edit_set(batch, id, family, &old.allow4, &new.allow4),
            ((true, true), Family::V6) => edit_set(batch, id, family, &old.allow6, &new.allow6),
            _ => {}
        }
    }
    let (old_rules, new_rules) = (profile::rules(old), profile::rules(new));
    if old_rules != new_rules {
        let handles = handles.get(&id).map(Vec::as_slice).unwrap_or_default();
        edit_rules(batch, id, &old_rules, &new_rules, handles)?;
    }
    for family in Family::BOTH {
        if had_and_has(family) == (true, false) {
            batch.delete_set(&Set::Allowed(id, family));
        }
    }
    Ok(())
}

fn edit_rules(
    batch: &mut Batch,
    id: ProfileId,
    old: &[ProfileRule],
    new: &[ProfileRule],
    handles: &[u64],
) -> Result<(), NftError> {
    let name = chain_name(id);
    let [_, between @ .., last] = handles else { return Err(NftError::EditedProfile(id)) };
    if handles.len() != old.len() {
        return Err(NftError::EditedProfile(id));
    }
    between.iter().for_each(|handle| batch.delete_rule(&name, *handle));
    for rule in new.iter().filter(|rule| !matches!(rule, ProfileRule::Judged | ProfileRule::Denied))
    {
        batch.add_rule(&name, Some(*last), &rule.encode(id));
    }
    Ok(())
}

fn edit_set<T: Address>(
    batch: &mut Batch,
    id: ProfileId,
    family: Family,
    old: &Ranges<T>,
    new: &Ranges<T>,
) {
    let only_in = |these: &Ranges<T>, those: &Ranges<T>| -> Vec<Element> {
        let those = those.as_slice();
        let missing = these.as_slice().iter().filter(|range| those.binary_search(range).is_err());
        missing.copied().flat_map(Element::range).collect()
    };
    let set = Set::Allowed(id, family);
    batch.delete_elements(&set, &only_in(old, new));
    batch.add_elements(&set, &only_in(new, old));
}

fn remove_profile(batch: &mut Batch, id: ProfileId, old: &Profile) {
    // The element holds the chain, the chain's rules hold the sets.
    batch.delete_elements(&Set::Chains, &[Element::Chain(id)]);
    batch.delete_chain(&chain_name(id));
    for family in Family::BOTH.into_iter().filter(|family| profile::has_set(old, *family)) {
        batch.delete_set(&Set::Allowed(id, family));
    }
}

fn unassign(batch: &mut Batch, change: &FirewallChange, before: Option<&ObservedFirewall>) {
    let mut gone: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
    for prefix in &change.unassign {
        if before.is_some_and(|before| before.assignments().contains_key(prefix)) {
            let (set, address) = place(prefix);
            gone.entry(set).or_default().push(Element::Address(address));
        }
    }
    gone.iter().for_each(|(set, elements)| batch.delete_elements(set, elements));
}

/// A map refuses another value for a key that it has, so the old element is deleted first.
fn assign(batch: &mut Batch, change: &FirewallChange, before: Option<&ObservedFirewall>) {
    let unassigned: HashSet<&IpNet> = change.unassign.iter().collect();
    let mut gone: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
    let mut added: BTreeMap<Set, Vec<Element>> = BTreeMap::new();
    for (prefix, id) in &change.assign {
        let (set, address) = place(prefix);
        let held = before.and_then(|before| before.assignments().get(prefix));
        if held.is_some_and(|held| held != id) && !unassigned.contains(prefix) {
            gone.entry(set).or_default().push(Element::Address(address));
        }
        added.entry(set).or_default().push(Element::Profile(address, *id));
    }
    make_sites(batch, &added, before);
    gone.iter().for_each(|(set, elements)| batch.delete_elements(set, elements));
    added.iter().for_each(|(set, elements)| batch.add_elements(set, elements));
}

/// Makes sure that each length of site prefixes has its map, and is looked up in its turn.
fn make_sites(
    batch: &mut Batch,
    added: &BTreeMap<Set, Vec<Element>>,
    before: Option<&ObservedFirewall>,
) {
    let is_site = |set: &Set| matches!(set, Set::Sites(..));
    let wanted: BTreeSet<Set> = added.keys().copied().filter(is_site).collect();
    if wanted.is_empty() {
        return;
    }
    let assigned = before.into_iter().flat_map(|before| before.assignments().keys());
    let mut sites: BTreeSet<Set> = assigned.map(|prefix| place(prefix).0).filter(is_site).collect();
    if wanted.is_subset(&sites) {
        return;
    }
    sites.extend(wanted);
    Whose::ALL.iter().for_each(|whose| batch.flush_chain(whose.sites()));
    for set in &sites {
        batch.add_set(set);
        let Set::Sites(family, prefix_len) = set else { continue };
        for whose in Whose::ALL {
            batch.add_rule(whose.sites(), None, &site_rule(whose, *family, *prefix_len));
        }
    }
}

/// Makes sure that each block has the sets that elements are to be added to, and looks them up.
pub fn make_blocks(
    batch: &mut Batch,
    added: &BTreeMap<Set, Vec<Element>>,
    before: Option<&ObservedFirewall>,
) {
    let mut wanted: BTreeMap<Block, BTreeSet<Set>> = BTreeMap::new();
    for set in added.keys() {
        if let Some(block) = set.block() {
            wanted.entry(block).or_default().insert(*set);
        }
    }
    for (block, mut sets) in wanted {
        if !looks_up(block, &mut sets, before) {
            make_block(batch, block, &sets);
        }
    }
}

/// Whether the block's chain looks up all these sets. If not, those that it looks up now are added to
/// `sets`.
fn looks_up(block: Block, sets: &mut BTreeSet<Set>, before: Option<&ObservedFirewall>) -> bool {
    let profiles = before.into_iter().flat_map(|before| before.profiles().range(block.ids()));
    let (mut missing, mut present) = (sets.clone(), BTreeSet::new());
    for (id, profile) in profiles {
        let Placed::InBlock(profile) = Placed::of(*id, profile) else { continue };
        for (set, _) in block::elements(*id, profile) {
            missing.remove(&set);
            present.insert(set);
        }
        if missing.is_empty() {
            return true;
        }
    }
    sets.extend(present);
    false
}

fn make_block(batch: &mut Batch, block: Block, sets: &BTreeSet<Set>) {
    let chain = block_chain_name(block);
    batch.add(msg::NEWCHAIN, &declare(&chain, None));
    batch.flush_chain(&chain);
    for set in sets {
        batch.add_set(set);
        block_rules(set).iter().for_each(|rule| batch.add_rule(&chain, None, rule));
    }
    batch.add_elements(&Set::Blocks, &[Element::Block(block)]);
}
