//! Single peers by their keys.

use std::collections::{BTreeMap, BTreeSet};

use super::{Origin, Rows};
use crate::model::{Departed, DesiredState, KeyText, PublicKey};

impl Rows {
    /// Whether a peer is kept out that the database admits.
    pub fn keep_any_out(&self) -> bool {
        let desired = self.desired.as_ref().filter(|_| self.origin == Origin::Database);
        desired.is_some_and(|desired| desired.kept_out().next().is_some())
    }

    /// Who these peers are, by the rows that name them without admitting them.
    pub fn names_of(&self, keys: &BTreeSet<PublicKey>) -> BTreeMap<PublicKey, Departed> {
        let rows = self.followed().into_iter().flat_map(DesiredState::rows);
        let named = rows.filter_map(|(row, _)| match row.public_key {
            KeyText::Key(key) if keys.contains(&key) => Some((key, Departed::from(row))),
            _ => None,
        });
        named.collect()
    }
}
