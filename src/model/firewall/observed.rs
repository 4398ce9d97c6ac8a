//! The contents of our nftables table, indexed so that one changed peer costs one peer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;
use ipnet::IpNet;

use super::{FirewallBase, FirewallChange, InterfaceName, Profile, ProfileId};

/// The fixed rules as they were found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FixedRules {
    /// Rules were removed or inserted by another program: packets may pass unjudged.
    #[default]
    Open,
    /// Not what this version loads (edited, or another version's), but they judge every packet of
    /// this interface.
    Other(InterfaceName),
    /// The rules that this version loads.
    Ours(FirewallBase),
}

/// The contents of our table. `None` for the whole means that there is no such table.
///
/// Cheap to clone: clones share everything until one of them changes.
#[derive(Debug, Clone, Default)]
pub struct ObservedFirewall(Arc<Table>);

/// Keeps counts beside the maps (who holds a profile, which content has which number, which
/// numbers are free), so the maps change only through [`ObservedFirewall::apply`].
#[derive(Debug, Clone, Default)]
struct Table {
    rules: FixedRules,
    profiles: BTreeMap<ProfileId, Arc<Profile>>,
    assignments: BTreeMap<IpNet, ProfileId>,
    /// How many prefixes have each profile; never 0.
    holders: HashMap<ProfileId, usize>,
    ids: HashMap<Arc<Profile>, BTreeSet<ProfileId>>,
    free: FreeIds,
}

impl ObservedFirewall {
    /// Takes what was read from the kernel. An assignment may name a profile that is not there:
    /// such a prefix reaches nothing.
    #[must_use]
    pub fn new(
        rules: FixedRules,
        profiles: BTreeMap<ProfileId, Arc<Profile>>,
        assignments: BTreeMap<IpNet, ProfileId>,
    ) -> Self {
        let mut table = Table { rules, ..Table::default() };
        for (id, profile) in profiles {
            table.put(id, profile);
        }
        for (prefix, id) in assignments {
            table.assign(prefix, id);
        }
        Self(Arc::new(table))
    }

    #[must_use]
    pub fn rules(&self) -> &FixedRules {
        &self.0.rules
    }

    /// The base for which the fixed rules were loaded; `None`: they are not the rules of this version.
    #[must_use]
    pub fn base(&self) -> Option<&FirewallBase> {
        match &self.0.rules {
            FixedRules::Ours(base) => Some(base),
            FixedRules::Other(_) | FixedRules::Open => None,
        }
    }

    /// Whether every packet of this interface is judged.
    #[must_use]
    pub fn guards(&self, interface: &str) -> bool {
        match &self.0.rules {
            FixedRules::Ours(base) => base.interface.as_str() == interface,
            FixedRules::Other(guarded) => guarded.as_str() == interface,
            FixedRules::Open => false,
        }
    }

    #[must_use]
    pub fn profiles(&self) -> &BTreeMap<ProfileId, Arc<Profile>> {
        &self.0.profiles
    }

    #[must_use]
    pub fn assignments(&self) -> &BTreeMap<IpNet, ProfileId> {
        &self.0.assignments
    }

    /// The destinations of a prefix; `None`: none, because it has no profile or one that is missing.
    #[must_use]
    pub fn profile_of(&self, prefix: &IpNet) -> Option<&Arc<Profile>> {
        self.0.profiles.get(self.0.assignments.get(prefix)?)
    }

    /// By which prefix and profile packets from an address are judged: the longest prefix that
    /// contains it. `None`: they reach nothing.
    #[must_use]
    pub fn judged_by(&self, source: IpAddr) -> Option<(IpNet, ProfileId)> {
        let host = IpNet::from(source);
        (0..=host.max_prefix_len()).rev().find_map(|len| {
            let prefix = IpNet::new(source, len).ok()?.trunc();
            Some((prefix, *self.0.assignments.get(&prefix)?))
        })
    }

    /// How many prefixes have this profile.
    #[must_use]
    pub fn holders(&self, id: ProfileId) -> usize {
        self.0.holders.get(&id).copied().unwrap_or_default()
    }

    /// The smallest number under which the kernel holds exactly this content.
    #[must_use]
    pub fn id_of(&self, profile: &Profile) -> Option<ProfileId> {
        self.0.ids.get(profile)?.first().copied()
    }

    /// The numbers that neither a profile nor an assignment uses, ascending.
    pub fn free_ids(&self) -> impl Iterator<Item = ProfileId> + '_ {
        self.0.free.iter()
    }

    /// Does to the value what the kernel does with an acknowledged change. Costs as much as the
    /// change is large.
    ///
    /// A change that does not load the base leaves a missing table missing: the kernel refuses it.
    pub fn apply(table: &mut Option<Self>, change: &FirewallChange) {
        if let Some(base) = &change.load_base {
            let rules = FixedRules::Ours(base.clone());
            *table = Some(Self::new(rules, BTreeMap::new(), BTreeMap::new()));
        }
        let Some(Self(table)) = table else { return };
        let table = Arc::make_mut(table);
        for prefix in &change.unassign {
            table.unassign(prefix);
        }
        for (id, (_, profile)) in &change.put_profiles {
            table.put(*id, Arc::clone(profile));
        }
        for (prefix, id) in &change.assign {
            table.assign(*prefix, *id);
        }
        for id in &change.remove_profiles {
            table.remove(*id);
        }
    }
}

impl Table {
    fn put(&mut self, id: ProfileId, profile: Arc<Profile>) {
        self.remove(id);
        self.ids.entry(Arc::clone(&profile)).or_default().insert(id);
        self.profiles.insert(id, profile);
        self.free.take(id);
    }

    fn remove(&mut self, id: ProfileId) {
        let Some(profile) = self.profiles.remove(&id) else { return };
        if let Some(ids) = self.ids.get_mut(&profile) {
            ids.remove(&id);
            if ids.is_empty() {
                self.ids.remove(&profile);
            }
        }
        if !self.holders.contains_key(&id) {
            self.free.give_back(id);
        }
    }

    fn assign(&mut self, prefix: IpNet, id: ProfileId) {
        if self.assignments.get(&prefix) == Some(&id) {
            return;
        }
        self.unassign(&prefix);
        self.assignments.insert(prefix, id);
        *self.holders.entry(id).or_default() += 1;
        self.free.take(id);
    }

    fn unassign(&mut self, prefix: &IpNet) {
        let Some(id) = self.assignments.remove(prefix) else { return };
        let Some(count) = self.holders.get_mut(&id) else { return };
        *count -= 1;
        if *count == 0 {
            self.holders.remove(&id);
            if !self.profiles.contains_key(&id) {
                self.free.give_back(id);
            }
        }
    }
}

/// The counts follow from the maps.
impl PartialEq for ObservedFirewall {
    fn eq(&self, other: &Self) -> bool {
        let (this, that) = (&*self.0, &*other.0);
        Arc::ptr_eq(&self.0, &other.0)
            || this.rules == that.rules
                && this.assignments == that.assignments
                && this.profiles == that.profiles
    }
}

impl Eq for ObservedFirewall {}

/// Unused profile numbers, as disjoint inclusive ranges: first to last.
#[derive(Debug, Clone)]
struct FreeIds(BTreeMap<u32, u32>);

impl Default for FreeIds {
    /// All but 0 (no class) and the highest, which `tc` and `nft` print as `root`.
    fn default() -> Self {
        Self(BTreeMap::from([(1, u32::MAX - 1)]))
    }
}

impl FreeIds {
    fn iter(&self) -> impl Iterator<Item = ProfileId> + '_ {
        self.0.iter().flat_map(|(first, last)| (*first..=*last).map(ProfileId))
    }

    fn take(&mut self, ProfileId(id): ProfileId) {
        let Some((&first, &last)) = self.0.range(..=id).next_back() else { return };
        if last < id {
            return;
        }
        self.0.remove(&first);
        if first < id {
            self.0.insert(first, id - 1);
        }
        if id < last {
            self.0.insert(id + 1, last);
        }
    }

    fn give_back(&mut self, ProfileId(id): ProfileId) {
        if id == 0 || id == u32::MAX {
            return;
        }
        let last = self.0.remove(&(id + 1)).unwrap_or(id);
        match self.0.range_mut(..id).next_back() {
            Some((_, before)) if *before + 1 == id => *before = last,
            _ => {
                self.0.insert(id, last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_numbers_split_and_join() {
        let mut free = FreeIds::default();
        for id in [1, 3, 2, 5, u32::MAX, 0, 3] {
            free.take(ProfileId(id));
        }
        assert_eq!(free.0, BTreeMap::from([(4, 4), (6, u32::MAX - 1)]));
        for id in [2, 0, u32::MAX, 5, 1] {
            free.give_back(ProfileId(id));
        }
        assert_eq!(free.0, BTreeMap::from([(1, 2), (4, u32::MAX - 1)]));
        free.give_back(ProfileId(3));
        assert_eq!(free.0, FreeIds::default().0);
    }

    #[test]
    fn a_number_that_an_assignment_dangles_on_is_not_free() {
        // Else a new profile under that number would grant it to that prefix.
        let prefix: IpNet = "10.0.0.2/32".parse().unwrap();
        let profiles = BTreeMap::from([(ProfileId(1), Arc::default())]);
        let assignments = BTreeMap::from([(prefix, ProfileId(1))]);
        let mut table = Some(ObservedFirewall::new(FixedRules::Open, profiles, assignments));
        let mut lowest_free_after = |change| {
            ObservedFirewall::apply(&mut table, &change);
            table.as_ref().and_then(|table| table.free_ids().next())
        };
        let remove =
            FirewallChange { remove_profiles: vec![ProfileId(1)], ..FirewallChange::default() };
        assert_eq!(lowest_free_after(remove), Some(ProfileId(2)));
        let unassign = FirewallChange { unassign: vec![prefix], ..FirewallChange::default() };
        assert_eq!(lowest_free_after(unassign), Some(ProfileId(1)));
    }

    #[test]
    fn the_longest_prefix_judges() {
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        let (site, host) = (prefix("10.8.0.0/16"), prefix("10.8.0.2/32"));
        let assignments = BTreeMap::from([(site, ProfileId(1)), (host, ProfileId(2))]);
        let table = ObservedFirewall::new(FixedRules::Open, BTreeMap::new(), assignments);
        let judged_by = |text: &str| table.judged_by(text.parse().unwrap());
        assert_eq!(judged_by("10.8.0.2"), Some((host, ProfileId(2))));
        assert_eq!(judged_by("10.8.0.3"), Some((site, ProfileId(1))));
        assert_eq!(judged_by("10.9.0.3"), None);
        assert_eq!(judged_by("::10.8.0.2"), None);
    }

    #[test]
    fn a_missing_table_stays_missing_until_the_base_is_loaded() {
        let mut table = None;
        ObservedFirewall::apply(&mut table, &FirewallChange::default());
        assert_eq!(table, None);
    }
}
