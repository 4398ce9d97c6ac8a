//! Single peers by their keys.

use std::collections::{BTreeMap, BTreeSet};

use super::{Origin, Rows};
use crate::model::{Departed, DesiredState, KeyText, ObservedState, PublicKey};
use crate::plan::gate;

impl Rows {
    /// Whether a peer is kept out that the database admits. Last good rows may admit peers that it has
    /// withdrawn since.
    pub(super) fn keep_any_out(&self) -> bool {
        let is_admitted =
            |key| self.origin == Origin::Database || self.history.lost().contains_key(&key);
        self.desired.as_ref().is_some_and(|desired| desired.kept_out().any(is_admitted))
    }

    /// Whether the gate is not as these rows want it beside this routing.
    pub fn gate_differs(&self, observed: &ObservedState) -> bool {
        self.desired.as_ref().is_some_and(|desired| gate::differs(desired, observed))
    }

    /// The names of these peers, by the rows that name them without admitting them.
    pub fn names_of(&self, keys: &BTreeSet<PublicKey>) -> BTreeMap<PublicKey, Departed> {
        let rows = self.followed().into_iter().flat_map(DesiredState::rows);
        let named = rows.filter_map(|(row, _)| match row.public_key {
            KeyText::Key(key) if keys.contains(&key) => Some((key, Departed::from(row))),
            _ => None,
        });
        named.collect()
    }
}
