//! The question which withdrawals a database has lost.

use std::time::Instant;

/// Put when the database has another epoch than before, and answered by a database of this epoch.
#[derive(Debug)]
pub(super) struct Question {
    pub epoch: String,
    pub state: Asking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    /// The rows of the new epoch are not read yet, or cannot be used.
    WaitsForRows,
    Due(Instant),
    Asked,
}

impl Question {
    /// Whether the answer of a database of this epoch is awaited. Another answer belongs to an earlier question.
    pub fn is_asked_of(&self, epoch: &str) -> bool {
        self.state == Asking::Asked && self.epoch == epoch
    }
}
