//! Notes for an operator: one value for the journal and, where it belongs there, the audit log.

mod text;

use std::time::{Duration, SystemTime};

pub(super) use text::{
    because, history_lost, led_by, no_sealing_key, not_announced, polls_for_want_of_a_session,
    refused,
};

use super::changes::Changes;
use super::error::DatabaseState;
use super::mode::Mode;
use super::name::PeerName;
use super::options::StalePolicy;
use super::trouble::Trouble;
use crate::model::policy::PolicyNote;
use crate::model::{
    BlockChange, BuildError, DeviceId, GatewayId, PeerId, PolicyId, QuarantinedPolicy, Reason,
};
use crate::plan::PlanError;
use crate::plan::guard::HeldBack;
use crate::store::Refusal;

/// Something an operator may want to read. The shell prints it once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    DatabaseUp {
        mode: Mode,
    },
    DatabaseDown {
        state: DatabaseState,
        error: String,
        retry_in: Duration,
    },
    /// The server has no session to listen on.
    NoSession {
        error: String,
    },
    ReadFailed {
        state: DatabaseState,
        error: String,
    },
    ObserveFailed {
        error: String,
    },
    /// No desired state can be built from the rows: they do not change the kernel.
    CannotBuild(BuildError),
    /// No plan can be made, because a link or the table is not as this gateway's must be.
    CannotPlan(PlanError),
    HeldBack(HeldBack),
    NoSealingKey {
        peers: usize,
    },
    GatewayInactive,
    /// The host starts from the rows that an earlier run read last.
    Restored {
        as_of: SystemTime,
    },
    Synced {
        changes: Changes,
        steps: usize,
        took: Duration,
        first: Vec<String>,
    },
    /// What the rows take away was applied, and no more, because they cannot be used as a whole.
    Withdrawn {
        changes: Changes,
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
        device: DeviceId,
        name: PeerName,
        reason: Reason,
    },
    Released {
        peer: PeerId,
        name: PeerName,
    },
    /// A trouble that was said is over.
    Over(Trouble),
    /// The kernel refuses to load what these peers may reach by the policy.
    PolicyQuarantined {
        id: PolicyId,
        policy: QuarantinedPolicy,
    },
    PolicyReleased {
        id: PolicyId,
        name: Box<str>,
    },
    Ignored(Ignored),
    NotifyMissed,
    /// No bell is heard.
    BellSilent {
        trouble: Option<String>,
    },
    /// A bell is heard, for the first time or again.
    BellHeard,
    /// A bell is heard, but gave no hint of a change.
    HintsMissed,
    /// Hints come again.
    HintsAgain,
    /// Changes to these tables are not announced.
    Unannounced {
        tables: Vec<String>,
    },
    /// Changes to all tables are announced again.
    AnnouncedAgain,
    /// The database is not the one that was followed before, or a table or its triggers were altered.
    OtherEpoch {
        why: String,
    },
    /// The rows admit these peers again, because the database lost what had withdrawn them.
    HistoryLost {
        gateway: GatewayId,
        peers: Vec<String>,
        held_for: Duration,
    },
    /// These peers, whose withdrawal the database lost, are let in again.
    HistoryFollowed {
        peers: Vec<String>,
        confirmed: bool,
    },
    ReportFailed {
        error: String,
    },
    /// Number of reports that are lost because the database rejected their content.
    ReportsLost {
        reports: usize,
        first: String,
    },
    /// A table refuses all reports, which wait.
    ReportsRefused(Refusal),
    /// Another host has this gateway's row, and reports for it.
    LedBy {
        leader: String,
    },
    Stale {
        since: Duration,
        policy: StalePolicy,
    },
    /// An operator blocked this on the host, or lifted a block.
    Block(BlockChange),
    /// The host's earlier blocks cannot be read.
    BlocksUnknown {
        error: String,
    },
}

impl Note {
    /// The trouble that begins with a note which is said only when it is news.
    pub(super) const fn begins(&self) -> Option<Trouble> {
        match self {
            Self::Stale { .. } => Some(Trouble::Stale),
            Self::HeldBack(_) => Some(Trouble::Held),
            _ => None,
        }
    }
}

/// Part of a setting, a policy or the gateway's row that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ignored {
    Setting(String),
    Gateway(String),
    Policy(PolicyNote),
}
