//! What is worked out once for all peers that share two profiles.

use std::sync::Arc;

use foldhash::HashMap;

use crate::model::Profile;

/// Results for pairs of profiles.
pub struct ByPair<T>(HashMap<(*const Profile, *const Profile), Made<T>>);

struct Made<T> {
    result: T,
    /// While they live, no other profile comes to lie at their addresses.
    _pair: [Arc<Profile>; 2],
}

impl<T> Default for ByPair<T> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<T: Clone> ByPair<T> {
    pub fn get(
        &mut self,
        one: &Arc<Profile>,
        other: &Arc<Profile>,
        make: impl FnOnce(&Arc<Profile>, &Arc<Profile>) -> T,
    ) -> T {
        let pair = (Arc::as_ptr(one), Arc::as_ptr(other));
        let made =
            || Made { result: make(one, other), _pair: [Arc::clone(one), Arc::clone(other)] };
        self.0.entry(pair).or_insert_with(made).result.clone()
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
