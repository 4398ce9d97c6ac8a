//! Profiles without a chain of their own: what they allow stands in sets that they share.
//!
//! The kernel walks over every chain in every transaction, and over every rule when one changed
//! (`nf_tables_commit` and `nft_table_validate` in `net/netfilter/nf_tables_api.c`): little for a
//! thousand chains, much for 100,000. So from number 1,024 on, 1,024 profiles are a **block** with
//! one chain. Its sets hold pairs of a profile and a prefix, one set for each prefix length in use.
//! No set is large, as the kernel goes through all of it for each part of its dump
//! (`nft_rhash_walk`). In the words of the `nft` program:
//!
//! ```text
//! chain b_1 {
//!   meta priority @b_1_all                                      # counts what is judged
//!   meta priority . ct reply ip saddr & 255.255.255.0 @b_1_4_24 meta priority set none accept
//!   meta priority . ct reply ip saddr @b_1_4_32 meta priority set none accept    # and IPv6
//!   meta l4proto tcp ct original proto-dst 53 meta priority . ct reply ip saddr @b_1_dns4
//!     meta priority set none accept                             # UDP, ICMP errors about both
//!   meta priority @b_1_deny                                     # counts what is denied
//!   goto deny
//! }
//! ```
//!
//! Lower numbers keep their chains: a packet asks only for its own profile's ranges there. So does
//! a profile of many prefixes, whatever its number.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::batch::Batch;
use super::dump::Dump;
use super::element::Element;
use super::expr::{
    Ct, Direction, Expr, Meta, Rule, Verdict, ct_tuple_second, is_rule, load, lookup, mask_second,
    meta, meta_set, verdict,
};
use super::rules::{DENY, dns_flows, netmask};
use super::set::{Family, Set};
use super::sys::msg;
use super::table::plain_chain;
use crate::model::{Address, ObservedFirewall, Profile, ProfileId};

/// A profile of more prefixes has a chain. The length of each is one more look-up for its block.
const MAX_PREFIXES: usize = 32;

/// Consecutive profile numbers that share a chain; but in block 0 each has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block(pub u32);

impl Block {
    const BITS: u32 = 10;
    /// The bits of a profile's number that tell its block.
    pub const MASK: u32 = u32::MAX << Self::BITS;

    pub const fn of(ProfileId(id): ProfileId) -> Self {
        Self(id >> Self::BITS)
    }

    pub const fn first(self) -> ProfileId {
        ProfileId(self.0 << Self::BITS)
    }

    fn ids(self) -> RangeInclusive<ProfileId> {
        self.first()..=ProfileId(self.first().0 | !Self::MASK)
    }
}

/// The chain that judges peers with a profile of this block.
pub fn block_chain_name(Block(block): Block) -> String {
    format!("b_{block}")
}

/// The block that has this chain.
pub fn block_of_chain(name: &str) -> Option<Block> {
    let block = Block(name.strip_prefix("b_")?.parse().ok()?);
    (block_chain_name(block) == name).then_some(block)
}

/// Whether the profile has a chain of its own under this number.
pub fn has_chain(id: ProfileId, profile: &Profile) -> bool {
    let prefixes = profile.allow4.prefixes().chain(profile.allow6.prefixes());
    Block::of(id) == Block(0) || prefixes.take(MAX_PREFIXES + 1).count() > MAX_PREFIXES
}

/// What stands for a profile in the sets of its block.
pub fn elements(id: ProfileId, profile: &Profile) -> impl Iterator<Item = (Set, Element)> + '_ {
    let block = Block::of(id);
    let prefixes = profile.allow4.prefixes().chain(profile.allow6.prefixes()).map(move |prefix| {
        let address = prefix.network();
        let set = Set::Grants(block, Family::of(&address), prefix.prefix_len());
        (set, Element::Grant(id, address))
    });
    let servers = profile
        .dns_servers
        .iter()
        .map(move |server| (Set::Servers(block, Family::of(server)), Element::Grant(id, *server)));
    let counted = [Set::Judged(block), Set::Denied(block)].map(|set| (set, Element::Member(id)));
    counted.into_iter().chain(prefixes).chain(servers)
}

/// Makes sure that each block has the sets that elements are to be added to, and asks them.
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
        if !is_asked(block, &mut sets, before) {
            make_block(batch, block, &sets);
        }
    }
}

/// Whether the block's chain asks all these sets. Else `sets` has then also those that it must go
/// on to ask.
fn is_asked(block: Block, sets: &mut BTreeSet<Set>, before: Option<&ObservedFirewall>) -> bool {
    let profiles = before.into_iter().flat_map(|before| before.profiles().range(block.ids()));
    let (mut missing, mut asked) = (sets.clone(), BTreeSet::new());
    for (id, profile) in profiles.filter(|(id, profile)| !has_chain(**id, profile)) {
        for (set, _) in elements(*id, profile) {
            missing.remove(&set);
            asked.insert(set);
        }
        if missing.is_empty() {
            return true;
        }
    }
    sets.extend(asked);
    false
}

fn make_block(batch: &mut Batch, block: Block, sets: &BTreeSet<Set>) {
    let chain = block_chain_name(block);
    batch.add(msg::NEWCHAIN, &plain_chain(&chain));
    batch.flush_chain(&chain);
    for set in sets {
        batch.add_set(set);
        rules(set).iter().for_each(|rule| batch.add_rule(&chain, None, rule));
    }
    batch.add_elements(&Set::Blocks, &[Element::Block(block)]);
}

/// The rules by which a block's chain asks this set. The chain asks its sets in their order.
fn rules(set: &Set) -> Vec<Rule> {
    let asked = lookup(&set.to_string());
    let passed = [load(&0u32.to_ne_bytes()), meta_set(Meta::Priority), verdict(&Verdict::Accept)];
    match *set {
        Set::Grants(_, family, prefix_len) => {
            let mut rule = vec![meta(Meta::Priority), destination(family)];
            if prefix_len < family.bits() {
                rule.push(mask_second(&netmask(family, prefix_len)));
            }
            rule.push(asked);
            rule.extend(passed);
            vec![rule]
        }
        Set::Servers(_, family) => {
            let pair = [meta(Meta::Priority), destination(family), asked];
            let ask = |questions: Rule| [&questions, &pair[..], &passed].concat();
            dns_flows(&[family]).into_iter().map(ask).collect()
        }
        Set::Denied(_) => {
            vec![vec![meta(Meta::Priority), asked], vec![verdict(&Verdict::Goto(DENY))]]
        }
        _ => vec![vec![meta(Meta::Priority), asked]],
    }
}

/// Where the flow really goes, beside the profile.
fn destination(family: Family) -> Expr {
    ct_tuple_second(
        Direction::Reply,
        match family {
            Family::V4 => Ct::SrcIp,
            Family::V6 => Ct::SrcIp6,
        },
    )
}

/// Adds the profiles that the blocks hold to `profiles`. The error names the first thing that is
/// not as we would write it.
pub fn read(dump: &Dump, profiles: &mut BTreeMap<ProfileId, Arc<Profile>>) -> Result<(), String> {
    let mut difference = read_chains(dump).err();
    let mut found: BTreeMap<ProfileId, Vec<(Set, Element)>> = BTreeMap::new();
    for (set, elements) in dump.sets.iter().filter(|(set, _)| set.block().is_some()) {
        for element in elements {
            if let Element::Member(id) | Element::Grant(id, _) = element {
                found.entry(*id).or_default().push((*set, *element));
            }
        }
    }
    for (id, mut found) in found {
        let profile = profile_of(&found);
        let mut wanted: Vec<(Set, Element)> = elements(id, &profile).collect();
        wanted.sort_unstable();
        found.sort_unstable();
        if wanted == found && !has_chain(id, &profile) && !dump.profiles.contains_key(&id) {
            profiles.insert(id, Arc::new(profile));
        } else {
            difference.get_or_insert_with(|| format!("profile {} of a block", id.0));
        }
    }
    difference.map_or(Ok(()), Err)
}

/// What elements grant, whether or not we would write them so.
fn profile_of(elements: &[(Set, Element)]) -> Profile {
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

/// Each block is listed, has its chain, and its chain asks all its sets that hold anything.
fn read_chains(dump: &Dump) -> Result<(), String> {
    let listed = dump.sets.get(&Set::Blocks).into_iter().flatten();
    let listed: BTreeSet<Block> = listed
        .filter_map(|element| match element {
            Element::Block(block) => Some(*block),
            _ => None,
        })
        .collect();
    if !listed.iter().eq(dump.blocks.keys()) {
        return Err(format!("map {}", Set::Blocks));
    }
    let mut asked: BTreeMap<Block, &[Vec<u8>]> =
        dump.blocks.iter().map(|(block, rules)| (*block, rules.as_slice())).collect();
    for (set, elements) in &dump.sets {
        let Some(block) = set.block() else { continue };
        let left = asked.get_mut(&block).ok_or_else(|| format!("set {set}"))?;
        let wanted = rules(set);
        let is_next = wanted.len() <= left.len()
            && wanted.iter().zip(left.iter()).all(|(rule, exprs)| is_rule(rule, exprs));
        if is_next {
            *left = &left[wanted.len()..];
        } else if !elements.is_empty() {
            return Err(format!("chain {}", block_chain_name(block)));
        }
    }
    let more = asked.iter().find(|(_, left)| !left.is_empty());
    more.map_or(Ok(()), |(block, _)| Err(format!("chain {}", block_chain_name(*block))))
}
