//! The interface between the host and the firewall's netlink code.

use std::collections::BTreeSet;

use super::nft::{Difference, Nft, NftError, Ownership, ProfileCounters};
use crate::model::{FirewallChange, ObservedFirewall, ProfileId};

/// Our table, as the host uses it.
pub trait Firewall {
    /// Reads our table back. `None`: there is no such table.
    ///
    /// # Errors
    /// When the table cannot be read whole.
    fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError>;

    /// The first object that was not as this version loads it when the table was last read; `None`: the
    /// table was as loaded, or there was none.
    fn difference(&self) -> Option<&Difference>;

    /// Whether no other program can change the table.
    fn is_owned(&self) -> bool {
        false
    }

    /// Whether our table is certainly as it was last read or written by this value: no other
    /// program has changed it since.
    ///
    /// # Errors
    /// When the kernel does not answer.
    fn is_current(&mut self) -> Result<bool, NftError>;

    /// Applies a change in one transaction: after an error nothing of it is in force. `observed` is
    /// what the table holds now.
    ///
    /// # Errors
    /// When the kernel refuses it.
    fn apply(
        &mut self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> Result<(), NftError>;

    /// The profiles of a change for which much is loaded before the change is in force.
    fn slow_profiles(
        &self,
        _change: &FirewallChange,
        _observed: Option<&ObservedFirewall>,
    ) -> BTreeSet<ProfileId> {
        BTreeSet::new()
    }

    /// What a profile's rules counted since they were loaded; `None`: there is no such profile.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, NftError>;

    /// Removes our table, and says whether there was one.
    ///
    /// # Errors
    /// When the kernel refuses it. A missing table is no error.
    fn remove(&mut self) -> Result<bool, NftError>;
}

impl Firewall for Nft {
    fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError> {
        Self::observe(self)
    }

    fn difference(&self) -> Option<&Difference> {
        Self::difference(self)
    }

    fn is_owned(&self) -> bool {
        self.ownership() == Ownership::Taken
    }

    fn is_current(&mut self) -> Result<bool, NftError> {
        Self::is_current(self)
    }

    fn apply(
        &mut self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> Result<(), NftError> {
        Self::apply(self, change, observed)
    }

    fn slow_profiles(
        &self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> BTreeSet<ProfileId> {
        Self::with_new_sets(change, observed)
    }

    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, NftError> {
        self.read_counters_of(id)
    }

    fn remove(&mut self) -> Result<bool, NftError> {
        self.remove_table()
    }
}
