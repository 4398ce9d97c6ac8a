//! The loop's options from the configuration.

use std::sync::Arc;
use std::time::Duration;

use super::history::Withdrawals;
use super::mode::Mode;
use crate::model::{BlockList, Local};
use crate::plan::guard::MaxRemoved;

/// How the machine behaves.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    pub local: Arc<Local>,
    /// The host's block list at the start.
    pub block_list: BlockList,
    pub timing: Timing,
    pub max_removed: MaxRemoved,
    /// `guard.lost_history`: how long a peer stays out whose withdrawal the database lost.
    pub lost_history: Duration,
    /// The withdrawals that an earlier run kept.
    pub withdrawals: Withdrawals,
    pub stale: StaleOptions,
}

/// The part of [`MachineOptions`] that may change while the loop runs. No session depends on it.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// As before, but for the sealing keys and `deny_log`.
    pub local: Arc<Local>,
    /// As before, but for the intervals of `[report]`.
    pub timing: Timing,
    pub max_removed: MaxRemoved,
    pub lost_history: Duration,
    pub stale: StaleOptions,
}

/// `[stale]`: what happens to the peers when the rows could not be read for a long time.
#[derive(Debug, Clone, Copy)]
pub struct StaleOptions {
    pub policy: StalePolicy,
    pub after: Duration,
}

/// `stale.policy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StalePolicy {
    /// The kernel stays as the last rows said.
    #[default]
    Keep,
    /// Peers without a live session are removed, so that no new session can begin.
    DenyNew,
    /// All peers are removed.
    Down,
}

/// `sync.mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncMode {
    /// Follow the bell where one is heard; else listen where few gateways share the database and
    /// notifications arrive, and poll elsewhere.
    #[default]
    Auto,
    Listen,
    Hints,
    Poll,
}

/// The loop's intervals.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between two questions in poll mode, where few gateways share the database.
    pub poll_interval: Duration,
    /// Between two questions in the modes that are told of changes, in case that is lost.
    pub safety_poll_interval: Duration,
    /// Between two full reads of the database.
    pub resync_interval: Duration,
    /// Between two reports of handshakes.
    pub report_interval: Duration,
    /// Between two writes of `last_sync_at`; each rests on a reading of the kernel or a glance at it.
    pub heartbeat: Duration,
    /// Like [`Timing::heartbeat`], where more than [`MANY_GATEWAYS`] share the database.
    pub heartbeat_among_many: Duration,
    /// Seed of the jitter that keeps a fleet from asking all at once.
    pub seed: u64,
}

#[cfg(test)]
impl Timing {
    /// Every interval is a second.
    pub(super) const SECONDS: Self = {
        let second = Duration::from_secs(1);
        Self {
            poll_interval: second,
            safety_poll_interval: second,
            resync_interval: second,
            report_interval: second,
            heartbeat: second,
            heartbeat_among_many: second,
            seed: 1,
        }
    };
}

/// Above this many gateways, heartbeats cost the database more than all else that it does for an idle fleet.
const MANY_GATEWAYS: u32 = 1_000;

/// A hint that is lost without a sign waits for such a question at most.
const LONGEST_HINTED_INTERVAL: Duration = Duration::from_secs(60);
/// All gateways that are hinted together ask at most so often a second, unless [`LONGEST_HINTED_INTERVAL`] ends.
const HINTED_QUESTIONS_PER_SEC: u32 = 16;

/// All gateways of a database together ask it at most so often a second.
const QUESTIONS_PER_SEC: u32 = 200;

/// The agent spends at most one part in so many of its time reading the kernel.
const READING_SHARE: u32 = 200;
/// A live session shakes hands every 120 s (`REKEY_AFTER_TIME`) and ends 180 s after the last
/// handshake: readings further apart than this could take one session for two.
const LONGEST_COMPARE_INTERVAL: Duration = Duration::from_secs(60);

impl Timing {
    /// With the heartbeat for so many gateways.
    #[must_use]
    pub fn among(self, gateways: u32) -> Self {
        let is_many = gateways > MANY_GATEWAYS;
        let heartbeat = if is_many { self.heartbeat_among_many } else { self.heartbeat };
        Self { heartbeat, ..self }
    }

    /// How long an agent that hears nothing waits before it asks for changes.
    #[must_use]
    pub fn question_interval(&self, mode: Mode, gateways: u32) -> Duration {
        let among = self.poll_interval_among(gateways);
        match mode {
            Mode::Listen => self.safety_poll_interval,
            Mode::Hints => self.safety_poll_interval.max(hinted_among(gateways)),
            Mode::Poll => among,
        }
    }

    /// Between two questions in poll mode, where so many gateways share the database.
    #[must_use]
    pub fn poll_interval_among(&self, gateways: u32) -> Duration {
        self.poll_interval.max(Duration::from_secs(gateways.into()) / QUESTIONS_PER_SEC)
    }

    /// Between two complete readings of the kernel where these are cheap: both `last_sync_at` and
    /// the handshakes depend on them.
    #[must_use]
    pub fn compare_interval(&self) -> Duration {
        self.report_interval.min(self.heartbeat)
    }

    /// Between two complete readings of the kernel where one takes this long.
    #[must_use]
    pub fn compare_interval_after(&self, took: Duration) -> Duration {
        self.compare_interval().max(affordable_after(took))
    }
}

/// Between two questions of a gateway that a bell rings, where so many gateways share the database.
fn hinted_among(gateways: u32) -> Duration {
    (Duration::from_secs(gateways.into()) / HINTED_QUESTIONS_PER_SEC).min(LONGEST_HINTED_INTERVAL)
}

/// How long readings rest after one that took this long.
pub(super) fn affordable_after(took: Duration) -> Duration {
    took.saturating_mul(READING_SHARE).min(LONGEST_COMPARE_INTERVAL)
}
