//! The trust in a reading, and the work to do on the kernel.

use std::time::Instant;

/// How far the agent trusts the last reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// A write was refused, and perhaps applied in part: no plan is made from this reading, but for
    /// withdrawals while there is no newer one.
    Doubtful,
    /// As `Doubtful`, and nothing is left to withdraw by it.
    Exhausted,
    /// Read once, and changed since by acknowledged writes.
    Kept,
    /// As `Kept`, and a glance just found the kernel to agree. No proof was made from that yet.
    Glanced,
    /// Just read. No plan was made from it yet.
    Fresh,
}

/// The reading that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    Glance,
    Reading { why: String },
}

/// The work on the kernel that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    None,
    Look,
    /// From a reading that was in doubt before, or was not.
    Apply {
        in_doubt: bool,
        /// From then on it is a long job, beside which rows are read.
        long_at: Instant,
    },
}
