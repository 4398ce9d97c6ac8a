//! Troubles that last for a while. Each trouble is said when it begins, and once when it is over.

use std::fmt;

/// The subject of a trouble, which decides what ends it. Prints as the all-clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Ends when rows were read.
    Database,
    /// Ends when there is a session to listen on, or none is wanted any more.
    Session,
    /// Ends when a snapshot could be built.
    Rows,
    /// Ends when rows were read that can be used.
    Stale,
    /// Ends when the block list could be read.
    Blocks,
    /// Ends when the gateway's row is active.
    Inactive,
    /// Ends when no peer has a preshared key that stays sealed.
    Sealed,
    /// Ends when no removal waits for an operator.
    Held,
    /// Ends when a report was taken.
    Report,
    /// Ends when no table refuses reports.
    Merge,
    /// Ends when no other host leads.
    Host,
    /// Ends when the kernel was proven equal.
    Kernel,
    /// A route of another program: goes on while everything else is proven.
    Route,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "over: the database is read again",
            Self::Session => "over: there is a session to listen on again",
            Self::Rows => "over: the gateway's row and settings can be used again",
            Self::Stale => "over: the rows are up to date again",
            Self::Blocks => "over: the block list can be read again",
            Self::Inactive => "over: this gateway's row is active again",
            Self::Sealed => "over: no preshared key waits for a sealing key",
            Self::Held => "over: no removal is held back",
            Self::Report => "over: reports are written again",
            Self::Merge => "over: the database takes this gateway's reports again",
            Self::Host => "over: no other host reports for this gateway",
            Self::Kernel => "over: the kernel is proven equal",
            Self::Route => "over: no route of another program is in the way",
        })
    }
}
