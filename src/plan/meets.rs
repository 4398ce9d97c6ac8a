//! The destinations that two profiles both allow.

use std::sync::Arc;

use foldhash::HashMap;

use crate::model::Profile;

/// Profiles that two others both allow, each worked out once. Both must live as long as this.
#[derive(Default)]
pub(super) struct Meets(HashMap<(*const Profile, *const Profile), Arc<Profile>>);

impl Meets {
    pub fn of(&mut self, one: &Arc<Profile>, other: &Arc<Profile>) -> Arc<Profile> {
        let pair = (Arc::as_ptr(one), Arc::as_ptr(other));
        let both = self.0.entry(pair).or_insert_with(|| {
            let both = one.meet(other);
            if both == **one { Arc::clone(one) } else { Arc::new(both) }
        });
        Arc::clone(both)
    }
}
