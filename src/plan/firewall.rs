//! The firewall that should be against the one that is: one atomic change, or two where a peer
//! loses a prefix, three where that is within another peer's.
//!
//! Profile numbers need no memory: they are adopted from the kernel. Content that the kernel holds
//! keeps its number; new content takes over a number whose every holder goes to it, and only the
//! ranges are written; everything else gets the smallest number that was
//! free before the change, so that a number removed in a change is not given out by it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt, HashSet};
use ipnet::IpNet;

use super::Phase;
use super::join::joined;
use super::wanted::Wanted;
use crate::model::{FirewallBase, FirewallChange, ObservedFirewall, Profile, ProfileId};

/// The changes to write, by phase. `None`: none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FirewallDiff {
    /// For [`Phase::Fence`](super::Phase::Fence): the fixed rules with empty maps, which deny
    /// everything but what [`Self::keep`] adds.
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

    /// Grants with the fence, in one change, what peers have now and keep. So no packet of theirs is
    /// lost between the two, on a link that has forwarded without any table until now.
    pub(super) fn keep(&mut self, kept: &BTreeSet<IpNet>) {
        let (Some(fence), Some(policy)) = (&mut self.fence, &mut self.policy) else { return };
        // What is closed is closed from the beginning, or the place around it would judge it.
        let (now, later): (BTreeMap<_, _>, _) = std::mem::take(&mut policy.assign)
            .into_iter()
            .partition(|(it, id)| *id == ProfileId::NOTHING || kept.contains(it));
        let needed: BTreeSet<ProfileId> = now.values().copied().collect();
        let profiles = std::mem::take(&mut policy.put_profiles);
        (fence.put_profiles, policy.put_profiles) =
            profiles.into_iter().partition(|(id, _)| needed.contains(id));
        (fence.assign, policy.assign) = (now, later);
        if policy.is_empty() {
            self.policy = None;
        }
    }
}

/// Compares the firewall that should be with the one that is.
///
/// `prefixes` are those that may differ; `None`: compare everything. The cost is that of the
/// prefixes named, not of the table.
///
/// * No table, or one that does not judge every packet of our interface (another interface's, or
///   another program removed rules): it is fenced first, then filled.
/// * A table with other fixed rules that do (an upgrade, a changed option, an edit): fixed rules
///   and maps are replaced in *one* change, so that no live flow is cut between the two, and
///   nothing new is granted before what is revoked is gone. The scope does not matter then:
///   replacing the rules empties the maps.
/// * Else the maps alone change.
///
/// `taken` are prefixes that peers lose. Each loses its place before the first peer is touched: its
/// flows are cut next, and must not come back.
///
/// `closed` are prefixes that change hands within a prefix of another peer. While the device has
/// given one up, or has not got it yet, its packets may come from that other peer: so it has a
/// place that reaches nothing from before the first peer is touched until after the last.
#[must_use]
pub fn diff<'a>(
    wanted: impl Into<Wanted<'a>>,
    observed: Option<&ObservedFirewall>,
    prefixes: Option<&BTreeSet<IpNet>>,
    taken: &BTreeSet<IpNet>,
    closed: &BTreeSet<IpNet>,
) -> FirewallDiff {
    let wanted = wanted.into();
    let guarding = observed.filter(|table| table.guards(wanted.base.interface.as_str()));
    let known = guarding.is_some_and(|table| table.base() == Some(wanted.base));
    let nothing = ObservedFirewall::default();
    let mut moves = Moves::new(guarding.unwrap_or(&nothing), taken, closed);
    moves.compare_all(wanted, prefixes.filter(|_| known));
    let Changes { mut close, mut policy, open } = moves.into_changes();
    let mut fence = FirewallChange::default();
    match guarding {
        Some(_) if known => {}
        Some(table) if close.is_empty() => policy = load(wanted.base, table, &policy),
        Some(table) => close = load(wanted.base, table, &close),
        None => {
            fence.load_base = Some(wanted.base.clone());
            policy.assign.append(&mut close.assign);
        }
    }
    let [fence, close, policy, open] =
        [fence, close, policy, open].map(|change| (!change.is_empty()).then_some(change));
    FirewallDiff { fence, close, policy, open }
}

/// The whole table anew in one change, as it is after another. Content keeps the number it has, so
/// that a prefix that reaches the same as before is seen to do so.
pub(super) fn load(
    base: &FirewallBase,
    table: &ObservedFirewall,
    change: &FirewallChange,
) -> FirewallChange {
    let mut target = Some(table.clone());
    ObservedFirewall::apply(&mut target, change);
    let target = target.unwrap_or_default();
    FirewallChange {
        load_base: Some(base.clone()),
        put_profiles: target
            .profiles()
            .iter()
            .map(|(id, profile)| (*id, (true, Arc::clone(profile))))
            .collect(),
        assign: target.assignments().clone(),
        ..FirewallChange::default()
    }
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
    /// `None`: it has none, or has lost it by then.
    from: Option<ProfileId>,
    /// Index into the contents.
    to: usize,
}

/// The entries that the maps lack, each as one change, in their order.
#[derive(Default)]
struct Changes {
    close: FirewallChange,
    policy: FirewallChange,
    open: FirewallChange,
}

/// Which prefixes leave which profile, and for what.
struct Moves<'a> {
    table: &'a ObservedFirewall,
    taken: &'a BTreeSet<IpNet>,
    closed: &'a BTreeSet<IpNet>,
    contents: Vec<Content<'a>>,
    /// Shared profiles are looked up by address first, so that a large one is hashed once.
    by_pointer: HashMap<*const Profile, usize>,
    by_content: HashMap<&'a Profile, usize>,
    moves: Vec<Move>,
    changes: Changes,
    /// How many prefixes leave each profile.
    left: BTreeMap<ProfileId, usize>,
    /// How many of them leave it for none.
    gone: HashMap<ProfileId, usize>,
    /// Everything was compared.
    complete: bool,
}

impl<'a> Moves<'a> {
    fn new(
        table: &'a ObservedFirewall,
        taken: &'a BTreeSet<IpNet>,
        closed: &'a BTreeSet<IpNet>,
    ) -> Self {
        Self {
            table,
            taken,
            closed,
            contents: Vec::new(),
            by_pointer: HashMap::new(),
            by_content: HashMap::new(),
            moves: Vec::new(),
            changes: Changes::default(),
            left: BTreeMap::new(),
            gone: HashMap::new(),
            complete: false,
        }
    }

    fn compare_all(&mut self, wanted: Wanted<'a>, prefixes: Option<&BTreeSet<IpNet>>) {
        let shut: BTreeSet<IpNet> = self.taken.union(self.closed).copied().collect();
        for prefix in &shut {
            self.shut(*prefix, wanted.get(prefix));
        }
        if let Some(prefixes) = prefixes {
            for prefix in prefixes.difference(&shut) {
                let place = self.table.assignments().get(prefix);
                self.compare(*prefix, wanted.get(prefix), place.copied());
            }
            return;
        }
        self.complete = true;
        let both = joined(wanted.iter(), self.table.assignments().iter());
        for (prefix, profile, place) in both.filter(|(prefix, ..)| !shut.contains(*prefix)) {
            self.compare(*prefix, profile, place.copied());
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

    /// A prefix that loses its place, or gets one that reaches nothing, before all else.
    fn shut(&mut self, prefix: IpNet, wanted: Option<&'a Arc<Profile>>) {
        let place = self.table.assignments().get(&prefix).copied();
        if let Some(place) = place {
            self.leave(place, true);
        }
        if !self.closed.contains(&prefix) {
            self.changes.close.unassign.extend(place.map(|_| prefix));
        } else if place != Some(ProfileId::NOTHING) {
            self.changes.close.assign.insert(prefix, ProfileId::NOTHING);
        }
        if let Some(profile) = wanted {
            let to = self.content(profile);
            self.moves.push(Move { prefix, from: None, to });
        } else if self.closed.contains(&prefix) {
            self.changes.open.unassign.push(prefix);
        }
    }

    fn compare(
        &mut self,
        prefix: IpNet,
        wanted: Option<&'a Arc<Profile>>,
        from: Option<ProfileId>,
    ) {
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
            None if from.is_some() => self.changes.policy.unassign.push(prefix),
            None => return,
        }
        if let Some(from) = from {
            self.leave(from, wanted.is_none());
        }
    }

    fn leave(&mut self, id: ProfileId, for_none: bool) {
        *self.left.entry(id).or_default() += 1;
        if for_none {
            *self.gone.entry(id).or_default() += 1;
        }
    }

    fn into_changes(self) -> Changes {
        let in_place = self.in_place();
        let Changes { close, mut policy, mut open } = self.changes;
        let mut free = self.table.free_ids();
        let number = |(index, content): (usize, &Content<'_>)| {
            content.id.or_else(|| {
                let taken_over = in_place.get(&index).copied();
                let id = taken_over.or_else(|| free.next())?;
                let profile = Arc::clone(content.profile);
                policy.put_profiles.insert(id, (taken_over.is_none(), profile));
                Some(id)
            })
        };
        // A content without a number is new, so some prefix moves to it and none has it yet.
        let numbers: Vec<_> = self.contents.iter().enumerate().map(number).collect();
        for Move { prefix, from, to } in &self.moves {
            let change = if self.closed.contains(prefix) { &mut open } else { &mut policy };
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
        let unheld = |id: &&ProfileId| {
            self.table.profiles().contains_key(id)
                && self.table.holders(**id) == self.left.get(id).copied().unwrap_or_default()
                && !arrived.contains(id)
        };
        policy.remove_profiles = if self.complete {
            self.table.profiles().keys().filter(unheld).copied().collect()
        } else {
            self.left.keys().filter(unheld).copied().collect()
        };
        Changes { close, policy, open }
    }

    /// Which new content takes over which number: one whose every holder goes to it. If one went
    /// elsewhere, a packet of its that has found the number already would be judged by the content
    /// of the others. Of what goes to none, the flows are cut before, or no peer is left. The
    /// number with most prefixes first, since these need no write of their own.
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
        let all_go = |((id, _), prefixes): &((ProfileId, usize), usize)| {
            let gone = self.gone.get(id).copied().unwrap_or_default();
            self.table.holders(*id) == prefixes + gone
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
