//! Single peers by their keys.

use std::collections::{BTreeMap, BTreeSet};

use super::Rows;
use crate::model::{Departed, DesiredState, KeyText, PublicKey};

impl Rows {
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
