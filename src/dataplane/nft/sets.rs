//! The sets of profiles with many ranges, which are loaded before the rules that look them up.

use std::collections::BTreeSet;
use std::sync::Arc;

use nix::errno::Errno;

use super::Nft;
use super::batch::Batch;
use super::block::Placed;
use super::element::Element;
use super::error::NftError;
use super::name::Family;
use super::profile;
use super::set::Set;
use crate::model::{FirewallChange, ObservedFirewall, Profile, ProfileId};

/// A set of a profile, and what it holds.
pub type Filled = (Set, Vec<Element>);

/// Sets that a refused change left, because the kernel refused to remove them at once: no rule looks them up.
#[derive(Debug, Clone, Default)]
pub struct Left(BTreeSet<Set>);

impl Left {
    pub fn add(&mut self, sets: &[Filled]) {
        self.0.extend(sets.iter().map(|(set, _)| *set));
    }

    /// Sets of these names were made anew.
    pub fn made(&mut self, sets: &[Filled]) {
        for (set, _) in sets {
            self.0.remove(set);
        }
    }

    fn delete(&self, batch: &mut Batch) {
        self.0.iter().for_each(|set| batch.delete_set(set));
    }

    /// Forgets them, unless they may be removed later. One that is gone, or that a rule looks up, is another one
    /// by now: the next reading finds what is there.
    fn removed(&mut self, removed: &Result<(), NftError>) {
        match removed {
            Ok(()) | Err(NftError::Refused { errno: Errno::ENOENT | Errno::EBUSY, .. }) => {
                self.0.clear();
            }
            Err(_) => {}
        }
    }
}

impl Nft {
    pub(super) fn make_sets(&mut self, sets: &[Filled]) -> Result<(), NftError> {
        let made = self.commit(|batch| {
            create_sets(batch, sets);
            Ok(())
        });
        match made {
            // An agent that was killed left one of them.
            Err(NftError::Refused { errno: Errno::EEXIST, .. }) => self.commit(|batch| {
                replace_sets(batch, sets);
                Ok(())
            }),
            made => made,
        }
    }

    /// Removes the sets that refused changes left, and says whether it did. Else the next reading finds them, and
    /// the whole table is loaded anew.
    pub(super) fn remove_left(&mut self) -> bool {
        if self.left.0.is_empty() {
            return true;
        }
        let left = self.left.clone();
        let removed = self.commit(|batch| {
            left.delete(batch);
            Ok(())
        });
        self.left.removed(&removed);
        removed.is_ok()
    }
}

/// The sets that a change adds to a table in force. They are loaded before the rules that look them up: the
/// kernel lets packets see new rules at once, and what a new set of ranges holds only at the end of the
/// transaction (`nf_tables_commit`), some 40 ms later where it holds 100,000.
pub fn new_sets(
    change: &FirewallChange,
    observed: Option<&ObservedFirewall>,
) -> Result<Vec<Filled>, NftError> {
    let mut sets = Vec::new();
    if change.load_base.is_some() {
        return Ok(sets);
    }
    for (id, (is_new, profile)) in &change.put_profiles {
        let Placed::InChain(profile) = Placed::of(*id, profile) else { continue };
        let old = (!is_new).then(|| known(observed, *id)).transpose()?;
        let had = |family| match old.map(|old| Placed::of(*id, old)) {
            Some(Placed::InChain(old)) => profile::has_set(old, family),
            _ => false,
        };
        let new = Family::BOTH.into_iter().filter(|family| !had(*family));
        sets.extend(new.filter_map(|family| filled(*id, profile, family)));
    }
    Ok(sets)
}

fn filled(id: ProfileId, profile: &Profile, family: Family) -> Option<Filled> {
    Some((Set::Allowed(id, family), profile::set_elements(profile, family)?))
}

/// The profiles of a change that need new sets in a table in force.
pub fn with_new_sets(
    change: &FirewallChange,
    observed: Option<&ObservedFirewall>,
) -> BTreeSet<ProfileId> {
    let before = observed.filter(|_| change.load_base.is_none());
    let has = |id: ProfileId, profile: Option<&Profile>, family| {
        let placed = profile.map(|profile| Placed::of(id, profile));
        matches!(placed, Some(Placed::InChain(profile)) if profile::has_set(profile, family))
    };
    let needs = |(id, (is_new, profile)): &(&ProfileId, &(bool, Arc<Profile>))| {
        let old = before.filter(|_| !is_new).and_then(|before| before.profiles().get(id));
        Family::BOTH.into_iter().any(|family| {
            has(**id, Some(profile), family) && !has(**id, old.map(|old| &**old), family)
        })
    };
    let puts = change.put_profiles.iter().filter(|_| before.is_some());
    puts.filter(needs).map(|(id, _)| *id).collect()
}

/// Appends the requests that make these sets, none of which may be there: else elements would be added to
/// those that it holds.
pub fn create_sets(batch: &mut Batch, sets: &[Filled]) {
    for (set, elements) in sets {
        batch.create_set(set);
        batch.add_elements(set, elements);
    }
}

/// As [`create_sets`], where some may be there that no rule looks up.
pub fn replace_sets(batch: &mut Batch, sets: &[Filled]) {
    for (set, _) in sets {
        // Only a set that exists can be deleted.
        batch.add_set(set);
        batch.delete_set(set);
    }
    create_sets(batch, sets);
}

/// The sets of a profile of a table that is made.
pub fn write_sets_of(batch: &mut Batch, id: ProfileId, profile: &Profile) {
    if let Placed::InChain(profile) = Placed::of(id, profile) {
        let sets = Family::BOTH.into_iter().filter_map(|family| filled(id, profile, family));
        create_sets(batch, &sets.collect::<Vec<_>>());
    }
}

/// Whether the table has what a change removes.
pub fn check_removed(
    change: &FirewallChange,
    observed: Option<&ObservedFirewall>,
) -> Result<(), NftError> {
    let before = observed.filter(|_| change.load_base.is_none());
    change.remove_profiles.iter().try_for_each(|id| known(before, *id).map(drop))
}

/// A profile that a change is about.
pub fn known(before: Option<&ObservedFirewall>, id: ProfileId) -> Result<&Profile, NftError> {
    let profile = before.and_then(|before| before.profiles().get(&id));
    profile.map(|profile| &**profile).ok_or(NftError::UnknownProfile(id))
}
