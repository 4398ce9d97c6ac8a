//! What the machine knows, in the words of [`Status`] and [`PeerStatus`].

use std::time::SystemTime;

use super::event::Now;
use super::explain::Answers;
use super::machine::Database;
use super::say::not_told;
use super::status::{
    BackendInUse, DatabaseStatus, GatewayStatus, HeldBack, InterfaceStatus, ModeInUse, PassStatus,
    PeerCounts, PeerState, PeerStatus, QuarantinedPeer, State, Status, SyncStatus, Timestamp,
};
use super::{Machine, Mode, Obstacle};
use crate::dataplane::{Backend, SharedObserved};
use crate::model::{DesiredState, KeyText, ObservedState, PeerRow, Standing, Traffic};
use crate::plan::guard;

/// So many quarantined peers are listed one by one.
pub(super) const LISTED_QUARANTINED: usize = 100;

impl From<guard::HeldBack> for HeldBack {
    fn from(held: guard::HeldBack) -> Self {
        Self { removals: held.removed as u64, of: held.present as u64 }
    }
}

impl Machine {
    /// The status as of now. Every figure is of the last proof or reading, none is assumed.
    ///
    /// What the machine cannot know (versions, why this mode) is left for the shell.
    #[must_use]
    pub fn status(&self) -> Status {
        let desired = self.desired.as_ref();
        let observed = self.observed.as_ref().map(SharedObserved::read);
        let interface = observed.as_ref().and_then(|observed| observed.interface.as_ref());
        Status {
            state: self.state(),
            gateway: GatewayStatus {
                name: desired.map(|d| d.gateway().name.clone()).unwrap_or_default(),
                id: desired.map(|d| d.gateway().id),
            },
            interface: InterfaceStatus {
                name: self.options.local.interface.to_string(),
                backend: self.backend.and_then(|backend| match backend {
                    Backend::Kernel => Some(BackendInUse::Kernel),
                    Backend::Userspace => Some(BackendInUse::Userspace),
                    Backend::Auto => None,
                }),
                public_key: interface.and_then(|interface| interface.public_key),
                listen_port: interface.map(|interface| interface.listen_port),
            },
            sync: self.sync_status(),
            database: self.database_status(),
            peers: self.peer_counts(observed.as_ref().map_or(0, |observed| observed.peers.len())),
            quarantined: self.row_status.quarantined.clone(),
            warnings: self.warnings(),
            held_back: self.held.map(HeldBack::from),
            ..Status::default()
        }
    }

    fn state(&self) -> State {
        let inactive = self.desired.as_ref().is_some_and(|desired| !desired.gateway().active);
        if inactive {
            return State::NotReady { why: "the gateway's row is not active".into() };
        }
        if self.stale {
            return State::NotReady {
                why: "no rows could be read and used for longer than [stale] after".into(),
            };
        }
        if let Some(obstacle) = self.obstacle() {
            return State::NotReady { why: obstacle.to_string() };
        }
        if let Some(held) = self.held {
            return State::NotReady { why: held.to_string() };
        }
        if self.proven.is_none() {
            return State::Starting;
        }
        match &self.database {
            Database::Up { .. } if !self.unwatched.is_empty() => {
                State::Degraded { why: not_told(&self.unwatched) }
            }
            Database::Up { .. } => State::Ready,
            Database::Down { error, .. } => {
                State::Degraded { why: format!("the database is away: {error}") }
            }
            Database::Connecting { .. } => State::Degraded { why: "the database is away".into() },
        }
    }

    fn sync_status(&self) -> SyncStatus {
        let mode = match self.database {
            Database::Up { mode: Mode::Listen } => Some(ModeInUse::Listen),
            Database::Up { mode: Mode::Turns } => Some(ModeInUse::Turns),
            Database::Up { mode: Mode::Poll } => Some(ModeInUse::Poll),
            Database::Connecting { .. } | Database::Down { .. } => None,
        };
        SyncStatus {
            mode,
            mode_why: String::new(),
            last_sync_at: self.last_proven.map(|proven| Timestamp(proven.as_of)),
            lag_ms: self.last_pass.and_then(|pass| pass.lag).map(millis),
            last_pass: self.last_pass.map(|pass| PassStatus {
                at: Timestamp(pass.at),
                duration_ms: millis(pass.took),
                steps: pass.steps as u64,
                refused: pass.refused as u64,
            }),
            passes: self.totals.passes,
            drift_repaired: self.totals.drift_repairs,
            notify_missed: self.totals.notify_missed,
            refused_steps: self.totals.refused_steps,
            flows_cut: self.totals.flows_cut,
        }
    }

    fn database_status(&self) -> DatabaseStatus {
        let (connected, last_error) = match &self.database {
            Database::Up { .. } => (true, None),
            Database::Down { error, .. } => (false, Some(error.clone())),
            Database::Connecting { .. } => (false, None),
        };
        let since = Some(Timestamp(self.database_since));
        DatabaseStatus { connected, since, last_error, schema_version: None }
    }

    fn peer_counts(&self, in_kernel: usize) -> PeerCounts {
        let in_kernel = in_kernel as u64;
        let Some(desired) = &self.desired else {
            return PeerCounts { in_kernel, ..PeerCounts::default() };
        };
        let (wanted, quarantined) = (desired.peers().len(), desired.quarantined_count());
        PeerCounts {
            desired: wanted as u64,
            in_kernel,
            ineligible: (desired.row_count() - wanted - quarantined) as u64,
            quarantined: quarantined as u64,
        }
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = self.row_status.warnings.clone();
        let blocked = self.blocked_routes.iter();
        warnings.extend(blocked.map(|(prefix, why)| format!("no route leads to {prefix}: {why}")));
        if !self.unwatched.is_empty() {
            warnings.push(not_told(&self.unwatched));
        }
        if self.ledger.dropped_audit_entries > 0 {
            warnings.push(format!(
                "{} audit entries were dropped while the database was away",
                self.ledger.dropped_audit_entries
            ));
        }
        if self.ledger.refused_audit_entries > 0 {
            warnings.push(format!(
                "{} audit entries were refused by the database and left out: the journal says why",
                self.ledger.refused_audit_entries
            ));
        }
        warnings
    }

    /// Every peer's row with what the kernel says of it.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let Some(desired) = &self.desired else { return Vec::new() };
        let observed = self.observed.as_ref().map(SharedObserved::read);
        let peer = |(row, standing)| self.peer(desired, observed.as_deref(), row, standing);
        desired.rows().map(peer).collect()
    }

    fn peer(
        &self,
        desired: &DesiredState,
        observed: Option<&ObservedState>,
        row: &PeerRow,
        standing: Standing<'_>,
    ) -> PeerStatus {
        let (state, traffic, addresses) = match standing {
            Standing::Admitted(key) => {
                let wanted = desired.peers().get(key);
                let held = observed.and_then(|observed| observed.peers.get(key));
                let proven = held.is_some() && held == wanted;
                let state = if proven { PeerState::InKernel } else { PeerState::Pending };
                let traffic = self.traffic.get(key).copied().unwrap_or_default();
                let addresses = wanted.map(|peer| peer.allowed_ips.iter().collect());
                (state, traffic, addresses.unwrap_or_default())
            }
            Standing::Ineligible => {
                let reason = why_ineligible(desired, row);
                (PeerState::Ineligible { reason }, Traffic::default(), vec![row.assigned_ip])
            }
            Standing::Quarantined(reason) => {
                let reason = reason.to_string();
                (PeerState::Quarantined { reason }, Traffic::default(), vec![row.assigned_ip])
            }
        };
        PeerStatus {
            state,
            peer_id: row.id,
            user: row.username.to_string(),
            user_id: row.user_id,
            device: row.device_name.to_string(),
            device_id: row.device_id,
            public_key: match &row.public_key {
                KeyText::Key(key) => key.to_string(),
                KeyText::Bad { text, .. } => text.to_string(),
            },
            addresses,
            endpoint: traffic.endpoint,
            last_handshake_at: traffic.last_handshake.map(Timestamp),
            rx_bytes: traffic.rx_bytes,
            tx_bytes: traffic.tx_bytes,
            policies: policy_names(desired, row),
        }
    }

    /// What is desired now; `None` until the database was read.
    #[must_use]
    pub const fn desired(&self) -> Option<&DesiredState> {
        self.desired.as_ref()
    }

    /// Figures that only grow.
    #[must_use]
    pub const fn totals(&self) -> super::Totals {
        self.totals
    }

    /// The kernel is proven, and nothing known is still to be done.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        !self.jobs.any()
            && !self.reporting
            && self.read_wanted.is_none()
            && self.observe_wanted.is_none()
            && self.proven.is_some()
            && self.ledger.is_empty()
    }

    /// Nothing is waiting to be written back.
    pub(super) fn is_reported(&self) -> bool {
        !self.reporting && self.ledger.is_empty()
    }

    /// A removal that waits for an operator's word.
    #[must_use]
    pub const fn held(&self) -> Option<crate::plan::guard::HeldBack> {
        self.held
    }

    /// How many comparisons were asked for.
    #[must_use]
    pub const fn resyncs_asked(&self) -> u64 {
        self.resyncs.asked()
    }

    /// How the comparison of this number ended; `None`: it has not.
    #[must_use]
    pub fn resync_end(&self, number: u64) -> Option<Result<(), String>> {
        if self.resyncs.is_proven(number) {
            return Some(Ok(()));
        }
        if let Database::Down { error, .. } = &self.database {
            return Some(Err(format!("the database is away: {error}")));
        }
        self.is_stuck().filter(|_| self.resyncs.is_read(number)).map(Err)
    }

    /// The verdict for what `who` (a user, device, tunnel address or key) sends to `destination`.
    ///
    /// # Errors
    /// In words: whom or what nobody knows.
    pub(super) fn explain(&self, who: &str, destination: &str) -> Result<Answers, String> {
        let desired = self.desired.as_ref().ok_or("the database was not read yet")?;
        let observed = self.observed.as_ref().map(SharedObserved::read);
        super::explain::explain(desired, observed.as_deref(), who, destination)
    }

    /// What keeps a pass from ever being proven as things stand, once all else is done: `run --once`
    /// gives up on it.
    #[must_use]
    pub fn is_stuck(&self) -> Option<String> {
        if self.jobs.any() {
            return None;
        }
        let held = self.held.filter(|_| self.scope.is_nothing()).map(|held| held.to_string());
        self.obstacle().map(ToString::to_string).or(held)
    }
}

/// What the status says of the rows: it is asked for far more often than they change.
#[derive(Debug, Default)]
pub(super) struct RowStatus {
    /// The first of them.
    quarantined: Vec<QuarantinedPeer>,
    warnings: Vec<String>,
}

impl RowStatus {
    pub fn of(desired: &DesiredState) -> Self {
        let mut warnings = row_warnings(desired);
        let unallocated = desired.unallocated_count();
        if unallocated > 0 {
            warnings.push(format!(
                "{unallocated} peers have an address that ip_allocations does not give them"
            ));
        }
        Self { quarantined: quarantined(desired), warnings }
    }
}

/// What of the settings and policies has no effect.
pub(super) fn row_warnings(desired: &DesiredState) -> Vec<String> {
    let settings = desired.setting_warnings().iter().map(ToString::to_string);
    settings.chain(desired.policy_notes().iter().map(ToString::to_string)).collect()
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Build(error) => error.fmt(f),
            Self::Plan(error) => error.fmt(f),
            Self::Refused { steps, first } => {
                write!(f, "the kernel refused {steps} steps, the first: {first}")
            }
            Self::Observe(error) => write!(f, "the kernel could not be read: {error}"),
        }
    }
}

/// Why a row that is not eligible is not.
pub(super) fn why_ineligible(desired: &DesiredState, row: &PeerRow) -> String {
    let mut reasons: Vec<&str> = desired.bars_of(row).names().collect();
    if row.revoked_at.is_some_and(|at| at <= desired.as_of()) {
        reasons.push("device revoked");
    }
    if reasons.is_empty() { "not admitted now".to_owned() } else { reasons.join(", ") }
}

pub(super) fn quarantined(desired: &DesiredState) -> Vec<QuarantinedPeer> {
    let listed = desired.quarantined().take(LISTED_QUARANTINED);
    listed
        .map(|(row, reason)| QuarantinedPeer {
            peer_id: row.id,
            user: row.username.to_string(),
            device: row.device_name.to_string(),
            reason: reason.to_string(),
        })
        .collect()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The one place where the shell reads the clocks.
pub(super) fn clock() -> Now {
    Now { instant: std::time::Instant::now(), wall: SystemTime::now() }
}

fn policy_names(desired: &DesiredState, row: &PeerRow) -> Vec<String> {
    let policies = desired.policies().policies_of(row.user_id, row.device_id);
    policies.into_iter().map(|policy| policy.name.to_string()).collect()
}
