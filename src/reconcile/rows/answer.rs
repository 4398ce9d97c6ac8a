//! Answers to reads of the database, and what becomes of the rows by them.

use std::time::Instant;

use super::build::NotBuilt;
use super::{Change, Rows};
use crate::model::{BuildError, DesiredState};
use crate::reconcile::error::DatabaseError;
use crate::reconcile::event::{ReadAnswer, ReadKind};

/// What became of the rows by an answer.
#[derive(Debug)]
pub struct Taken {
    pub verdict: Verdict,
    pub change: Change,
    /// The peers that `[stale]` suspended until now are admitted again.
    pub renewal: Change,
}

/// Whether the rows are what the database holds now.
#[derive(Debug)]
pub enum Verdict {
    /// They are.
    Good {
        /// How much was read of them; [`ReadKind::Check`]: none had changed.
        kind: ReadKind,
        /// Single rows changed that have an effect here. An inserted target of a policy has none without a peer,
        /// and is not announced.
        finds_changes: bool,
        /// They became too many by that: a read of everything says what follows.
        is_beyond_limits: bool,
    },
    /// Single rows were read, and there is no state that they could change.
    TooLittle,
    /// No state can be built of those that were read, which may withdraw something all the same.
    Refused(BuildError),
    /// The answer does not tell.
    Unknown,
}

impl Taken {
    fn with(verdict: Verdict, change: Change) -> Self {
        Self { verdict, change, renewal: Change::default() }
    }
}

impl Rows {
    /// Takes in the answer to a read.
    pub fn take_in(&mut self, answer: Result<ReadAnswer, DatabaseError>, now: Instant) -> Taken {
        let (kind, change) = match answer {
            Err(_) => {
                // The end of the connection, which comes next, says why.
                self.doubt();
                return Taken::with(Verdict::Unknown, Change::default());
            }
            Ok(ReadAnswer::Unchanged { taken_at }) => match self.unchanged(taken_at) {
                Some(touched) => (ReadKind::Check, touched.into()),
                None => return Taken::with(Verdict::Unknown, Change::default()),
            },
            Ok(ReadAnswer::Changed(rows)) => match self.apply(rows) {
                Some(touched) => (ReadKind::Changes, touched.into()),
                None => return Taken::with(Verdict::TooLittle, Change::default()),
            },
            Ok(ReadAnswer::Everything(rows)) => match self.replace(*rows, now) {
                Ok(replaced) => (ReadKind::Everything, replaced.into()),
                Err(refused) => {
                    let NotBuilt { error, withdrawn } = *refused;
                    // What the other rows withdraw does not wait for this one.
                    return Taken::with(Verdict::Refused(error), withdrawn.into());
                }
            },
        };
        self.good(kind, change, now)
    }

    fn good(&mut self, kind: ReadKind, change: Change, now: Instant) -> Taken {
        let renewal = self.are_good(now).into();
        let by_single_rows = kind == ReadKind::Changes;
        let is_beyond = self.desired().is_some_and(DesiredState::is_beyond_limits);
        let verdict = Verdict::Good {
            kind,
            finds_changes: by_single_rows && !change.touched.is_empty(),
            is_beyond_limits: by_single_rows && is_beyond,
        };
        Taken { verdict, change, renewal }
    }
}
