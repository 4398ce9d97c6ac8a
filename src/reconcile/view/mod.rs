//! The view of the machine: its status, its peers, its explanations. Changes nothing.

mod denied;
mod explain;
mod peers;
mod preview;
pub mod status;
mod status_of;
mod takeover;
pub mod time;
mod who;
mod words;

use std::fmt;
use std::time::{Duration, Instant, SystemTime};

use super::hold::HoldView;
use super::mirror::MirrorView;
use super::mode::Mode;
use super::note::{history_lost, no_sealing_key};
use super::outbox::OutboxView;
use super::proof::ProofView;
use super::rows::RowsView;
use super::source::SourceView;
use super::work::{PassObstacle, WorkView};
use crate::model::{BlockList, BuildError, DesiredState};
use crate::plan::guard::HeldBack;
use crate::plan::{Held, PlanError};

pub use explain::{Answers, ExplainError, parse_destination};
pub use preview::{Link, PreviewError, preview, preview_explanation, preview_rows};
pub use who::WhoError;
pub(super) use words::{Listed, peers_in_words};

/// The machine as of one moment, part by part.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) source: SourceView<'a>,
    pub(super) rows: RowsView<'a>,
    pub(super) mirror: MirrorView<'a>,
    pub(super) work: WorkView<'a>,
    pub(super) hold: HoldView<'a>,
    pub(super) proof: ProofView<'a>,
    pub(super) outbox: OutboxView<'a>,
    pub(super) is_busy: bool,
}

/// Why the kernel is left as it is although it may differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// It is not known whom the host blocks.
    Blocks(String),
    Build(BuildError),
    Plan(PlanError),
    Refused {
        steps: usize,
        first: String,
    },
    Observe(String),
    /// The last good rows have no checksum, and may have been altered.
    Unsealed,
}

/// Figures that only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub passes: u64,
    pub steps: u64,
    pub refused_steps: u64,
    pub drift_repairs: u64,
    pub notifications: u64,
    pub notify_missed: u64,
    pub full_reads: u64,
    pub change_reads: u64,
    pub observations: u64,
    pub flows_cut: u64,
}

impl View<'_> {
    /// How the agent learns about changes now; `None` while the database is unreachable.
    #[must_use]
    pub const fn mode(&self) -> Option<Mode> {
        self.source.mode
    }

    /// Whether a bell is heard.
    #[must_use]
    pub const fn hears_bell(&self) -> bool {
        self.source.hears_bell
    }

    /// When the database heard of this host last.
    #[must_use]
    pub const fn heard_of_at(&self) -> Option<Instant> {
        self.outbox.heard_of_at
    }

    /// How often the agent asks for changes in poll mode; `None` in any other.
    #[must_use]
    pub const fn poll_interval(&self) -> Option<Duration> {
        self.source.poll_interval
    }

    /// The desired state; `None` until rows could be used.
    #[must_use]
    pub const fn desired(&self) -> Option<&DesiredState> {
        self.rows.desired
    }

    /// Why the kernel is left as it is although it may differ.
    #[must_use]
    pub fn obstacle(&self) -> Option<Obstacle> {
        let unknown = self.rows.block_list.why_unreadable();
        let blocks = unknown.map(|why| Obstacle::Blocks(why.to_owned()));
        let rows = self.rows.refused.map(|error| Obstacle::Build(error.clone()));
        let unsealed = || self.rows.only_withdraw.then_some(Obstacle::Unsealed);
        let reading = || self.mirror.error.map(|error| Obstacle::Observe(error.to_owned()));
        let pass = || self.work.passes.obstacle.cloned().map(Obstacle::from);
        blocks.or(rows).or_else(unsealed).or_else(reading).or_else(pass)
    }

    /// The database's time of the last proof that may be shown.
    #[must_use]
    pub const fn last_sync_at(&self) -> Option<SystemTime> {
        self.proof.last
    }

    /// The peers that stay although the rows do not admit them.
    #[must_use]
    pub const fn held(&self) -> &Held {
        self.hold.staying
    }

    /// Whether the rows were last read longer than `stale.after` ago.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        self.rows.is_stale
    }

    /// The removals that wait for an operator.
    #[must_use]
    pub const fn held_back(&self) -> Option<HeldBack> {
        self.hold.held_back
    }

    /// Whether an operator may let peers in whose withdrawal the database lost.
    #[must_use]
    pub fn keeps_out(&self) -> bool {
        !self.rows.lost.is_empty()
    }

    /// Figures that only grow.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        let (source, passes) = (self.source.figures, self.work.passes.totals);
        Totals {
            passes: passes.passes,
            steps: passes.steps,
            refused_steps: passes.refused_steps,
            drift_repairs: passes.drift_repairs,
            notifications: source.notifications,
            notify_missed: source.notify_missed,
            full_reads: source.full_reads,
            change_reads: source.change_reads,
            observations: self.mirror.readings,
            flows_cut: passes.flows_cut,
        }
    }

    /// The kernel is proven, and no work is known that is still to be done.
    #[must_use]
    pub const fn is_at_rest(&self) -> bool {
        !self.is_busy
            && !self.source.reads_wanted
            && !self.mirror.reading_wanted
            && self.proof.is_current
            && self.outbox.is_empty
    }

    /// Between two full reads of the database.
    #[must_use]
    pub const fn resync_interval(&self) -> Duration {
        self.source.resync_interval
    }

    /// Whether nothing waits to be written back.
    #[must_use]
    pub const fn is_reported(&self) -> bool {
        self.outbox.is_empty
    }

    /// The obstacle that prevents a proof until someone removes it, once all other work is done:
    /// `run --once` gives up then.
    #[must_use]
    pub fn stuck(&self) -> Option<String> {
        if self.is_busy {
            return None;
        }
        let waits = self.waits().filter(|_| !self.work.compares);
        self.obstacle().map(|obstacle| obstacle.to_string()).or(waits)
    }

    /// The reason why the kernel is not proven equal although no obstacle prevents a plan.
    fn waits(&self) -> Option<String> {
        let sealed = self.rows.desired.map_or(0, DesiredState::sealed_count);
        let sealed = (sealed > 0).then(|| no_sealing_key(sealed));
        let held_back = || self.hold.held_back.map(|held| held.to_string());
        sealed.or_else(held_back).or_else(|| self.unjudged()).or_else(|| self.kept_out())
    }

    /// Why peers stay that the last good rows admit; `None`: none does for this reason.
    fn unjudged(&self) -> Option<String> {
        let peers = (self.hold.unjudged > 0 && self.rows.desired.is_some())
            .then_some(self.hold.unjudged)?;
        Some(format!(
            "the removals of up to {peers} peers were held back before the agent started, and the last good rows do \
             not show them: these peers stay until the database is read; then `gatepost confirm` can remove them"
        ))
    }

    /// Why peers stay out that the database admits; `None`: none does.
    fn kept_out(&self) -> Option<String> {
        let keys = self.rows.desired?.kept_out();
        let names: Vec<_> =
            keys.filter_map(|key| Some(self.rows.lost.get(&key)?.name.clone())).collect();
        (!names.is_empty()).then(|| history_lost(&names))
    }

    /// The host's block list.
    #[must_use]
    pub const fn block_list(&self) -> &BlockList {
        self.rows.block_list
    }

    /// Whether the kernel holds no peer that is blocked, and none is being added; `None`: it was not
    /// read yet.
    #[must_use]
    pub fn blocks_are_in_force(&self) -> Option<bool> {
        let observed = self.mirror.observed.as_ref()?;
        Some(self.rows.all.blocks_are_in_force(observed))
    }

    /// When the kernel was last read completely, by this host's clock.
    #[must_use]
    pub fn read_at(&self) -> Option<status::Timestamp> {
        self.mirror.read_at.map(status::Timestamp)
    }

    /// Whether questions are answered from the last reading, as another would cost too much now.
    #[must_use]
    pub fn rests(&self, now: Instant) -> bool {
        self.mirror.rests_until.is_some_and(|until| until > now)
    }

    /// How many comparisons operators asked for.
    #[must_use]
    pub const fn resyncs_asked(&self) -> u64 {
        self.proof.comparisons.asked()
    }

    /// How the comparison of this number ended; `None`: it has not.
    #[must_use]
    pub fn resync_end(&self, number: u64) -> Option<Result<(), ResyncError>> {
        if self.proof.comparisons.is_proven(number) {
            return Some(Ok(()));
        }
        if let Some(error) = self.source.error.filter(|_| self.source.is_down) {
            return Some(Err(ResyncError::Database(error.to_string())));
        }
        let read = self.proof.comparisons.is_read(number);
        self.stuck().filter(|_| read).map(|why| Err(ResyncError::Stuck(why)))
    }
}

/// Why a comparison that an operator asked for did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResyncError {
    #[error("the database is not connected: {0}")]
    Database(String),
    #[error("{0}")]
    Stuck(String),
}

impl From<PassObstacle> for Obstacle {
    fn from(obstacle: PassObstacle) -> Self {
        match obstacle {
            PassObstacle::Plan(error) => Self::Plan(error),
            PassObstacle::Refused { steps, first } => Self::Refused { steps, first },
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(error) => error.fmt(f),
            Self::Build(error) => error.fmt(f),
            Self::Plan(error) => error.fmt(f),
            Self::Refused { steps: 1, first } => write!(f, "the kernel refused a step: {first}"),
            Self::Refused { steps, first } => {
                write!(f, "the kernel refused {steps} steps, the first: {first}")
            }
            Self::Unsealed => f.write_str(
                "the database is unreachable, and the last good rows, of an earlier version, have no checksum: \
                 they withdraw peers and grant nothing",
            ),
            Self::Observe(error) => write!(f, "could not read the kernel: {error}"),
        }
    }
}
