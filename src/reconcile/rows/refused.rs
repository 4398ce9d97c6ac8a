//! Rows that cannot be used as a whole.

use crate::model::{BuildError, DesiredState};
use crate::plan::guard::Whose;

/// The last snapshot could not be built. Until one can, only withdrawals are planned.
#[derive(Debug)]
pub(super) struct Refused {
    pub error: BuildError,
    /// The state by its other rows, with a usable row of the gateway. Only withdrawals may follow from it.
    /// `None`: unknown.
    pub rest: Option<DesiredState>,
}

impl Refused {
    /// Where the key does not match, it may be another gateway's rows that were read.
    pub const fn whose(&self) -> Whose {
        match self.error {
            BuildError::KeyMismatch { .. } | BuildError::BadGatewayKey { .. } => Whose::InDoubt,
            _ => Whose::Ours,
        }
    }
}
