//! Rows on their way to the file.

use std::sync::Arc;

use crate::model::{ChangedRows, SnapshotRows};
use crate::reconcile::event::ReadAnswer;

/// The rows of one read.
#[derive(Debug, Clone, PartialEq)]
pub enum Rows {
    Everything(Arc<SnapshotRows>),
    Changed(Arc<ChangedRows>),
}

impl Rows {
    /// A copy of the rows of an answer; `None`: it has none.
    pub fn of(answer: &ReadAnswer) -> Option<Self> {
        match answer {
            ReadAnswer::Unchanged { .. } => None,
            ReadAnswer::Changed(rows) => Some(Self::Changed(Arc::new(rows.clone()))),
            ReadAnswer::Everything(rows) => {
                Some(Self::Everything(Arc::new(SnapshotRows::clone(rows))))
            }
        }
    }
}
