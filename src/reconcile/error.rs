//! Why the database cannot be used, and why the loop ends.

use std::fmt;
use std::sync::Arc;

use crate::store::{StoreError, Unavailable};

/// What keeps the agent from using the database, in a few words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseState {
    Unreachable,
    Refuses,
    /// The agent refuses the server: its certificate, or how it asks for the password.
    Distrusted,
    NotReady,
}

impl fmt::Display for DatabaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "the database is unreachable",
            Self::Refuses => "the database refuses this agent",
            Self::Distrusted => "this agent refuses the database",
            Self::NotReady => "the database is not ready for this agent",
        })
    }
}

/// Why the database cannot be used now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("role acts for gateway {bound:?}, but [gateway] name is {configured:?}: correct one")]
    OtherGateway { bound: String, configured: String },
    #[error("a connection leads to another server than the one whose rows were read; it is closed")]
    OtherServer,
}

impl DatabaseError {
    /// Whether waiting may help. `false`: an operator must act first; the message says what to do.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::OtherGateway { .. } => false,
            Self::OtherServer => true,
        }
    }

    /// Whether tables or columns that agents read are missing.
    pub(super) fn is_misfit(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_misfit())
    }

    /// Whether a connection ended, which the next one may mend at once. What ended it after a long wait is
    /// no such error.
    pub(super) fn is_a_lost_connection(&self) -> bool {
        matches!(
            self,
            Self::Store(error) if matches!(
                **error,
                StoreError::Unreachable { .. }
                    | StoreError::Closed { .. }
                    | StoreError::NoRoom { .. }
                    | StoreError::PoolFull { .. }
                    | StoreError::NotReady { .. }
            )
        )
    }

    /// Whether reads fail for the same reason, and say so.
    pub(super) fn is_told_by_reads(&self) -> bool {
        match self {
            Self::Store(error) => error.concerns_every_statement(),
            Self::OtherGateway { .. } => true,
            Self::OtherServer => false,
        }
    }

    /// The database's state, as this agent sees it.
    #[must_use]
    pub fn unavailable(&self) -> Unavailable {
        match self {
            Self::Store(error) => error.unavailable(),
            Self::OtherGateway { .. } => Unavailable::Refuses,
            Self::OtherServer => Unavailable::NotReady,
        }
    }

    pub(super) fn state(&self) -> DatabaseState {
        match (self.unavailable(), self) {
            (Unavailable::Unreachable, _) => DatabaseState::Unreachable,
            (Unavailable::Refuses, Self::Store(error)) if error.is_distrust() => {
                DatabaseState::Distrusted
            }
            (Unavailable::Refuses, _) => DatabaseState::Refuses,
            (Unavailable::NotReady, _) => DatabaseState::NotReady,
        }
    }
}

impl From<StoreError> for DatabaseError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the pass did not converge: {0}")]
    NotConverged(String),
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the thread that speaks to the kernel has ended: start the agent again")]
    DataplaneGone,
    #[error("stopped before the pass had ended")]
    Stopped,
}
