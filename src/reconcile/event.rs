//! The machine's inputs and outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::bell::BellNews;
use super::device_standings::{AskedDevice, DeviceStandings};
use super::error::DatabaseError;
use super::history::{Withdrawal, Withdrawals};
use super::ledger::Report;
use super::mode::Mode;
use super::note::Note;
use super::options::Reloaded;
use crate::dataplane::{DataplaneError, Glance, Outcome, Reading, SharedObserved};
use crate::model::{BlockList, ChangedRows, Mark, PublicKey, SnapshotRows};
use crate::plan::Plan;
use crate::store::{Hosts, Refusal};

/// Something that happened. What announces a change says only "look again", so that it may be lost,
/// doubled or late; the answers to actions carry what was read or done.
#[derive(Debug)]
pub enum Event {
    Connected {
        mode: Mode,
    },
    /// Why the server has no session to listen on; `None`: it has one, or none is wanted.
    NoSession {
        why: Option<String>,
    },
    /// The connection was lost or could not be made.
    Disconnected {
        error: DatabaseError,
    },
    /// A notification from the database arrived.
    Notified,
    /// A hint arrived from the broker.
    Hinted,
    /// The kernel announced a change.
    KernelChanged {
        why: String,
    },
    /// The kernel announced a change of the routing rules, or of the source checks of links.
    RoutingChanged,
    /// Something was heard of the bell, or of what carries its hints.
    Bell(BellNews),
    /// How many gateways share the database.
    Gateways {
        count: u32,
    },
    /// Changes to these tables are not announced. Empty: changes to all tables are.
    Unannounced {
        tables: Vec<String>,
    },
    /// Comes before the answer of a full read.
    Epoch(EpochRead),
    Read(Result<ReadAnswer, DatabaseError>),
    /// The peers whose withdrawals the database of this epoch has lost.
    MarksAnswered {
        epoch: String,
        lost: Result<BTreeSet<PublicKey>, DatabaseError>,
    },
    /// What the rows say about the devices asked for.
    DevicesAnswered(Result<DeviceStandings, DatabaseError>),
    /// The last good rows of an earlier run, read because the database did not answer.
    Restored {
        last_good: Box<LastGood>,
        /// The database's time by this host's steady clock; `None`: the host has booted since the last read.
        database_now: Option<SystemTime>,
    },
    /// There are no last good rows, or they cannot be used.
    NothingRestored,
    Observed(Result<Box<Reading>, DataplaneError>),
    Glanced(Result<Glance, DataplaneError>),
    Applied(Outcome),
    Reported(Sent),
    /// An operator asked for the peers.
    PeersAsked,
    /// The other hosts of the gateway.
    Hosts(Hosts),
    /// An operator asked for a comparison of everything.
    Resync,
    /// The configuration was read again.
    Reloaded(Box<Reloaded>),
    /// An operator confirmed the removals that are held back by rows read until this time of the
    /// database, and let peers in that are kept out since `let_in_until` or earlier; `None`: no peer.
    ConfirmRemovals {
        until: SystemTime,
        let_in_until: Option<SystemTime>,
    },
    /// The host's block list is another now.
    Blocks(Arc<BlockList>),
    /// Time passed.
    Tick,
}

/// The part of the kernel that changed, as it announced.
#[derive(Debug)]
pub enum KernelChange {
    /// The routing rules, or whether links check sources. Other programs change these often.
    Routing,
    /// Anything, for this reason.
    Anything(String),
}

impl KernelChange {
    /// This change and a later one: one look shows both.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        match later {
            Self::Anything(_) => later,
            Self::Routing => self,
        }
    }
}

impl From<KernelChange> for Event {
    fn from(change: KernelChange) -> Self {
        match change {
            KernelChange::Routing => Self::RoutingChanged,
            KernelChange::Anything(why) => Self::KernelChanged { why },
        }
    }
}

/// The last good rows of an earlier run.
#[derive(Debug, Clone, PartialEq)]
pub struct LastGood {
    pub rows: SnapshotRows,
    /// The changes since the snapshot, oldest first.
    pub changes: Vec<ChangedRows>,
    pub provenance: Provenance,
}

/// Whether the last good rows are as this gateway's agent wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provenance {
    /// Each line has a checksum that only the gateway's private key makes.
    Sealed,
    /// An earlier version wrote them, without checksums: they may only withdraw.
    Unsealed,
}

/// The answer to a read of the database.
#[derive(Debug)]
pub enum ReadAnswer {
    /// Nothing had changed up to this time of the database.
    Unchanged {
        taken_at: SystemTime,
    },
    Changed(ChangedRows),
    Everything(Box<SnapshotRows>),
}

/// The result of a report.
#[derive(Debug, Default)]
pub struct Sent {
    /// The part that was not taken.
    pub left: Report,
    /// Why reports are lost that the database refuses because of what they say: one for each.
    pub lost: Vec<String>,
    /// Tables that refuse all reports, which wait; `None`: not asked for.
    pub refusals: Option<Vec<Refusal>>,
    /// The other hosts of the gateway; `None`: not asked for.
    pub hosts: Option<Hosts>,
    /// Why something is left.
    pub error: Option<DatabaseError>,
}

/// What a full read says besides its rows.
#[derive(Debug)]
pub struct EpochRead {
    /// Of which epoch the database is.
    pub epoch: String,
    /// Why everything was read, if there was a cursor.
    pub why: Option<String>,
    /// The marks that may have brought about what these rows withdraw.
    pub marks: Vec<Mark>,
    /// The database's time of the rows.
    pub read_at: SystemTime,
}

/// Something to do. At most one `Read`, and at most one of `Observe`, `Glance` and `Apply`, are under
/// way at any time.
#[derive(Debug)]
pub enum Action {
    Connect,
    Read(ReadKind),
    /// Read everything of ours in the kernel.
    Observe,
    /// Read the parts of the kernel's state whose size does not grow with the peers.
    Glance,
    /// Apply the plan. The reading follows each acknowledged step; the machine shares it.
    Apply(Plan, SharedObserved),
    /// Load the last good rows of an earlier run.
    Restore,
    /// Ask the database of this epoch which of these withdrawals it has lost.
    AskMarks {
        epoch: String,
        withdrawals: BTreeMap<PublicKey, Withdrawal>,
    },
    /// Ask the database about the devices of these peers, which are held and named by no row.
    AskDevices(BTreeMap<PublicKey, AskedDevice>),
    /// Keep these withdrawals on disk.
    Remember(Withdrawals),
    /// Tells the cache whether the rows read since the previous `Keep` may be persisted as last-good, and
    /// whose removal waits, where they may be but for these peers.
    Keep(Keep, BTreeSet<PublicKey>),
    Report(Report),
    /// Write this to the journal.
    Say(Note),
}

impl Action {
    /// Whether it begins new work on the kernel or on the database.
    pub(super) const fn begins_work(&self) -> bool {
        match self {
            Self::Connect
            | Self::Read(_)
            | Self::Observe
            | Self::Glance
            | Self::Apply(..)
            | Self::Restore
            | Self::AskMarks { .. }
            | Self::AskDevices(_) => true,
            Self::Remember(_) | Self::Keep(..) | Self::Report(_) | Self::Say(_) => false,
        }
    }
}

/// Whether rows may be persisted as last-good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All rows read so far, including those that an earlier `Later` held back.
    All,
    /// The rows read since the previous `Keep`; earlier ones still wait for the operator. Of a whole snapshot,
    /// which includes these, what does not concern the peers whose removal waits.
    These,
    /// What does not concern the peers whose removal waits: these rows remove so many that an operator must
    /// confirm first.
    Later,
}

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ReadKind {
    /// Asks whether anything changed, which costs less, and reads the changes if so.
    Check,
    Changes,
    Everything,
}

impl fmt::Display for ReadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "check",
            Self::Changes => "changes",
            Self::Everything => "everything",
        })
    }
}
