//! The firewall, with profile numbers that are not those in the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;

use gatepost::dataplane::Firewall;
use gatepost::dataplane::nft::{Difference, Nft, NftError, ProfileCounters};
use gatepost::model::{FirewallChange, ObservedFirewall, Profile, ProfileId};

/// From this number on profiles share the chain of a block.
const FIRST_IN_BLOCK: u32 = 1024;

/// Turns the numbers of the first block into those of the second and back, while `shifted`: what is
/// planned with a small number then stands in a block, and what stood there or in a chain before
/// goes on doing so.
pub struct Shifted {
    pub nft: Nft,
    pub shifted: bool,
}

impl Shifted {
    /// What a number is on the other side.
    fn turn(&self, ProfileId(id): ProfileId) -> ProfileId {
        ProfileId(if self.shifted { id ^ FIRST_IN_BLOCK } else { id })
    }

    fn turn_keys<T>(
        &self,
        by_id: impl IntoIterator<Item = (ProfileId, T)>,
    ) -> BTreeMap<ProfileId, T> {
        by_id.into_iter().map(|(id, value)| (self.turn(id), value)).collect()
    }

    fn turn_table(&self, table: &ObservedFirewall) -> ObservedFirewall {
        let profiles = table.profiles().iter().map(|(id, profile)| (*id, Arc::clone(profile)));
        let assignments = table.assignments().iter().map(|(prefix, id)| (*prefix, self.turn(*id)));
        ObservedFirewall::new(
            table.rules().clone(),
            self.turn_keys::<Arc<Profile>>(profiles),
            assignments.collect(),
        )
    }

    fn turn_change(&self, change: &FirewallChange) -> FirewallChange {
        FirewallChange {
            load_base: change.load_base.clone(),
            unassign: change.unassign.clone(),
            put_profiles: self.turn_keys(change.put_profiles.clone()),
            assign: change.assign.iter().map(|(prefix, id)| (*prefix, self.turn(*id))).collect(),
            remove_profiles: change.remove_profiles.iter().map(|id| self.turn(*id)).collect(),
        }
    }
}

impl Firewall for Shifted {
    fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError> {
        let table = self.nft.observe()?;
        Ok(table.map(|table| self.turn_table(&table)))
    }

    fn difference(&self) -> Option<&Difference> {
        self.nft.difference()
    }

    fn is_current(&mut self) -> Result<bool, NftError> {
        self.nft.is_current()
    }

    fn apply(
        &mut self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> Result<(), NftError> {
        let observed = observed.map(|table| self.turn_table(table));
        self.nft.apply(&self.turn_change(change), observed.as_ref())
    }

    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, NftError> {
        self.nft.read_counters_of(self.turn(id))
    }

    fn remove(&mut self) -> Result<bool, NftError> {
        self.nft.remove_table()
    }
}
