//! What is worked out once for all peers that share two profiles.

use std::sync::Arc;

use foldhash::HashMap;

use crate::model::Profile;

type Address = *const Profile;

/// Results for pairs of profiles. Both profiles of a pair live as long as this, so that no other one comes to lie at
/// the same address.
#[derive(Default)]
pub struct ByPair<T>(HashMap<(Address, Address), (T, [Arc<Profile>; 2])>);

impl<T: Clone> ByPair<T> {
    pub fn get(
        &mut self,
        one: &Arc<Profile>,
        other: &Arc<Profile>,
        make: impl FnOnce(&Arc<Profile>, &Arc<Profile>) -> T,
    ) -> T {
        let pair = (Arc::as_ptr(one), Arc::as_ptr(other));
        let made = || (make(one, other), [Arc::clone(one), Arc::clone(other)]);
        self.0.entry(pair).or_insert_with(made).0.clone()
    }
}

/// Profiles that two others both allow.
#[derive(Default)]
pub(super) struct Meets(ByPair<Arc<Profile>>);

impl Meets {
    pub fn of(&mut self, one: &Arc<Profile>, other: &Arc<Profile>) -> Arc<Profile> {
        self.0.get(one, other, |one, other| {
            let both = one.meet(other);
            if both == **one { Arc::clone(one) } else { Arc::new(both) }
        })
    }
}
