//! Single peers by their keys: who they are, and who stays out.

use std::collections::{BTreeMap, BTreeSet};

use super::Rows;
use crate::model::{Departed, DesiredState, KeyText, PublicKey, Touched};

impl Rows {
    /// Keeps these peers out for now, and no others, as if they were not eligible.
    pub fn keep_out(&mut self, keys: BTreeSet<PublicKey>) -> Option<Touched> {
        if keys == self.kept_out {
            return None;
        }
        self.kept_out.clone_from(&keys);
        self.change(|desired| desired.keep_out(keys.clone()))
    }

    /// Who these peers are, by the rows that name them without admitting them.
    pub fn names_of(&self, keys: &BTreeSet<PublicKey>) -> BTreeMap<PublicKey, Departed> {
        let refused = self.refused.as_ref().and_then(|refused| refused.rest.as_ref());
        let rows = refused.or(self.desired.as_ref()).into_iter().flat_map(DesiredState::rows);
        let named = rows.filter_map(|(row, _)| match row.public_key {
            KeyText::Key(key) if keys.contains(&key) => Some((key, Departed::from(row))),
            _ => None,
        });
        named.collect()
    }
}
