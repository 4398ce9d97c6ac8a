//! The desired destinations of every prefix: those that the rows grant and those that held peers keep, without
//! the profiles that the kernel refuses and without the prefixes of peers that cannot be added. They are found
//! prefix by prefix, so that a change costs no look at the others.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;

use super::Held;
use super::join::joined;
use crate::model::{
    DesiredFirewall, DesiredState, FirewallBase, ObservedFirewall, ObservedState, Profile,
};

static NOTHING: LazyLock<Arc<Profile>> = LazyLock::new(Arc::default);

/// The firewall that should be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub(super) base: &'a FirewallBase,
    rows: &'a BTreeMap<IpNet, Arc<Profile>>,
    held: Option<&'a Held>,
    refused: Option<Refused<'a>>,
    sealed: Option<Sealed<'a>>,
}

/// Peers whose preshared keys stay sealed: those that the kernel lacks are not added, and their prefixes have
/// no place. A site around such a place would be judged by it.
#[derive(Debug, Clone, Copy)]
struct Sealed<'a> {
    desired: &'a DesiredState,
    observed: &'a ObservedState,
}

/// Profiles that the kernel refuses: their prefixes keep what they reach where the profile allows all of
/// that, and else reach nothing.
#[derive(Debug, Clone, Copy)]
struct Refused<'a> {
    desired: &'a DesiredState,
    table: Option<&'a ObservedFirewall>,
}

impl<'a> From<&'a DesiredFirewall> for Wanted<'a> {
    fn from(firewall: &'a DesiredFirewall) -> Self {
        let (base, rows) = (&firewall.base, &firewall.assignments);
        Self { base, rows, held: None, refused: None, sealed: None }
    }
}

impl<'a> Wanted<'a> {
    pub(super) fn new(
        desired: &'a DesiredState,
        held: &'a Held,
        observed: &'a ObservedState,
    ) -> Self {
        let table = observed.firewall.as_ref();
        Self {
            held: Some(held).filter(|held| !held.is_empty()),
            refused: (desired.unloadable().len() > 0).then_some(Refused { desired, table }),
            sealed: (desired.sealed_count() > 0).then_some(Sealed { desired, observed }),
            ..Self::from(desired.firewall())
        }
    }

    pub(super) fn contains(&self, prefix: &IpNet) -> bool {
        self.get(prefix).is_some()
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<&'a Arc<Profile>> {
        let kept = self.held.and_then(|held| held.reach_of(prefix));
        Some(self.loadable(prefix, kept.or_else(|| self.granted(prefix))?))
    }

    /// Every prefix, in their order.
    pub(super) fn iter(self) -> impl Iterator<Item = (&'a IpNet, &'a Arc<Profile>)> {
        let kept = self.held.into_iter().flat_map(Held::reach);
        let granted = self.rows.iter().filter(move |(prefix, _)| !self.is_absent(prefix));
        let all = joined(granted, kept);
        all.filter_map(move |(prefix, granted, kept)| {
            Some((prefix, self.loadable(prefix, kept.or(granted)?)))
        })
    }

    fn granted(&self, prefix: &IpNet) -> Option<&'a Arc<Profile>> {
        self.rows.get(prefix).filter(|_| !self.is_absent(prefix))
    }

    /// Whether the prefix is of a peer that is not added.
    fn is_absent(&self, prefix: &IpNet) -> bool {
        self.sealed.is_some_and(|Sealed { desired, observed }| {
            let holder = desired.sealed_holder(prefix);
            holder.is_some_and(|key| !observed.peers.contains_key(key))
        })
    }

    fn loadable(&self, prefix: &IpNet, profile: &'a Arc<Profile>) -> &'a Arc<Profile> {
        let Some(Refused { desired, table }) = self.refused else { return profile };
        if !desired.is_unloadable(profile) {
            return profile;
        }
        let reaches = table.and_then(|table| table.profile_of(prefix));
        reaches.filter(|reaches| reaches.is_within(profile)).unwrap_or(&NOTHING)
    }
}
