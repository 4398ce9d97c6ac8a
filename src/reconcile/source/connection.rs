//! The connection to the database, as far as the machine knows.

use std::time::Instant;

use crate::reconcile::error::DatabaseError;
use crate::reconcile::mode::Mode;

#[derive(Debug)]
pub(super) enum Connection {
    Down {
        retry_at: Instant,
        error: Option<DatabaseError>,
        told: Told,
    },
    /// With the error of the last attempt, until this one ends.
    Connecting {
        error: Option<DatabaseError>,
    },
    Up {
        /// As chosen; [`Source::mode`](super::Source::mode) is the one in force.
        mode: Mode,
        service: Service,
    },
}

/// Whether it was said that the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Yes,
    /// The next attempt decides.
    NotYet,
}

/// Whether a connection has answered a read.
#[derive(Debug)]
pub(super) enum Service {
    /// Nothing was read yet. With the error of the last attempt.
    Unproven { error: Option<DatabaseError> },
    /// A read was answered.
    Served,
}

impl Connection {
    /// Why the database could not be read, until it is read again.
    pub const fn error(&self) -> Option<&DatabaseError> {
        match self {
            Self::Down { error, .. }
            | Self::Connecting { error }
            | Self::Up { service: Service::Unproven { error }, .. } => error.as_ref(),
            Self::Up { service: Service::Served, .. } => None,
        }
    }

    /// Whether a loss of the connection is reported only if the next attempt fails, too. Several sessions may report
    /// the same loss.
    pub const fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Up { service: Service::Served, .. } | Self::Down { told: Told::NotYet, .. }
        )
    }

    /// It is made, or goes on in another mode.
    pub fn is_up(&mut self, mode: Mode) {
        let service = match self {
            Self::Up { service: Service::Served, .. } => Service::Served,
            Self::Down { error, .. }
            | Self::Connecting { error }
            | Self::Up { service: Service::Unproven { error }, .. } => {
                Service::Unproven { error: error.take() }
            }
        };
        *self = Self::Up { mode, service };
    }

    /// A read was answered.
    pub fn serves(&mut self) {
        if let Self::Up { service, .. } = self {
            *service = Service::Served;
        }
    }
}
