//! Passes: from the first step that changes the kernel to the proof that nothing differs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use crate::backoff::Backoff;
use crate::causes::causes;
use crate::dataplane::{Outcome, RefusedStep};
use crate::model::{Departed, DesiredState, ObservedState, PolicyId, PublicKey};
use crate::plan::{Plan, PlanError, Step};
use crate::reconcile::changes::{Changes, NameList};
use crate::reconcile::clock::Now;
use crate::reconcile::lags::Lags;
use crate::reconcile::name::PeerName;
use crate::reconcile::note::Note;
use crate::reconcile::rows::Extent;

/// A pass that plans this often without coming to rest is given up for a while.
const MAX_ATTEMPTS: u32 = 3;
/// How many lines of a plan are printed in full.
pub(in crate::reconcile) const FIRST_LINES: usize = 8;

#[derive(Debug)]
pub(super) struct Passes {
    current: Option<Pass>,
    last: Option<PassFigures>,
    /// When what was refused is tried again.
    retry_at: Option<Instant>,
    obstacle: Option<PassObstacle>,
    /// Shared by reading the kernel and changing it: both wait for the same kernel.
    backoff: Backoff,
    totals: PassTotals,
}

/// Why the last pass did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::reconcile) enum PassObstacle {
    Plan(PlanError),
    Refused { steps: usize, first: String },
}

/// Figures that only grow.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::reconcile) struct PassTotals {
    pub passes: u64,
    pub steps: u64,
    pub refused_steps: u64,
    pub drift_repairs: u64,
    pub flows_cut: u64,
    pub lags: Lags,
}

/// A pass that has begun to change the kernel.
#[derive(Debug)]
pub(in crate::reconcile) struct Pass {
    started: Instant,
    attempts: u32,
    /// Steps that were tried.
    pub steps: usize,
    /// Steps that the kernel acknowledged and that changed something; cutting flows does not count.
    pub applied: usize,
    /// The first steps in full.
    pub first: Vec<String>,
    /// No row changed: another program changed the kernel. What announced that.
    pub drift: Option<String>,
    /// The peers that the plan under way removes.
    removing: BTreeMap<PublicKey, Departed>,
    /// The peers that it removed.
    pub revoked: BTreeMap<PublicKey, Departed>,
    /// The peers that it added.
    pub added: BTreeSet<PublicKey>,
    pub flows_cut: u64,
    /// Flows of other peers than those revoked were cut, too.
    pub cut_others: bool,
    /// The plan under way cuts flows.
    cutting: bool,
    refused: usize,
    pub took: Duration,
}

/// The figures of the last pass that had something to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassFigures {
    pub at: SystemTime,
    pub took: Duration,
    /// From the notification of the oldest change (else the start of its read) to the proof. `None`:
    /// it was not proven, or no row had changed.
    pub lag: Option<Duration>,
    pub steps: usize,
    /// How many of these the kernel refused.
    pub refused: usize,
}

/// The view for readers.
#[derive(Debug, Clone, Copy)]
pub(in crate::reconcile) struct PassView<'a> {
    pub last: Option<PassFigures>,
    pub obstacle: Option<&'a PassObstacle>,
    pub totals: PassTotals,
}

impl Passes {
    pub fn new(seed: u64) -> Self {
        Self {
            current: None,
            last: None,
            retry_at: None,
            obstacle: None,
            backoff: Backoff::new(seed),
            totals: PassTotals::default(),
        }
    }

    pub const fn view(&self) -> PassView<'_> {
        PassView { last: self.last, obstacle: self.obstacle.as_ref(), totals: self.totals }
    }

    pub const fn is_under_way(&self) -> bool {
        self.current.is_some()
    }

    /// When what was refused is tried again.
    pub const fn due(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether it is time to try again.
    pub fn let_time_pass(&mut self, now: Instant) -> bool {
        self.retry_at.take_if(|at| *at <= now).is_some()
    }

    /// Whether a plan may be made, or what was refused must wait.
    pub const fn may_plan(&self) -> bool {
        self.retry_at.is_none()
    }

    /// Retries refused steps now. Returns whether there were any.
    pub fn retry_now(&mut self) -> bool {
        self.retry_at.take().is_some()
    }

    /// Rows changed: remaining steps no longer mean that earlier ones failed.
    pub const fn rows_changed(&mut self) {
        if let Some(pass) = &mut self.current {
            pass.attempts = 0;
        }
    }

    /// Whether rows changed since the pass under way made its last plan.
    pub fn rows_changed_since_plan(&self) -> bool {
        self.current.as_ref().is_some_and(|pass| pass.attempts == 0)
    }

    /// Whether the pass has planned too often without coming to rest.
    pub fn has_too_many_attempts(&self) -> bool {
        self.current.as_ref().is_some_and(|pass| pass.attempts >= MAX_ATTEMPTS)
    }

    /// Applying a plan begins. `drift`: no row changed, and this announced the difference. Returns the peers that are
    /// to be removed.
    pub fn begin(
        &mut self,
        planned: &Plan,
        removing: BTreeMap<PublicKey, Departed>,
        observed: &ObservedState,
        drift: Option<String>,
        now: Instant,
    ) -> &BTreeMap<PublicKey, Departed> {
        let pass = self.current.get_or_insert_with(|| Pass::new(drift, now));
        pass.attempts += 1;
        pass.steps += planned.steps().len();
        let room = FIRST_LINES.saturating_sub(pass.first.len());
        pass.first.extend(planned.steps().iter().take(room).map(ToString::to_string));
        pass.removing.extend(removing);
        let (mut cut, mut removed) = (0, 0);
        for step in planned.steps() {
            match step {
                Step::RemovePeer { key } => {
                    let peer = observed.peers.get(key);
                    removed += peer.map_or(0, |peer| peer.allowed_ips.as_slice().len());
                }
                Step::AddPeer { key, .. } if !observed.peers.contains_key(key) => {
                    pass.added.insert(*key);
                }
                Step::CutFlows { prefixes } => cut = prefixes.len(),
                _ => {}
            }
        }
        pass.cutting = cut > 0;
        pass.cut_others |= cut > removed;
        &pass.removing
    }

    /// Applying a plan ended. Returns the peers that were to be removed and are still in the kernel.
    pub fn applied(
        &mut self,
        outcome: &Outcome,
        observed: Option<&ObservedState>,
    ) -> BTreeMap<PublicKey, Departed> {
        self.totals.steps += outcome.applied as u64;
        self.totals.refused_steps += outcome.refused.len() as u64;
        self.totals.flows_cut += outcome.flows_cut as u64;
        let Some(pass) = &mut self.current else { return BTreeMap::new() };
        pass.applied += outcome.applied.saturating_sub(usize::from(pass.cutting));
        pass.flows_cut += outcome.flows_cut as u64;
        pass.refused += outcome.refused.len();
        // The next plan contains them again.
        pass.steps = pass.steps.saturating_sub(outcome.untried);
        pass.first.truncate(pass.steps);
        let removing = std::mem::take(&mut pass.removing);
        let stays =
            |key: &PublicKey| observed.is_some_and(|observed| observed.peers.contains_key(key));
        let (stayed, gone) = removing.into_iter().partition(|(key, _)| stays(key));
        let gone: BTreeMap<_, _> = gone;
        pass.revoked.extend(gone);
        if let Some(observed) = observed {
            pass.added.retain(|key| observed.peers.contains_key(key));
        }
        stayed
    }

    /// The pass leaves these steps out for good.
    pub fn give_up_steps(&mut self, refused: &[RefusedStep]) {
        if let Some(pass) = &mut self.current {
            pass.steps = pass.steps.saturating_sub(refused.len());
            let lines: Vec<_> = refused.iter().map(|refused| refused.step.to_string()).collect();
            pass.first.retain(|first| !lines.contains(first));
        }
    }

    /// No plan can be made.
    pub fn cannot_plan(&mut self, error: PlanError) {
        self.obstacle = Some(PassObstacle::Plan(error));
    }

    /// The kernel did not acknowledge these steps.
    pub fn refused(&mut self, steps: &[RefusedStep]) {
        if let Some(RefusedStep { step, error }) = steps.first() {
            let first = format!("{step}: {}", causes(error.as_ref()));
            self.obstacle = Some(PassObstacle::Refused { steps: steps.len(), first });
        }
    }

    /// The kernel acknowledges steps, and these are still to do. Returns the first of them in full.
    pub fn not_converged(&mut self, left: &Plan) -> Vec<String> {
        let steps = left.steps();
        let lines: Vec<_> = steps.iter().take(FIRST_LINES).map(ToString::to_string).collect();
        let first = lines.first().cloned().unwrap_or_default();
        self.obstacle = Some(PassObstacle::Refused { steps: steps.len(), first });
        lines
    }

    /// The next wait before the kernel is read or changed again.
    pub fn next_wait(&mut self) -> Duration {
        self.backoff.next_wait()
    }

    /// Tries again after a while, which is returned. Repeated refusals cause no extra readings: one
    /// attempt in each `reading_interval`.
    pub fn retry_later(&mut self, reading_interval: Duration, now: Instant) -> Duration {
        let wait = self.backoff.next_wait();
        let lasts = wait >= Backoff::LAST / 2;
        let wait = if lasts { wait.max(reading_interval) } else { wait };
        self.retry_at = Some(now + wait);
        wait
    }

    /// The pass is given up; what it did stays done.
    pub fn leave(&mut self, now: Now) -> Option<Pass> {
        let mut pass = self.current.take()?;
        self.last = Some(pass.end(None, now));
        Some(pass)
    }

    /// Nothing differs. Returns the pass that this ends, if it changed anything. `whole`: everything
    /// was compared.
    pub fn prove(&mut self, whole: bool, changed_since: Option<Instant>, now: Now) -> Option<Pass> {
        self.retry_at = None;
        self.totals.passes += 1;
        if whole {
            self.backoff.reset();
            self.obstacle = None;
        }
        let mut pass = self.current.take().filter(|pass| pass.steps > 0)?;
        // Whatever became of the answers: the peers that were to be removed are gone.
        let removed = std::mem::take(&mut pass.removing);
        pass.revoked.extend(removed);
        let lag = changed_since.map(|since| now.instant.duration_since(since));
        self.last = Some(pass.end(lag, now));
        lag.into_iter().for_each(|lag| self.totals.lags.add(lag));
        self.totals.drift_repairs += u64::from(pass.drift.is_some());
        Some(pass)
    }
}

impl Pass {
    fn new(drift: Option<String>, now: Instant) -> Self {
        Self {
            started: now,
            attempts: 0,
            steps: 0,
            applied: 0,
            first: Vec::new(),
            drift,
            removing: BTreeMap::new(),
            revoked: BTreeMap::new(),
            added: BTreeSet::new(),
            flows_cut: 0,
            cut_others: false,
            cutting: false,
            refused: 0,
            took: Duration::ZERO,
        }
    }

    /// The changes of the pass, with these policies, by the rows that are desired now.
    fn changes(
        &self,
        policies: &BTreeMap<PolicyId, Box<str>>,
        desired: Option<&DesiredState>,
    ) -> Changes {
        let row_of = |key| desired.and_then(|desired| desired.row_of(key));
        let added: Vec<_> = self.added.iter().filter_map(row_of).collect();
        let gone: BTreeSet<_> = self.revoked.values().map(|it| it.device_id).collect();
        let (replaced, added): (Vec<_>, Vec<_>) =
            added.into_iter().partition(|row| gone.contains(&row.device_id));
        let stays: BTreeSet<_> = replaced.iter().map(|row| row.device_id).collect();
        let revoked = self.revoked.values().filter(|it| !stays.contains(&it.device_id));
        let revoked: Vec<_> = revoked.map(PeerName::from).collect();
        Changes {
            revoked: NameList::of(revoked.into_iter()),
            replaced: NameList::of(replaced.into_iter().map(PeerName::of)),
            flows_cut: self.flows_cut,
            added: NameList::of(added.into_iter().map(PeerName::of)),
            policies: NameList::of(policies.values().cloned()),
        }
    }

    /// Whether no row changed, so that this repaired what another program did.
    pub const fn is_drift(&self) -> bool {
        self.drift.is_some()
    }

    /// The note for the operator about this pass, whose last plan was of this extent.
    pub fn into_note(
        self,
        extent: Extent,
        policies: &BTreeMap<PolicyId, Box<str>>,
        desired: Option<&DesiredState>,
    ) -> Note {
        let changes = self.changes(policies, desired);
        let Self { steps, first, took, .. } = self;
        match (self.drift, extent) {
            (Some(why), _) => Note::DriftRepaired { steps, first, why },
            (None, Extent::Whole) => Note::Synced { changes, steps, took, first },
            (None, Extent::Withdrawals) => Note::Withdrawn { changes, steps, took, first },
        }
    }

    fn end(&mut self, lag: Option<Duration>, now: Now) -> PassFigures {
        self.took = now.instant.duration_since(self.started);
        let (took, steps, refused) = (self.took, self.steps, self.refused);
        PassFigures { at: now.wall, took, lag, steps, refused }
    }
}

#[cfg(test)]
mod tests;
