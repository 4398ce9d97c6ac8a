//! Profiles that the kernel does not load.
//!
//! nftables takes a transaction as a whole or not at all, so one profile that it refuses would keep
//! back every other. [`load_in_parts`] finds it by halving and loads the rest. What should have had
//! that profile keeps what it reaches where the profile allows all of that, and else reaches nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use ipnet::IpNet;

use super::meet::narrowing_to;
use super::prefix::may_contain_others;
use crate::model::{FirewallBase, FirewallChange, ObservedFirewall, Profile, ProfileId};

/// After how many refusals without a loaded part the search ends: the kernel does not refuse the content.
const MOST_REFUSALS_OF_ALL: usize = 8;
/// How many refusals end the search: enough for some bad profiles among 100,000.
const MOST_REFUSALS: usize = 128;

/// The part to which a refusal of the kernel applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The content of the change.
    Content,
    /// The table is not as it was read. Parts that do not depend on that can be loaded.
    Table,
    /// The host has too little of something, such as memory. Smaller parts may be loaded.
    Host,
    /// The request as such: every part would be refused, too.
    Request,
}

/// The result of a change that was loaded in parts.
#[derive(Debug)]
pub struct Parted<E> {
    /// The profiles that the kernel refuses, each with its answer.
    pub unloadable: Vec<(ProfileId, Arc<Profile>, E)>,
    /// The parts that were refused for another reason, or not tried.
    pub left: Option<(FirewallChange, E)>,
    /// Whether these only give something, for which the host had no room, and all else was loaded.
    pub lacks_room: bool,
}

/// Loads a change that the kernel refused as a whole, without the profiles that it refuses. What only
/// takes away goes first. `table` is what the kernel holds before.
///
/// One bad profile among `n` costs two transactions for each halving, and a few more.
///
/// A table that is to be loaded anew, and that the host has no room for beside the one that judges the
/// link's packets, is not loaded in parts: that would deny what does not fit, until it does. The former
/// table stays in force, and loses what the new one does not allow.
pub fn load_in_parts<E>(
    change: &FirewallChange,
    table: Option<&ObservedFirewall>,
    refusal: E,
    blame: impl Fn(&E) -> Blame,
    mut load: impl FnMut(&FirewallChange) -> Result<(), E>,
) -> Parted<E> {
    let narrowing = table.and_then(|table| narrowing_of_former(change, table));
    let is_kept = |refusal: &E| narrowing.is_some() && blame(refusal) == Blame::Host;
    let refusal = if is_kept(&refusal) {
        refusal
    } else {
        match halve(change, table, refusal, &blame, is_kept, &mut load) {
            Ok(parted) => return parted,
            Err(refusal) => refusal,
        }
    };
    let narrowing = narrowing.unwrap_or_default();
    let loaded = if narrowing.is_empty() { Ok(()) } else { load(&narrowing) };
    let unloadable = match loaded {
        Err(refusal) if blame(&refusal) != Blame::Request => {
            let narrowed = halve(&narrowing, table, refusal, &blame, |_| false, &mut load);
            narrowed.map_or_else(|_| Vec::new(), |narrowed| narrowed.unloadable)
        }
        Ok(()) | Err(_) => Vec::new(),
    };
    Parted { unloadable, left: Some((change.clone(), refusal)), lacks_room: false }
}

/// Halves the change until each part is loaded or known to be refused. An error: the first part was not
/// loaded yet, and was refused for this reason, with which `is_kept` leaves the table as it is.
fn halve<E>(
    change: &FirewallChange,
    table: Option<&ObservedFirewall>,
    refusal: E,
    blame: impl Fn(&E) -> Blame,
    is_kept: impl Fn(&E) -> bool,
    mut load: impl FnMut(&FirewallChange) -> Result<(), E>,
) -> Result<Parted<E>, E> {
    let is_guarded = is_guarded(change, table);
    let table = table.filter(|_| change.load_base.is_none());
    let parts = parts(change, table);
    let mut base = Base::of(change);
    let mut parted = Parted { lacks_room: true, ..Parted::default() };
    let withdrawals = withdrawals(change, table);
    if base.is_none()
        && !withdrawals.is_empty()
        && let Err(error) = load(&withdrawals)
    {
        return Ok(Parted::refused(change, error));
    }
    let (mut refusals, mut loaded) = (0, 0);
    let mut refused = VecDeque::from([(0..parts.len(), refusal)]);
    let mut unloaded = Vec::new();
    while let Some((range, error)) = refused.pop_front() {
        let gives_up = refusals >= MOST_REFUSALS || loaded == 0 && refusals >= MOST_REFUSALS_OF_ALL;
        if gives_up || range.len() < 2 {
            match &parts[range.clone()] {
                [Part { profile: Some((id, profile)), .. }] if blame(&error) == Blame::Content => {
                    parted.unloadable.push((*id, Arc::clone(profile), error));
                }
                parts => {
                    parted.lacks_room &= blame(&error) == Blame::Host;
                    parted.add(Err(error), &merged(parts));
                }
            }
            unloaded.extend(range);
            continue;
        }
        for half in halves(range) {
            let change = Base::load(base.as_ref(), merged(&parts[half.clone()]));
            match load(&change) {
                Ok(()) => (base, loaded) = (None, loaded + 1),
                Err(error) if base.is_some() && is_kept(&error) => return Err(error),
                Err(error) => {
                    refusals += 1;
                    refused.push_back((half, error));
                }
            }
        }
    }
    if base.is_some() {
        // Where there is nothing else to load, or no table judges the link's packets, the rules alone deny
        // everything.
        let mut rules = || load(&Base::load(base.as_ref(), FirewallChange::default()));
        let loaded = match parted.left.take() {
            Some((_, error)) if is_guarded => Err(error),
            left => {
                parted.left = left;
                rules()
            }
        };
        match loaded {
            Ok(()) => {}
            Err(error) if is_kept(&error) => return Err(error),
            // The former table is in force as it was. Each part was refused with the rules, so no
            // refusal says anything about a profile.
            Err(error) => return Ok(Parted::refused(change, error)),
        }
    }
    let unloaded: Vec<&Part> = unloaded.into_iter().map(|index: usize| &parts[index]).collect();
    for change in after(change, &unloaded).iter().filter(|change| !change.is_empty()) {
        let loaded = load(change);
        parted.lacks_room &= loaded.is_ok();
        parted.add(loaded, change);
    }
    Ok(parted)
}

/// The changes after the parts: destinations that depend on parts that were not loaded are denied, and profiles
/// without a prefix are removed.
fn after(change: &FirewallChange, unloaded: &[&Part]) -> [FirewallChange; 2] {
    let kept: BTreeSet<ProfileId> = unloaded.iter().flat_map(|part| &part.kept).copied().collect();
    let denied = unloaded.iter().flat_map(|part| &part.denied);
    let denial = FirewallChange {
        assign: denied.map(|prefix| (*prefix, ProfileId::NOTHING)).collect(),
        ..FirewallChange::default()
    };
    let removed = change.remove_profiles.iter().filter(|id| !kept.contains(id));
    let removal =
        FirewallChange { remove_profiles: removed.copied().collect(), ..FirewallChange::default() };
    [denial, removal]
}

/// Whether a change loads the table of a link whose packets one judges already.
fn is_guarded(change: &FirewallChange, table: Option<&ObservedFirewall>) -> bool {
    let base = change.load_base.as_ref();
    base.zip(table).is_some_and(|(base, table)| table.guards(base.interface.as_str()))
}

/// The narrowing of a table that stays in force although it was to be loaded anew. `None`: it cannot stay,
/// because it does not judge the link's packets by rules that allow no more than the new ones, or because it
/// would have to be narrowed and has the rules of another version.
fn narrowing_of_former(
    change: &FirewallChange,
    table: &ObservedFirewall,
) -> Option<FirewallChange> {
    let base = change.load_base.as_ref().filter(|_| is_guarded(change, Some(table)))?;
    let mut target = None;
    ObservedFirewall::apply(&mut target, change);
    let narrowing = narrowing_to(&target.unwrap_or_default(), table);
    let is_known = |id: &ProfileId| *id == ProfileId::NOTHING || table.profiles().contains_key(id);
    let stays = match table.base() {
        Some(former) => allows_as_much(base, former),
        None => narrowing.is_empty() && table.assignments().values().all(is_known),
    };
    stays.then_some(narrowing)
}

/// Whether fixed rules let others open as many flows as the former ones did.
fn allows_as_much(base: &FirewallBase, former: &FirewallBase) -> bool {
    let gateway = former.gateway_opens.is_none() || former.gateway_opens == base.gateway_opens;
    base.allow_inbound || !former.allow_inbound && gateway
}

impl<E> Default for Parted<E> {
    /// Everything was loaded.
    fn default() -> Self {
        Self { unloadable: Vec::new(), left: None, lacks_room: false }
    }
}

impl<E> Parted<E> {
    /// Nothing of the change was loaded.
    pub fn refused(change: &FirewallChange, error: E) -> Self {
        Self { left: Some((change.clone(), error)), ..Self::default() }
    }

    fn add(&mut self, loaded: Result<(), E>, change: &FirewallChange) {
        if let Err(error) = loaded
            && !change.is_empty()
        {
            let (left, _) = self.left.get_or_insert((FirewallChange::default(), error));
            merge(left, change);
        }
    }
}

/// A part that is loaded together: a profile, and the prefixes that get it.
#[derive(Default)]
struct Part {
    change: FirewallChange,
    /// The profile that it loads; `None`: it only assigns prefixes to one that is there.
    profile: Option<(ProfileId, Arc<Profile>)>,
    /// The prefixes that must not go on with what they reach, if this part is not loaded.
    denied: Vec<IpNet>,
    /// Profiles that prefixes keep in that case.
    kept: BTreeSet<ProfileId>,
}

/// The parts of a change that give something, those first that also take something away.
fn parts(change: &FirewallChange, table: Option<&ObservedFirewall>) -> Vec<Part> {
    let mut parts: BTreeMap<ProfileId, Part> = BTreeMap::new();
    let mut moved: BTreeMap<ProfileId, Vec<IpNet>> = BTreeMap::new();
    for (id, (new, profile)) in &change.put_profiles {
        let part = parts.entry(*id).or_default();
        part.change.put_profiles.insert(*id, (*new, Arc::clone(profile)));
        part.profile = Some((*id, Arc::clone(profile)));
        if !new {
            moved.entry(*id).or_default();
        }
    }
    let leaves = |prefix: &IpNet| change.assign.contains_key(prefix);
    let gone: BTreeSet<&IpNet> = change.unassign.iter().collect();
    for (prefix, id) in table.iter().flat_map(|table| table.assignments()) {
        if let Some(prefixes) =
            moved.get_mut(id).filter(|_| !leaves(prefix) && !gone.contains(prefix))
        {
            prefixes.push(*prefix);
        }
    }
    for (prefix, id) in change.assign.iter().filter(|(_, id)| **id != ProfileId::NOTHING) {
        parts.entry(*id).or_default().change.assign.insert(*prefix, *id);
        moved.entry(*id).or_default().push(*prefix);
    }
    for (id, prefixes) in moved {
        if let Some(part) = parts.get_mut(&id) {
            part.fall_back(id, prefixes, table);
        }
    }
    let mut parts: Vec<Part> = parts.into_values().collect();
    parts.sort_by_key(|part| part.denied.is_empty());
    parts
}

impl Part {
    /// Decides what becomes of each prefix if this part cannot be loaded.
    fn fall_back(&mut self, id: ProfileId, prefixes: Vec<IpNet>, table: Option<&ObservedFirewall>) {
        let there = || table.and_then(|table| table.profiles().get(&id));
        let wanted = self.profile.as_ref().map(|(_, profile)| profile).or_else(there).cloned();
        let wanted = wanted.unwrap_or_default();
        let mut known: BTreeMap<ProfileId, bool> = BTreeMap::new();
        for prefix in prefixes {
            let place = table.and_then(|table| table.assignments().get(&prefix));
            let keeps = place.is_some_and(|place| {
                *known.entry(*place).or_insert_with(|| {
                    let reaches = table.and_then(|table| table.profiles().get(place));
                    reaches.is_none_or(|reaches| reaches.is_within(&wanted))
                })
            });
            if keeps { self.kept.extend(place) } else { self.denied.push(prefix) }
        }
    }
}

/// A change in two parts, if some of its profiles take the kernel long to load: what does not need those
/// comes first, so that no withdrawal waits for them. `None`: there is nothing to come first.
pub fn before_slow(
    change: &FirewallChange,
    table: Option<&ObservedFirewall>,
    slow: &BTreeSet<ProfileId>,
) -> Option<[FirewallChange; 2]> {
    if slow.is_empty() || change.load_base.is_some() {
        return None;
    }
    let mut first = withdrawals(change, table);
    let mut rest = FirewallChange {
        remove_profiles: change.remove_profiles.clone(),
        ..FirewallChange::default()
    };
    for (id, (new, profile)) in &change.put_profiles {
        let part = if slow.contains(id) { &mut rest } else { &mut first };
        part.put_profiles.insert(*id, (*new, Arc::clone(profile)));
    }
    for (prefix, id) in &change.assign {
        let part = if slow.contains(id) { &mut rest } else { &mut first };
        part.assign.insert(*prefix, *id);
    }
    first.unassign.retain(|prefix| !rest.assign.contains_key(prefix));
    let unassign = change.unassign.iter().filter(|prefix| rest.assign.contains_key(prefix));
    rest.unassign = unassign.copied().collect();
    (!first.is_empty()).then_some([first, rest])
}

/// The part of a change that takes away without giving. A prefix within another one has a place before the
/// outer prefix gets its destinations.
fn withdrawals(change: &FirewallChange, table: Option<&ObservedFirewall>) -> FirewallChange {
    let places = table.map(|table| table.assignments());
    let mut all = change.assign.keys().chain(places.into_iter().flat_map(BTreeMap::keys));
    let nested = all.any(may_contain_others);
    let has_place = |prefix: &IpNet| places.is_some_and(|places| places.contains_key(prefix));
    let closes = |(prefix, id): &(&IpNet, &ProfileId)| {
        **id == ProfileId::NOTHING || nested && !has_place(prefix)
    };
    let closed = change.assign.iter().filter(closes);
    FirewallChange {
        unassign: change.unassign.clone(),
        assign: closed.map(|(prefix, _)| (*prefix, ProfileId::NOTHING)).collect(),
        ..FirewallChange::default()
    }
}

/// Fixed rules that are to be loaded with the first part that can be.
struct Base {
    rules: FirewallBase,
    /// Every prefix has a place from the beginning, so that none is judged by that of another peer.
    places: BTreeMap<IpNet, ProfileId>,
}

impl Base {
    fn of(change: &FirewallChange) -> Option<Self> {
        let places = change.assign.keys().map(|prefix| (*prefix, ProfileId::NOTHING));
        let rules = change.load_base.clone()?;
        Some(Self { rules, places: places.collect() })
    }

    fn load(base: Option<&Self>, mut change: FirewallChange) -> FirewallChange {
        if let Some(Self { rules, places }) = base {
            change.load_base = Some(rules.clone());
            for (prefix, nothing) in places {
                change.assign.entry(*prefix).or_insert(*nothing);
            }
        }
        change
    }
}

fn merged(parts: &[Part]) -> FirewallChange {
    let mut change = FirewallChange::default();
    parts.iter().for_each(|part| merge(&mut change, &part.change));
    change
}

fn merge(into: &mut FirewallChange, change: &FirewallChange) {
    into.unassign.extend(&change.unassign);
    into.put_profiles
        .extend(change.put_profiles.iter().map(|(id, (new, it))| (*id, (*new, Arc::clone(it)))));
    into.assign.extend(&change.assign);
    into.remove_profiles.extend(&change.remove_profiles);
}

fn halves(Range { start, end }: Range<usize>) -> [Range<usize>; 2] {
    let middle = start.midpoint(end);
    [start..middle, middle..end]
}
