//! How far a read has come.

use serde::{Deserialize, Serialize};

/// The position of a read: the next [`Store::changes`](super::Store::changes) returns what that read did not see.
///
/// It is not a number, because transactions do not commit in the order in which they begin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// A `pg_snapshot` as text.
    pub snapshot: String,
    /// Which history of which database the snapshot belongs to.
    pub epoch: String,
}
