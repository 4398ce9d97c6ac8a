//! All policies and memberships that concern this gateway, indexed so that a change costs as much
//! as it affects.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use super::intern::Interner;
use super::note::PolicyNote;
use super::resolve::{Policy, Target, Verdict, allowed};
use crate::model::{DeviceId, GroupId, PolicyId, PolicyRow, Profile, Settings, UserId};

/// The owner of a profile that a change may have changed: look up every peer of this user, or of this device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    User(UserId),
    Device(DeviceId),
}

/// Policies by the users, groups and devices to which they apply.
///
/// Filled row by row; every change tells whom it affects. Profiles are made when asked for, once
/// for all who have the same policies, and shared by all who may reach the same.
#[derive(Debug, Default)]
pub struct PolicyBook {
    default_effect: Verdict,
    allow_dns: bool,
    policies: BTreeMap<PolicyId, Entry>,
    notes: BTreeMap<PolicyId, Vec<PolicyNote>>,
    aimed_at: HashMap<Target, BTreeSet<PolicyId>>,
    groups: HashMap<UserId, Arc<BTreeSet<GroupId>>>,
    /// Each of these once: many users have the same.
    group_sets: HashSet<Arc<BTreeSet<GroupId>>>,
    members: HashMap<GroupId, BTreeSet<UserId>>,
    profiles: Interner<Recipe>,
    last_revision: u64,
}

/// Identifies a user's set of groups: equal for equal sets, within one book and for as long as it does
/// not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SameGroups(Option<usize>);

/// A policy, and a number that no other policy and no other version of it ever had.
#[derive(Debug)]
struct Entry {
    policy: Policy,
    revision: u64,
}

/// The ingredients of a profile. An edited policy has another revision, so that a profile of the old revision
/// is never found again.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    revisions: Box<[u64]>,
    dns_servers: Box<[IpAddr]>,
}

impl PolicyBook {
    /// A book without policies, under these settings. Other settings need another book.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        Self {
            default_effect: settings.default_effect,
            allow_dns: settings.allow_dns,
            ..Self::default()
        }
    }

    /// Replaces a policy's former row by the present one; `None`: it is gone. Returns the owners of profiles
    /// that may differ now: none if only the policy's name changed; those that gained or lost the policy if
    /// only its targets changed.
    pub fn set_policy(&mut self, id: PolicyId, row: Option<&PolicyRow>) -> BTreeSet<Subject> {
        self.notes.remove(&id);
        if let Some(notes) = row.map(PolicyNote::of).filter(|notes| !notes.is_empty()) {
            self.notes.insert(id, notes);
        }
        let old = self.policies.remove(&id);
        let new = row.map(|row| Policy { id, ..Policy::from_row(row) });
        let (none, none_too) = (BTreeSet::new(), BTreeSet::new());
        let before = old.as_ref().map_or(&none, |old| &old.policy.targets);
        let after = new.as_ref().map_or(&none_too, |new| &new.targets);
        for target in before.difference(after) {
            remove_from(&mut self.aimed_at, target, &id);
        }
        for target in after.difference(before) {
            self.aimed_at.entry(*target).or_default().insert(id);
        }
        let kept = match (&old, &new) {
            (Some(old), Some(new)) if old.policy.decides_like(new) => Some(old.revision),
            _ => None,
        };
        let affected: BTreeSet<Target> = if kept.is_some() {
            before.symmetric_difference(after).copied().collect()
        } else {
            before.union(after).copied().collect()
        };
        if let Some(policy) = new {
            self.last_revision += 1;
            let revision = kept.unwrap_or(self.last_revision);
            self.policies.insert(id, Entry { policy, revision });
        }
        affected.into_iter().flat_map(|target| self.subjects(target)).collect()
    }

    /// Puts a user's present groups in place of those known; none: forgets the user. Returns the
    /// user if a policy is aimed at a group joined or left.
    pub fn set_membership(
        &mut self,
        user_id: UserId,
        group_ids: BTreeSet<GroupId>,
    ) -> BTreeSet<Subject> {
        let old = self.take_groups(user_id);
        let changed: Vec<GroupId> = old.symmetric_difference(&group_ids).copied().collect();
        for group in &changed {
            if old.contains(group) {
                remove_from(&mut self.members, group, &user_id);
            } else {
                self.members.entry(*group).or_default().insert(user_id);
            }
        }
        if !group_ids.is_empty() {
            let groups = self.group_sets.get(&group_ids).cloned().unwrap_or_else(|| {
                let groups = Arc::new(group_ids);
                self.group_sets.insert(Arc::clone(&groups));
                groups
            });
            self.groups.insert(user_id, groups);
        }
        let matters = changed.iter().any(|id| self.aimed_at.contains_key(&Target::Group(*id)));
        matters.then_some(Subject::User(user_id)).into_iter().collect()
    }

    /// The profile of a device of a user. Equal results are one allocation, for as long as a peer holds it.
    ///
    /// `dns_servers` are those listed for the peer, in any order.
    pub fn profile_for(
        &mut self,
        user_id: UserId,
        device_id: DeviceId,
        dns_servers: &[IpAddr],
    ) -> Arc<Profile> {
        let recipe = self.recipe(user_id, device_id, dns_servers);
        if let Some(profile) = self.profiles.get(&recipe) {
            return profile;
        }
        let profile = self.make(user_id, device_id, &recipe);
        self.profiles.insert(recipe, profile)
    }

    /// The ingredients of the profile of a device of a user.
    #[must_use]
    pub fn recipe(&self, user_id: UserId, device_id: DeviceId, dns_servers: &[IpAddr]) -> Recipe {
        let entries = self.entries_of(user_id, device_id);
        Recipe {
            revisions: entries.iter().map(|entry| entry.revision).collect(),
            dns_servers: self.dns_allowance(dns_servers),
        }
    }

    /// Like [`PolicyBook::profile_for`], for a device that is not to keep its profile alive: `recipe` is
    /// its own.
    #[must_use]
    pub fn made(&self, user_id: UserId, device_id: DeviceId, recipe: &Recipe) -> Arc<Profile> {
        let shared = self.profiles.get(recipe);
        shared.unwrap_or_else(|| Arc::new(self.make(user_id, device_id, recipe)))
    }

    fn make(&self, user_id: UserId, device_id: DeviceId, recipe: &Recipe) -> Profile {
        let policies = self.policies_of(user_id, device_id);
        Profile {
            allow4: allowed(&policies, self.default_effect),
            allow6: allowed(&policies, self.default_effect),
            dns_servers: recipe.dns_servers.clone(),
        }
    }

    /// The policies that apply to a device of a user and decide something, in the order in which
    /// they decide.
    #[must_use]
    pub fn policies_of(&self, user_id: UserId, device_id: DeviceId) -> Vec<&Policy> {
        self.entries_of(user_id, device_id).into_iter().map(|entry| &entry.policy).collect()
    }

    /// Through which of its targets a policy applies to a device of a user.
    #[must_use]
    pub fn aims(&self, policy: &Policy, user_id: UserId, device_id: DeviceId) -> Vec<Target> {
        let aims = self.targets_of(user_id, device_id);
        aims.filter(|target| policy.targets.contains(target)).collect()
    }

    /// The policies that decide otherwise than in an older book, or no longer, with their names.
    #[must_use]
    pub fn changed_since(&self, old: &Self) -> BTreeMap<PolicyId, Box<str>> {
        let alike = |one: &Entry, other: Option<&Entry>| {
            other.is_some_and(|other| {
                one.policy.decides_like(&other.policy) && one.policy.targets == other.policy.targets
            })
        };
        let changed = self.policies.iter().filter(|(id, now)| !alike(now, old.policies.get(id)));
        let gone = old.policies.iter().filter(|(id, _)| !self.policies.contains_key(id));
        changed.chain(gone).map(|(id, entry)| (*id, entry.policy.name.clone())).collect()
    }

    /// All policies that decide something.
    pub(super) fn policies(&self) -> impl Iterator<Item = &Policy> {
        self.policies.values().map(|entry| &entry.policy).filter(|policy| !policy.is_void())
    }

    /// How many policies there are.
    #[must_use]
    pub fn policy_count(&self) -> usize {
        self.policies.len()
    }

    /// The name of a policy that is known.
    #[must_use]
    pub fn name_of(&self, id: PolicyId) -> Option<&str> {
        self.policies.get(&id).map(|entry| &*entry.policy.name)
    }

    /// The verdict if no policy decides.
    #[must_use]
    pub const fn default_effect(&self) -> Verdict {
        self.default_effect
    }

    /// The servers among these that may be asked on port 53 whatever the policies say: sorted,
    /// each once; none where the settings do not allow it.
    #[must_use]
    pub fn dns_allowance(&self, dns_servers: &[IpAddr]) -> Box<[IpAddr]> {
        let mut listed = if self.allow_dns { dns_servers.to_vec() } else { Vec::new() };
        listed.sort_unstable();
        listed.dedup();
        listed.into()
    }

    /// Everything that is wrong with the policies, by policy.
    pub fn notes(&self) -> impl Iterator<Item = &PolicyNote> {
        self.notes.values().flatten()
    }

    /// Equal for devices whose policies come from the same groups and from nothing else. `None`: one
    /// is aimed at the user or the device.
    #[must_use]
    pub fn groups_alone(&self, user_id: UserId, device_id: DeviceId) -> Option<SameGroups> {
        let aimed = [Target::Device(device_id), Target::User(user_id)]
            .iter()
            .any(|target| self.aimed_at.contains_key(target));
        let groups = self.groups.get(&user_id).map(|groups| Arc::as_ptr(groups).addr());
        (!aimed).then_some(SameGroups(groups))
    }

    fn take_groups(&mut self, user_id: UserId) -> Arc<BTreeSet<GroupId>> {
        let Some(groups) = self.groups.remove(&user_id) else { return Arc::default() };
        // This one, and the one in the set.
        if Arc::strong_count(&groups) == 2 {
            self.group_sets.remove(&*groups);
        }
        groups
    }

    fn targets_of(
        &self,
        user_id: UserId,
        device_id: DeviceId,
    ) -> impl Iterator<Item = Target> + '_ {
        let groups = self.groups.get(&user_id).into_iter().flat_map(|groups| groups.iter());
        [Target::Device(device_id), Target::User(user_id)]
            .into_iter()
            .chain(groups.copied().map(Target::Group))
    }

    fn entries_of(&self, user_id: UserId, device_id: DeviceId) -> Vec<&Entry> {
        let ids = self.targets_of(user_id, device_id).filter_map(|at| self.aimed_at.get(&at));
        let mut entries: Vec<&Entry> = ids
            .flatten()
            .filter_map(|id| self.policies.get(id))
            .filter(|entry| !entry.policy.is_void())
            .collect();
        entries.sort_unstable_by_key(|entry| entry.policy.order());
        entries.dedup_by_key(|entry| entry.revision);
        entries
    }

    fn subjects(&self, target: Target) -> Vec<Subject> {
        match target {
            Target::User(user_id) => vec![Subject::User(user_id)],
            Target::Device(device_id) => vec![Subject::Device(device_id)],
            Target::Group(group_id) => {
                let members = self.members.get(&group_id).into_iter().flatten();
                members.copied().map(Subject::User).collect()
            }
        }
    }
}

/// The addresses among texts of `dns_servers`. The others are search domains, which `wg-quick`
/// takes in the same place.
#[must_use]
pub fn dns_addresses<T: AsRef<str>>(texts: &[T]) -> Vec<IpAddr> {
    texts.iter().filter_map(|text| text.as_ref().trim().parse().ok()).collect()
}

fn remove_from<K: Eq + std::hash::Hash, V: Ord>(
    index: &mut HashMap<K, BTreeSet<V>>,
    key: &K,
    value: &V,
) {
    let Some(values) = index.get_mut(key) else { return };
    values.remove(value);
    if values.is_empty() {
        index.remove(key);
    }
}
