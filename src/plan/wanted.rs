//! The desired destinations of every prefix: those that the rows grant and those that held peers keep, without
//! the profiles that the kernel refuses. They are found prefix by prefix, so that a change costs no look at the
//! others.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use ipnet::IpNet;

use super::Held;
use super::join::joined;
use crate::model::{DesiredFirewall, DesiredState, FirewallBase, ObservedFirewall, Profile};

static NOTHING: LazyLock<Arc<Profile>> = LazyLock::new(Arc::default);

/// The firewall that should be.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub(super) base: &'a FirewallBase,
    rows: &'a BTreeMap<IpNet, Arc<Profile>>,
    held: Option<&'a Held>,
    refused: Option<Refused<'a>>,
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
        Self { base: &firewall.base, rows: &firewall.assignments, held: None, refused: None }
    }
}

impl<'a> Wanted<'a> {
    pub(super) fn new(
        desired: &'a DesiredState,
        held: &'a Held,
        table: Option<&'a ObservedFirewall>,
    ) -> Self {
        Self {
            held: Some(held).filter(|held| !held.is_empty()),
            refused: (desired.unloadable().len() > 0).then_some(Refused { desired, table }),
            ..Self::from(desired.firewall())
        }
    }

    pub(super) fn contains(&self, prefix: &IpNet) -> bool {
        self.get(prefix).is_some()
    }

    pub(super) fn get(&self, prefix: &IpNet) -> Option<&'a Arc<Profile>> {
        let kept = self.held.and_then(|held| held.reach_of(prefix));
        Some(self.loadable(prefix, kept.or_else(|| self.rows.get(prefix))?))
    }

    /// Every prefix, in their order.
    pub(super) fn iter(self) -> impl Iterator<Item = (&'a IpNet, &'a Arc<Profile>)> {
        let kept = self.held.into_iter().flat_map(Held::reach);
        let all = joined(self.rows.iter(), kept);
        all.filter_map(move |(prefix, granted, kept)| {
            Some((prefix, self.loadable(prefix, kept.or(granted)?)))
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
