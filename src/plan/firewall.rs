//! The firewall that should be against the one that is: one atomic change, or two where a peer
//! loses a prefix, three where that is within another peer's.
//!
//! Profile numbers need no memory: they are adopted from the kernel. Content that the kernel holds
//! keeps its number; new content takes over a number whose every holder goes to it, and only the
//! ranges are written; everything else gets the smallest number that was
//! free before the change, so that a number removed in a change is not given out by it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::Phase;
use crate::model::{DesiredFirewall, FirewallChange, ObservedFirewall, Profile, ProfileId};

/// What to write, by phase. `None`: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallDiff {
    /// For [`Phase::Fence`](super::Phase::Fence): the fixed rules with empty maps, which deny
    /// everything.
    pub fence: Option<FirewallChange>,
    /// For [`Phase::Revoke`](super::Phase::Revoke), before any peer: prefixes that reach nothing
    /// from before they are taken from their peers.
    pub close: Option<FirewallChange>,
    /// For [`Phase::Policy`](super::Phase::Policy): what the maps lack, in one transaction.
    pub policy: Option<FirewallChange>,
    /// For [`Phase::Open`](super::Phase::Open): what the closed prefixes lack.
    pub open: Option<FirewallChange>,
}

impl FirewallDiff {
    /// The changes with their phases, in their order.
    pub fn into_changes(self) -> impl Iterator<Item = (Phase, FirewallChange)> {
        let phases = [Phase::Fence, Phase::Revoke, Phase::Policy, Phase::Open];
        let changes = [self.fence, self.close, self.policy, self.open];
        phases.into_iter().zip(changes).filter_map(|(phase, change)| Some((phase, change?)))
    }
}

/// Compares the firewall that should be with the one that is.
///
/// `prefixes` are those that may differ; `None`: compare everything. The cost is that of the
/// prefixes named, not of the table.
///
/// * No table, or one that guards another interface: it is fenced first, then filled. Until then
///   our interface was not guarded, so nothing granted is cut.
/// * A table with other fixed rules (an upgrade, a changed option, somebody's edit): fixed rules
///   and maps are replaced in *one* change in the policy phase, so that no live flow is cut
///   between the two, and nothing new is granted before what is revoked is gone. The scope does
///   not matter then: replacing the rules empties the maps.
/// * Else the maps alone change.
///
/// `taken` are prefixes that peers lose. Each loses its place before the first peer is touched: its
/// flows are cut next, and must not come back.
///
/// `closed` are prefixes that change hands within a prefix of another peer. While the device has
/// given one up, or has not got it yet, its packets may come from that other peer: so it reaches
/// nothing from before the first peer is touched until after the last.
#[must_use]
pub fn diff(
    desired: &DesiredFirewall,
    observed: Option<&ObservedFirewall>,
    prefixes: Option<&BTreeSet<IpNet>>,
    taken: &BTreeSet<IpNet>,
    closed: &BTreeSet<IpNet>,
) -> FirewallDiff {
    let guards_ours = |table: &&ObservedFirewall| {
        table.base().is_none_or(|base| base.interface == desired.base.interface)
    };
    let (nothing, none) = (Arc::default(), BTreeSet::new());
    let shut = Wanted { desired, taken: &none, closed, nothing: &nothing };
    let mut diff = FirewallDiff::default();
    let mut table = observed.filter(guards_ours).cloned();
    let mut left = BTreeSet::new();
    if let Some(table) = &table {
        let losing: BTreeSet<IpNet> = taken.union(closed).copied().collect();
        left.extend(losing.iter().filter_map(|prefix| table.assignments().get(prefix)));
        diff.close = (!losing.is_empty())
            .then(|| close(&Wanted { taken, ..shut }, table, &losing))
            .and_then(unless_empty);
    } else {
        let load_base = Some(desired.base.clone());
        diff.fence = Some(FirewallChange { load_base, ..FirewallChange::default() });
    }
    for change in diff.fence.iter().chain(&diff.close) {
        ObservedFirewall::obey(&mut table, change);
    }
    let known = observed.is_some_and(|table| table.base() == Some(&desired.base));
    // Whoever gets what was taken may be named by no change of rows.
    let prefixes =
        prefixes.filter(|_| known).map(|prefixes| prefixes.union(taken).copied().collect());
    diff.policy = table.as_ref().and_then(|table| {
        unless_empty(if table.base() == Some(&desired.base) {
            change_maps(&shut, table, prefixes.as_ref(), &left)
        } else {
            replace(&shut, table)
        })
    });
    if !closed.is_empty() {
        diff.policy.iter().for_each(|change| ObservedFirewall::obey(&mut table, change));
        let open = Wanted { closed: &none, ..shut };
        diff.open =
            table.and_then(|table| unless_empty(change_maps(&open, &table, Some(closed), &left)));
    }
    diff
}

/// What every prefix should reach, less what is taken or closed.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    desired: &'a DesiredFirewall,
    taken: &'a BTreeSet<IpNet>,
    closed: &'a BTreeSet<IpNet>,
    nothing: &'a Arc<Profile>,
}

impl<'a> Wanted<'a> {
    fn get(&self, prefix: &IpNet) -> Option<&'a Arc<Profile>> {
        if self.closed.contains(prefix) {
            return Some(self.nothing);
        }
        self.desired.assignments.get(prefix).filter(|_| !self.taken.contains(prefix))
    }

    fn all(&self) -> impl Iterator<Item = (&'a IpNet, &'a Arc<Profile>)> {
        let Self { desired, taken, closed, nothing } = *self;
        let shut = |prefix| taken.contains(prefix) || closed.contains(prefix);
        let open = desired.assignments.iter().filter(move |(prefix, _)| !shut(*prefix));
        open.chain(closed.iter().map(move |prefix| (prefix, nothing)))
    }
}

/// Takes their places from these prefixes, and leaves everything else as it is; under the fixed
/// rules that are wanted. Profiles that nobody has any more stay until it is known who gets them.
fn close(shut: &Wanted<'_>, table: &ObservedFirewall, losing: &BTreeSet<IpNet>) -> FirewallChange {
    let mut change = change_maps(shut, table, Some(losing), &BTreeSet::new());
    change.remove_profiles.clear();
    if table.base() == Some(&shut.desired.base) { change } else { load(shut, table, &change) }
}

fn unless_empty(change: FirewallChange) -> Option<FirewallChange> {
    (!change.is_empty()).then_some(change)
}

fn replace(wanted: &Wanted<'_>, table: &ObservedFirewall) -> FirewallChange {
    load(wanted, table, &change_maps(wanted, table, None, &BTreeSet::new()))
}

/// The whole table anew in one change, as it is after another. Content keeps the number it has, so
/// that a prefix that reaches the same as before is seen to do so.
fn load(wanted: &Wanted<'_>, table: &ObservedFirewall, change: &FirewallChange) -> FirewallChange {
    let mut target = Some(table.clone());
    ObservedFirewall::obey(&mut target, change);
    let target = target.unwrap_or_default();
    FirewallChange {
        load_base: Some(wanted.desired.base.clone()),
        put_profiles: target
            .profiles()
            .iter()
            .map(|(id, profile)| (*id, (true, Arc::clone(profile))))
            .collect(),
        assign: target.assignments().clone(),
        ..FirewallChange::default()
    }
}

/// `left`: profiles that lost holders earlier.
fn change_maps(
    wanted: &Wanted<'_>,
    table: &ObservedFirewall,
    prefixes: Option<&BTreeSet<IpNet>>,
    left: &BTreeSet<ProfileId>,
) -> FirewallChange {
    let mut moves = Moves::new(table);
    match prefixes {
        Some(prefixes) => {
            for prefix in prefixes {
                moves.compare(*prefix, wanted.get(prefix));
            }
        }
        None => {
            for (prefix, profile) in wanted.all() {
                moves.compare(*prefix, Some(profile));
            }
            let unwanted = |prefix: &&IpNet| wanted.get(prefix).is_none();
            for prefix in table.assignments().keys().filter(unwanted) {
                moves.compare(*prefix, None);
            }
        }
    }
    let candidates: BTreeSet<ProfileId> = if prefixes.is_some() {
        moves.left.keys().chain(left).copied().collect()
    } else {
        table.profiles().keys().copied().collect()
    };
    moves.into_change(&candidates)
}

/// A content that is wanted, however many prefixes want it.
struct Content<'a> {
    profile: &'a Arc<Profile>,
    /// The number the kernel holds it under.
    id: Option<ProfileId>,
}

/// A prefix that gets another profile.
struct Move {
    prefix: IpNet,
    from: Option<ProfileId>,
    /// Index into the contents.
    to: usize,
}

/// Which prefixes leave which profile, and for what.
struct Moves<'a> {
    table: &'a ObservedFirewall,
    contents: Vec<Content<'a>>,
    /// Shared profiles are looked up by address first, so that a large one is hashed once.
    by_pointer: HashMap<*const Profile, usize>,
    by_content: HashMap<&'a Profile, usize>,
    moves: Vec<Move>,
    unassign: Vec<IpNet>,
    /// How many prefixes leave each profile.
    left: BTreeMap<ProfileId, usize>,
}

impl<'a> Moves<'a> {
    fn new(table: &'a ObservedFirewall) -> Self {
        Self {
            table,
            contents: Vec::new(),
            by_pointer: HashMap::new(),
            by_content: HashMap::new(),
            moves: Vec::new(),
            unassign: Vec::new(),
            left: BTreeMap::new(),
        }
    }

    fn content(&mut self, profile: &'a Arc<Profile>) -> usize {
        let Self { table, contents, by_content, .. } = self;
        *self.by_pointer.entry(Arc::as_ptr(profile)).or_insert_with(|| {
            *by_content.entry(profile).or_insert_with(|| {
                contents.push(Content { profile, id: table.id_of(profile) });
                contents.len() - 1
            })
        })
    }

    fn compare(&mut self, prefix: IpNet, wanted: Option<&'a Arc<Profile>>) {
        let from = self.table.assignments().get(&prefix).copied();
        let has = from.and_then(|id| self.table.profiles().get(&id));
        match wanted {
            // The same allocation: what was written and is still wanted costs no hashing.
            Some(profile) if has.is_some_and(|has| Arc::ptr_eq(has, profile)) => return,
            Some(profile) => {
                let to = self.content(profile);
                let known_under = self.contents[to].id;
                if from.is_some() && (from == known_under || has == Some(profile)) {
                    return;
                }
                self.moves.push(Move { prefix, from, to });
            }
            None if from.is_some() => self.unassign.push(prefix),
            None => return,
        }
        if let Some(from) = from {
            *self.left.entry(from).or_default() += 1;
        }
    }

    /// `candidates`: the profiles that may have lost their last holder.
    fn into_change(self, candidates: &BTreeSet<ProfileId>) -> FirewallChange {
        let mut change = FirewallChange::default();
        let in_place = self.in_place();
        let mut free = self.table.free_ids();
        let number = |(index, content): (usize, &Content<'_>)| {
            content.id.or_else(|| {
                let taken_over = in_place.get(&index).copied();
                let id = taken_over.or_else(|| free.next())?;
                let profile = Arc::clone(content.profile);
                change.put_profiles.insert(id, (taken_over.is_none(), profile));
                Some(id)
            })
        };
        // A content without a number has somebody who moves to it: nobody can have it already.
        let numbers: Vec<_> = self.contents.iter().enumerate().map(number).collect();
        for Move { prefix, from, to } in &self.moves {
            match numbers[*to] {
                // The ranges under its number change.
                Some(id) if *from == Some(id) => {}
                Some(id) => {
                    change.assign.insert(*prefix, id);
                }
                // Out of numbers, which takes 4 billion profiles: denied.
                None => change.unassign.extend(from.map(|_| *prefix)),
            }
        }
        let arrived: HashSet<ProfileId> =
            self.moves.iter().filter_map(|to| numbers[to.to]).collect();
        let unheld = |id: &ProfileId| {
            self.table.profiles().contains_key(id)
                && self.table.holders(*id) == self.left.get(id).copied().unwrap_or_default()
                && !arrived.contains(id)
        };
        change.remove_profiles = candidates.iter().copied().filter(unheld).collect();
        change.unassign.extend(self.unassign);
        change
    }

    /// Which new content takes over which number: one whose every holder goes to it. If one went
    /// elsewhere, a packet of its that has found the number already would be judged by the content
    /// of the others. What is unassigned here has no peer any more. The number with most prefixes
    /// first, since these need no write of their own.
    fn in_place(&self) -> HashMap<usize, ProfileId> {
        let arriving: HashSet<ProfileId> =
            self.moves.iter().filter_map(|to| self.contents[to.to].id).collect();
        let mut pairs: BTreeMap<(ProfileId, usize), usize> = BTreeMap::new();
        for Move { from, to, .. } in &self.moves {
            if let Some(from) = from
                && self.contents[*to].id.is_none()
            {
                *pairs.entry((*from, *to)).or_default() += 1;
            }
        }
        let mut gone: HashMap<ProfileId, usize> = HashMap::new();
        for from in self.unassign.iter().filter_map(|prefix| self.table.assignments().get(prefix)) {
            *gone.entry(*from).or_default() += 1;
        }
        let all_go = |((id, _), prefixes): &((ProfileId, usize), usize)| {
            self.table.holders(*id) == prefixes + gone.get(id).copied().unwrap_or_default()
                && self.table.profiles().contains_key(id)
                && !arriving.contains(id)
        };
        let mut pairs: Vec<_> = pairs.into_iter().filter(all_go).collect();
        pairs.sort_by_key(|((id, _), prefixes)| (Reverse(*prefixes), *id));
        let mut in_place = HashMap::new();
        for ((id, to), _) in pairs {
            in_place.entry(to).or_insert(id);
        }
        in_place
    }
}
