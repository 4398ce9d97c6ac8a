//! Why the database cannot be used, and why the loop ends.

use std::sync::Arc;

use crate::store::{StoreError, Unavailable};

/// The state of a database that does not answer.
pub(super) const UNREACHABLE: &str = "the database is unreachable";

/// Why the database cannot be used now.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Store(Arc<StoreError>),
    #[error("role acts for gateway {bound:?}, but [gateway] name is {configured:?}: correct one")]
    OtherGateway { bound: String, configured: String },
}

impl DatabaseError {
    /// Whether waiting may help. `false`: an operator must act first; the message says what to do.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::OtherGateway { .. } => false,
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
        }
    }

    /// The database's state, as this agent sees it.
    #[must_use]
    pub fn unavailable(&self) -> Unavailable {
        match self {
            Self::Store(error) => error.unavailable(),
            Self::OtherGateway { .. } => Unavailable::Refuses,
        }
    }

    /// The database's state, as this agent sees it, as a sentence.
    pub(super) fn in_short(&self) -> &'static str {
        match (self.unavailable(), self) {
            (Unavailable::Unreachable, _) => UNREACHABLE,
            (Unavailable::Refuses, Self::Store(error)) if error.is_distrust() => {
                "this agent refuses the database"
            }
            (Unavailable::Refuses, _) => "the database refuses this agent",
            (Unavailable::NotReady, _) => "the database is not ready for this agent",
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
