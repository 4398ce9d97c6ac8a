//! Whether a host could boot with the rows in force while the database is unreachable.

use serde::{Deserialize, Serialize};

use super::{State, Status};

/// The part of the rows in force that is on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum LastGoodStatus {
    /// This run has written none yet.
    #[default]
    Unknown,
    Kept,
    /// Their withdrawals, because the disk is full.
    Withdrawals {
        why: String,
    },
    /// They could not be written, and the file was removed.
    Missing {
        why: String,
    },
    /// The file holds older rows, and can be neither written nor removed.
    OutOfDate {
        why: String,
    },
}

impl LastGoodStatus {
    /// Why the rows in force are not on disk.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Unknown | Self::Kept => None,
            Self::Withdrawals { why } | Self::Missing { why } | Self::OutOfDate { why } => {
                Some(why)
            }
        }
    }
}

impl Status {
    /// Takes in what became of the last good rows. Rows that are out of date could come back at the next
    /// boot: that must not look ready.
    pub(in crate::reconcile) fn add_last_good(&mut self, last_good: &LastGoodStatus) {
        self.warnings.extend(last_good.why().map(str::to_owned));
        if let (LastGoodStatus::OutOfDate { why }, State::Ready) = (last_good, &self.state) {
            self.state = State::Degraded { why: why.clone() };
        }
        self.last_good = last_good.clone();
    }
}
