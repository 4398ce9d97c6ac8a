//! What the machine is told, and what it asks for.

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use super::ledger::Report;
use crate::dataplane::{Glance, Outcome, Reading, SharedObserved};
use crate::model::{BuildError, ChangedRows, PeerId, SnapshotRows};
use crate::plan::guard::HeldBack;
use crate::plan::{Plan, PlanError};

/// The two clocks, as values.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

/// How the agent learns of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Woken by NOTIFY, with a slow poll for safety.
    Listen,
    /// Woken by the NOTIFY of whoever asked first: all ask at long intervals, and tell each other.
    Turns,
    /// Asks at a steady interval.
    Poll,
}

/// Something happened. Never carries desired data but for the answers to a read.
#[derive(Debug)]
pub enum Event {
    Connected {
        mode: Mode,
    },
    /// The connection was lost, or could not be made.
    Disconnected {
        error: String,
    },
    /// The database says: look again.
    Notified,
    /// The kernel says: look again.
    KernelChanged {
        why: String,
    },
    /// Nobody tells of changes of these tables. None: of all somebody does.
    Unwatched {
        tables: Vec<String>,
    },
    Read(Result<ReadAnswer, String>),
    /// The last good rows of an earlier run: the database has not answered yet.
    Restored(Box<SnapshotRows>, Vec<ChangedRows>),
    Observed(Result<Box<Reading>, String>),
    Glanced(Result<Glance, String>),
    Applied(Outcome),
    Reported(Sent),
    /// An operator wants everything compared.
    Resync,
    /// An operator confirms the removal that was held back.
    ConfirmRemovals,
    /// Time went by.
    Tick,
}

impl Event {
    /// Whether it may change what is desired.
    pub(super) const fn brings_rows(&self) -> bool {
        matches!(
            self,
            Self::Restored(..) | Self::Read(Ok(ReadAnswer::Changed(_) | ReadAnswer::Everything(_)))
        )
    }
}

/// What a read of the database gave.
#[derive(Debug)]
pub enum ReadAnswer {
    /// Nothing changed up to this time of the database.
    Unchanged {
        taken_at: SystemTime,
    },
    Changed(ChangedRows),
    Everything(Box<SnapshotRows>),
}

/// What became of a report.
#[derive(Debug, Default)]
pub struct Sent {
    /// What was not taken.
    pub left: Report,
    /// Audit entries that the database will never take, each with why.
    pub refused: Vec<String>,
    /// Why something is left.
    pub error: Option<String>,
}

/// Something to do. At most one of `Read`, `Observe`, `Glance` and `Apply` is under way at any time,
/// but for the first `Read`, which does not wait for the first `Observe`.
#[derive(Debug)]
pub enum Action {
    Connect,
    Read(ReadKind),
    Observe,
    /// Read back what does not grow with the peers.
    Glance,
    /// Makes the reading what the kernel acknowledges. The machine shares it, to tell meanwhile.
    Apply(Plan, SharedObserved),
    /// Read the last good rows of an earlier run.
    Restore,
    /// Whether the rows that were read since the last word on them are to be the last good ones.
    Keep(Keep),
    Report(Report),
    Say(Note),
}

/// A word on the rows that were read since the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// They are good, and so are those that a removal held back.
    All,
    /// They are good; others still wait for the operator's word.
    These,
    /// They remove so much that they wait for an operator's word.
    Later,
}

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadKind {
    Changes,
    Everything,
}

/// Something an operator may want to read. Printed once, by the shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    DatabaseUp {
        mode: Mode,
    },
    DatabaseDown {
        error: String,
        retry_in: Duration,
    },
    ReadFailed {
        error: String,
    },
    ObserveFailed {
        error: String,
    },
    /// The gateway's own row cannot be right: the kernel is not touched.
    CannotBuild(BuildError),
    /// The interface is not ours: the kernel is not touched.
    CannotPlan(PlanError),
    HeldBack(HeldBack),
    GatewayInactive,
    /// The host is brought up from what an earlier run read last.
    Restored {
        as_of: std::time::SystemTime,
    },
    Synced {
        steps: usize,
        took: Duration,
        first: Vec<String>,
    },
    DriftRepaired {
        steps: usize,
        first: Vec<String>,
        why: String,
    },
    StepRefused {
        step: String,
        error: String,
    },
    NotConverged {
        steps: usize,
        first: Vec<String>,
        retry_in: Duration,
    },
    Quarantined {
        peer: PeerId,
        name: String,
        reason: String,
    },
    Released {
        peer: PeerId,
        name: String,
    },
    /// Part of a setting or a policy has no effect.
    Ignored {
        what: String,
    },
    NotifyMissed,
    /// Nobody tells of changes of these tables.
    Unwatched {
        tables: Vec<String>,
    },
    /// Of all somebody does again.
    Watched,
    ReportFailed {
        error: String,
    },
    /// So many audit entries are lost: the database refuses what they say.
    AuditRefused {
        entries: usize,
        first: String,
    },
    Stale {
        since: Duration,
        policy: super::StalePolicy,
    },
}

impl fmt::Display for ReadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changes => "changes",
            Self::Everything => "everything",
        })
    }
}
