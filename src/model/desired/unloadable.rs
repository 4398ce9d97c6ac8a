//! Profiles that the kernel refuses to load, and the policies that make them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{DesiredState, OwnStanding};
use crate::model::{PeerId, PolicyId, Profile};

/// A profile that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unloadable {
    pub profile: Arc<Profile>,
    /// The kernel's answer.
    pub why: Box<str>,
}

/// A policy that applies to peers whose profile the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedPolicy {
    pub name: Box<str>,
    /// Those peers.
    pub peers: usize,
    /// The kernel's answer.
    pub why: Box<str>,
}

impl DesiredState {
    /// Leaves out profiles that the kernel refused, until the rows make other ones, or are all read
    /// again. Says whether any of them is wanted.
    pub fn quarantine_profiles(&mut self, refused: impl IntoIterator<Item = Unloadable>) -> bool {
        let before = self.unloadable.len();
        for mut refused in refused {
            // The allocation that the peers share: it is found by its address.
            let mut wanted = self.firewall.assignments.values();
            if let Some(shared) = wanted.find(|profile| **profile == refused.profile) {
                refused.profile = Arc::clone(shared);
                self.unloadable.push(refused);
            }
        }
        self.unloadable.len() > before
    }

    /// The profiles that are left out because the kernel refused them.
    #[must_use]
    pub fn unloadable(&self) -> &[Unloadable] {
        &self.unloadable
    }

    /// Whether the kernel refused this profile.
    #[must_use]
    pub fn is_unloadable(&self, profile: &Arc<Profile>) -> bool {
        self.unloadable.iter().any(|refused| Arc::ptr_eq(&refused.profile, profile))
    }

    /// Forgets profiles that no peer has any more.
    pub(super) fn release_profiles(&mut self) {
        if self.unloadable.is_empty() {
            return;
        }
        let wanted: BTreeSet<*const Profile> =
            self.firewall.assignments.values().map(Arc::as_ptr).collect();
        self.unloadable.retain(|refused| wanted.contains(&Arc::as_ptr(&refused.profile)));
    }

    /// The policies that make the profiles that the kernel refused.
    #[must_use]
    pub fn quarantined_policies(&self) -> BTreeMap<PolicyId, QuarantinedPolicy> {
        let mut policies = BTreeMap::new();
        for Unloadable { profile, why } in &self.unloadable {
            for id in self.peers_with(profile) {
                let Some(row) = self.entries.get(&id).map(|entry| &entry.row) else { continue };
                for policy in self.book.policies_of(row.user_id, row.device_id) {
                    let found = policies.entry(policy.id).or_insert_with(|| QuarantinedPolicy {
                        name: policy.name.clone(),
                        peers: 0,
                        why: why.clone(),
                    });
                    found.peers += 1;
                }
            }
        }
        policies
    }

    fn peers_with(&self, profile: &Arc<Profile>) -> BTreeSet<PeerId> {
        let assignments = self.firewall.assignments.iter();
        let prefixes = assignments.filter(|(_, it)| Arc::ptr_eq(it, profile)).map(|(it, _)| it);
        let holders = prefixes.filter_map(|prefix| self.prefix_claims.holder(prefix));
        let admitted = |id: &PeerId| {
            let entry = self.entries.get(id);
            entry.is_some_and(|entry| matches!(entry.standing, OwnStanding::Admitted(_)))
        };
        holders.filter(admitted).collect()
    }
}
