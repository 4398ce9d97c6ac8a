//! Profiles that the kernel refuses to load, and the policies that make them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::{DesiredState, OwnStanding};
use crate::model::{PeerId, PolicyId, Profile};

/// A profile that the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unloadable {
    pub profile: Arc<Profile>,
    /// The kernel's answer.
    pub why: Box<str>,
    /// What to do about it.
    pub remedy: &'static str,
}

/// A policy that applies to peers whose profile the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuarantinedPolicy {
    pub name: Box<str>,
    /// Those peers.
    pub peers: usize,
    /// The kernel's answer.
    pub why: Box<str>,
    /// What to do about it.
    pub remedy: &'static str,
}

/// A profile that the kernel refused, and the prefixes that should have it.
#[derive(Debug)]
pub(super) struct Refusal {
    of: Unloadable,
    prefixes: BTreeSet<IpNet>,
}

/// The profiles that the kernel refused.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    all: Vec<Refusal>,
    /// Differs after each change of what they concern.
    version: u64,
}

impl DesiredState {
    /// Leaves out profiles that the kernel refused, until the rows make other ones, or are all read
    /// again. Says whether any of them is wanted.
    pub fn quarantine_profiles(&mut self, refused: impl IntoIterator<Item = Unloadable>) -> bool {
        let before = self.refusals.all.len();
        for mut refused in refused {
            // The allocation that the peers share: it is found by its address.
            let wanted = &self.firewall.assignments;
            if let Some(shared) = wanted.values().find(|profile| **profile == refused.profile) {
                let has_it = wanted.iter().filter(|(_, profile)| Arc::ptr_eq(profile, shared));
                let prefixes = has_it.map(|(prefix, _)| *prefix).collect();
                refused.profile = Arc::clone(shared);
                self.refusals.all.push(Refusal { of: refused, prefixes });
            }
        }
        self.refusals.version += 1;
        self.refusals.all.len() > before
    }

    /// The profiles that are left out because the kernel refused them.
    pub fn unloadable(&self) -> impl ExactSizeIterator<Item = &Unloadable> {
        self.refusals.all.iter().map(|refusal| &refusal.of)
    }

    /// Whether the kernel refused this profile.
    #[must_use]
    pub fn is_unloadable(&self, profile: &Arc<Profile>) -> bool {
        self.unloadable().any(|refused| Arc::ptr_eq(&refused.profile, profile))
    }

    /// A number that differs once [`Self::quarantined_policies`] may.
    #[must_use]
    pub const fn quarantined_policies_version(&self) -> u64 {
        self.refusals.version
    }

    pub(super) const fn refusals_changed(&mut self) {
        self.refusals.version += 1;
    }

    /// A prefix should have this profile from now on, or none.
    pub(super) fn gets_profile(&mut self, prefix: IpNet, profile: Option<&Arc<Profile>>) {
        for Refusal { of, prefixes } in &mut self.refusals.all {
            let concerns = profile.is_some_and(|profile| Arc::ptr_eq(profile, &of.profile));
            let differs = if concerns { prefixes.insert(prefix) } else { prefixes.remove(&prefix) };
            // Its holder may be another one.
            self.refusals.version += u64::from(differs || concerns);
        }
    }

    /// Forgets profiles that no peer has any more.
    pub(super) fn release_profiles(&mut self) {
        self.refusals.all.retain(|refusal| !refusal.prefixes.is_empty());
    }

    /// The policies that make the profiles that the kernel refused.
    #[must_use]
    pub fn quarantined_policies(&self) -> BTreeMap<PolicyId, QuarantinedPolicy> {
        let mut policies = BTreeMap::new();
        for refusal in &self.refusals.all {
            for id in self.peers_with(&refusal.prefixes) {
                let Some(row) = self.entries.get(&id).map(|entry| &entry.row) else { continue };
                for policy in self.book.policies_of(row.user_id, row.device_id) {
                    let found = policies.entry(policy.id).or_insert_with(|| QuarantinedPolicy {
                        name: policy.name.clone(),
                        peers: 0,
                        why: refusal.of.why.clone(),
                        remedy: refusal.of.remedy,
                    });
                    found.peers += 1;
                }
            }
        }
        policies
    }

    fn peers_with(&self, prefixes: &BTreeSet<IpNet>) -> BTreeSet<PeerId> {
        let holders = prefixes.iter().filter_map(|prefix| self.prefix_claims.holder(prefix));
        let admitted = |id: &PeerId| {
            let entry = self.entries.get(id);
            entry.is_some_and(|entry| matches!(entry.standing, OwnStanding::Admitted(_)))
        };
        holders.filter(admitted).collect()
    }
}
