//! What a dump of our table means, and whether it is what this version loads.
//!
//! Interpret first, then prove: what the table seems to be is turned into what we would have sent for
//! it, and that must be what was dumped. So no edit goes unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::block::{self, Placed};
use super::deny_log::group_in;
use super::difference::Difference;
use super::dump::Dump;
use super::element::Element;
use super::expr::{Rule, is_rule};
use super::flows::limit_in;
use super::gate::mark_in;
use super::gateway::openings_in;
use super::guarded::guarded_interface;
use super::name::{Block, DENY, FORWARD, Family, LIMITS, OPENINGS};
use super::owner::Ownership;
use super::profile::{self, ProfileRule};
use super::ranges::{bounds, networks_in, set_ranges};
use super::rules::{Whose, block_rules, interface_in, site_rule};
use super::set::Set;
use super::table::{Fixed, fixed_elements};
use crate::model::{
    Address, FirewallBase, FixedRules, Masquerade, ObservedFirewall, Profile, ProfileId, Ranges,
};

/// What was read, and the first object that is not as this version loads it.
#[derive(Debug, Clone)]
pub struct Observation {
    pub firewall: ObservedFirewall,
    pub difference: Option<Difference>,
}

impl Observation {
    pub fn of(dump: &Dump, ownership: Ownership) -> Self {
        let mut profiles = BTreeMap::new();
        let mut difference = check_objects(dump, ownership).err();
        for (id, rules) in &dump.profiles {
            match read_profile(dump, *id, rules) {
                Some(profile) => _ = profiles.insert(*id, Arc::new(profile)),
                None => _ = difference.get_or_insert_with(|| Difference::profile_chain(*id)),
            }
        }
        if let Err(found) = read_blocks(dump, &mut profiles) {
            difference.get_or_insert(found);
        }
        let (rules, difference) = match (read_base(dump), difference) {
            (Ok(base), None) => (FixedRules::Ours(base), None),
            (_, Some(difference)) | (Err(difference), None) => {
                let guarded = guarded_interface(dump);
                (guarded.map_or(FixedRules::Open, FixedRules::Other), Some(difference))
            }
        };
        Self { firewall: ObservedFirewall::new(rules, profiles, assignments(dump)), difference }
    }
}

/// Every prefix that the maps hold, with its profile.
fn assignments(dump: &Dump) -> BTreeMap<IpNet, ProfileId> {
    let mut assignments = BTreeMap::new();
    for (set, elements) in &dump.sets {
        let prefix_len = match set {
            Set::Peers(family) => family.bits(),
            Set::Sites(_, prefix_len) => *prefix_len,
            _ => continue,
        };
        for element in elements {
            if let Element::Profile(address, id) = element
                && let Ok(prefix) = IpNet::new(*address, prefix_len)
            {
                assignments.insert(prefix, *id);
            }
        }
    }
    assignments
}

/// What a profile's chain and sets allow; `None`: they are not as we would write them.
fn read_profile(dump: &Dump, id: ProfileId, rules: &[Option<ProfileRule>]) -> Option<Profile> {
    let (mut allow4, mut allow6, mut dns_servers) = (vec![], vec![], vec![]);
    for rule in rules {
        match (*rule)? {
            ProfileRule::Judged | ProfileRule::Denied => {}
            ProfileRule::Range(IpAddr::V4(first), IpAddr::V4(last)) => {
                allow4.push((u32::from(first), u32::from(last)));
            }
            ProfileRule::Range(IpAddr::V6(first), IpAddr::V6(last)) => {
                allow6.push((u128::from(first), u128::from(last)));
            }
            ProfileRule::Range(..) => return None,
            ProfileRule::Set(family @ Family::V4) => {
                allow4.extend(set_ranges::<u32>(dump, &Set::Allowed(id, family))?);
            }
            ProfileRule::Set(family @ Family::V6) => {
                allow6.extend(set_ranges::<u128>(dump, &Set::Allowed(id, family))?);
            }
            ProfileRule::Dns(server) => dns_servers.push(server),
        }
    }
    let profile = Profile {
        allow4: allow4.into_iter().collect::<Ranges<u32>>(),
        allow6: allow6.into_iter().collect::<Ranges<u128>>(),
        dns_servers: dns_servers.into(),
    };
    let same_rules = profile::rules(&profile).into_iter().map(Some).eq(rules.iter().copied());
    let same_sets = Family::BOTH.into_iter().all(|family| {
        let wanted = profile::set_elements(&profile, family);
        let found = dump.sets.get(&Set::Allowed(id, family));
        wanted.as_deref().map(bounds) == found.map(|elements| bounds(elements))
    });
    (same_rules && same_sets).then_some(profile)
}

/// Adds the profiles that the blocks hold to `profiles`. The error is the first object that is not as
/// we would write it.
fn read_blocks(
    dump: &Dump,
    profiles: &mut BTreeMap<ProfileId, Arc<Profile>>,
) -> Result<(), Difference> {
    let mut difference = check_block_chains(dump).err();
    let mut found: BTreeMap<ProfileId, Vec<(Set, Element)>> = BTreeMap::new();
    for (set, elements) in dump.sets.iter().filter(|(set, _)| set.block().is_some()) {
        for element in elements {
            if let Element::Member(id) | Element::Grant(id, _) = element {
                found.entry(*id).or_default().push((*set, *element));
            }
        }
    }
    for (id, mut found) in found {
        let profile = profile_of_elements(&found);
        let mut wanted: Vec<(Set, Element)> = block::elements(id, &profile).collect();
        wanted.sort_unstable();
        found.sort_unstable();
        let in_block = matches!(Placed::of(id, &profile), Placed::InBlock(_));
        if wanted == found && in_block && !dump.profiles.contains_key(&id) {
            profiles.insert(id, Arc::new(profile));
        } else {
            difference.get_or_insert(Difference::Profile(id));
        }
    }
    difference.map_or(Ok(()), Err)
}

/// What elements grant, whether or not we would write them so.
fn profile_of_elements(elements: &[(Set, Element)]) -> Profile {
    let (mut allow4, mut allow6, mut dns_servers) = (vec![], vec![], vec![]);
    for element in elements {
        match *element {
            (Set::Grants(_, _, prefix_len), Element::Grant(_, address)) => {
                let Ok(prefix) = ipnet::IpNet::new(address, prefix_len) else { continue };
                allow4.extend(u32::span(&prefix));
                allow6.extend(u128::span(&prefix));
            }
            (Set::Servers(..), Element::Grant(_, server)) => dns_servers.push(server),
            _ => {}
        }
    }
    dns_servers.sort_unstable();
    Profile {
        allow4: allow4.into_iter().collect(),
        allow6: allow6.into_iter().collect(),
        dns_servers: dns_servers.into(),
    }
}

/// Each block is listed, has its chain, and its chain looks up all its sets that hold anything.
fn check_block_chains(dump: &Dump) -> Result<(), Difference> {
    let listed = dump.sets.get(&Set::Blocks).into_iter().flatten();
    let listed: BTreeSet<Block> = listed
        .filter_map(|element| match element {
            Element::Block(block) => Some(*block),
            _ => None,
        })
        .collect();
    if !listed.iter().eq(dump.blocks.keys()) {
        return Err(Difference::map(&Set::Blocks));
    }
    let mut unexplained: BTreeMap<Block, &[Rule]> =
        dump.blocks.iter().map(|(block, rules)| (*block, rules.as_slice())).collect();
    for (set, elements) in &dump.sets {
        let Some(block) = set.block() else { continue };
        let left = unexplained.get_mut(&block).ok_or_else(|| Difference::set(set))?;
        let wanted = block_rules(set);
        let is_next = wanted.len() <= left.len()
            && wanted.iter().zip(left.iter()).all(|(rule, found)| is_rule(rule, found));
        if is_next {
            *left = &left[wanted.len()..];
        } else if !elements.is_empty() {
            return Err(Difference::block_chain(block));
        }
    }
    let more = unexplained.iter().find(|(_, left)| !left.is_empty());
    more.map_or(Ok(()), |(block, _)| Err(Difference::block_chain(*block)))
}

/// Whether the table holds only objects that some base, profile or site would put there.
fn check_objects(dump: &Dump, ownership: Ownership) -> Result<(), Difference> {
    if let Some(strange) = dump.strange_sets.first() {
        return Err(strange.clone());
    }
    if !ownership.is_as_made(dump.flags) {
        return Err(Difference::Flags(dump.flags));
    }
    let known = dump.chains.len() + dump.profiles.len() + dump.blocks.len() + dump.sets.len();
    if dump.objects != known {
        return Err(Difference::Object);
    }
    let listed: BTreeSet<ProfileId> = dump
        .sets
        .get(&Set::Chains)
        .into_iter()
        .flatten()
        .filter_map(|element| match element {
            Element::Chain(id) => Some(*id),
            _ => None,
        })
        .collect();
    let orphan = dump
        .sets
        .keys()
        .find(|set| matches!(set, Set::Allowed(id, _) if !dump.profiles.contains_key(id)));
    match orphan {
        Some(set) => Err(Difference::set(set)),
        None if !listed.iter().eq(dump.profiles.keys()) => Err(Difference::map(&Set::Chains)),
        None => check_sites(dump),
    }
}

/// Each map of site prefixes that holds any is looked up, in the order of their lengths.
fn check_sites(dump: &Dump) -> Result<(), Difference> {
    for whose in Whose::ALL {
        let different = || Err(Difference::Chain(whose.sites().to_owned()));
        let mut rules = dump.rules.get(whose.sites()).into_iter().flatten().peekable();
        for (set, elements) in &dump.sets {
            let Set::Sites(family, prefix_len) = set else { continue };
            let wanted = site_rule(whose, *family, *prefix_len);
            let looked_up = rules.next_if(|found| is_rule(&wanted, found)).is_some();
            if !looked_up && !elements.is_empty() {
                return different();
            }
        }
        if rules.next().is_some() {
            return different();
        }
    }
    Ok(())
}

/// The base whose fixed part is exactly what was dumped.
fn read_base(dump: &Dump) -> Result<FirewallBase, Difference> {
    let chain = |name: &str| Difference::Chain(name.to_owned());
    let forward = dump.rules.get(FORWARD).into_iter().flatten();
    let named = forward.filter_map(|found| interface_in(found)).next();
    let interface = named.ok_or_else(|| chain(FORWARD))?;
    let gateway_opens = dump.rules.get(OPENINGS).and_then(|found| openings_in(found));
    let networks = networks_in(dump);
    let flows_per_address = dump.rules.get(LIMITS).and_then(|found| limit_in(found));
    let gate = dump.rules.get(FORWARD).and_then(|found| mark_in(found));
    let deny_log = dump.rules.get(DENY).and_then(|found| group_in(found));
    let mut nearest: Option<(usize, Difference)> = None;
    for masquerade in [Masquerade::All, Masquerade::Internet, Masquerade::None] {
        for allow_inbound in [false, true] {
            let base = FirewallBase {
                interface: interface.clone(),
                masquerade,
                deny_log,
                allow_inbound,
                gateway_opens: gateway_opens.clone(),
                networks: networks.clone(),
                flows_per_address,
                gate,
            };
            let differences = differences(dump, &base);
            let Some(first) = differences.first() else { return Ok(base) };
            if nearest.as_ref().is_none_or(|(count, _)| differences.len() < *count) {
                nearest = Some((differences.len(), first.clone()));
            }
        }
    }
    Err(nearest.map_or_else(|| chain(FORWARD), |(_, difference)| difference))
}

/// Every chain and set that is not as this base has it.
fn differences(dump: &Dump, base: &FirewallBase) -> Vec<Difference> {
    let fixed = Fixed::of(base);
    let mut differences = Vec::new();
    for chain in &fixed.chains {
        let declared = dump.chains.get(chain.name);
        let declared = declared.is_some_and(|found| found.has_hook(chain.hook.as_ref()));
        let found = dump.rules.get(chain.name).map(Vec::as_slice).unwrap_or_default();
        let same = chain.rules.len() == found.len()
            && chain.rules.iter().zip(found).all(|(rule, found)| is_rule(rule, found));
        let is_sites = Whose::ALL.iter().any(|whose| whose.sites() == chain.name);
        if !declared || !(same || is_sites) {
            differences.push(Difference::Chain(chain.name.to_owned()));
        }
    }
    let is_wanted = |name: &str| fixed.chains.iter().any(|chain| chain.name == name);
    let more = dump.chains.keys().filter(|name| !is_wanted(name));
    differences.extend(more.cloned().map(Difference::Chain));
    for set in &fixed.sets {
        let wanted = fixed_elements(base, set);
        let same = dump.sets.get(set).is_some_and(|found| {
            !matches!(set, Set::Internet(_) | Set::Networks(_)) || bounds(found) == bounds(&wanted)
        });
        if !same {
            differences.push(Difference::set(set));
        }
    }
    let is_fixed =
        |set: &&Set| !matches!(set, Set::Sites(..) | Set::Allowed(..)) && set.block().is_none();
    let more = dump.sets.keys().filter(is_fixed).filter(|set| !fixed.sets.contains(set));
    differences.extend(more.map(Difference::set));
    differences
}
