//! The kernel's side: the last reading, how far it can be trusted, and when to read again.

mod due;
mod glance;
mod sessions;
mod view;
mod work;

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::RwLockReadGuard;

use super::clock::{Now, is_due};
use super::event::Action;
use super::handshakes::Handshakes;
use super::options::{Timing, affordable_after};
use super::session::is_alive;
use super::volume::Volume;
use crate::dataplane::{BackendInUse, Outcome, Reading, SharedObserved, nft};
use crate::model::{InterfaceName, ObservedState, PublicKey, Traffic};
use crate::plan::{Doubt, Plan, Step, Uncut};
pub(super) use view::MirrorView;
use work::{Job, Trust, Wanted};

/// A job that changes the kernel lasts at least so long before a newer plan interrupts it: planning
/// anew costs time, too.
const JOB_AT_LEAST: Duration = Duration::from_millis(250);
/// Jobs that are interrupted one after the other last twice as long each time, up to 8 s.
const DOUBLED_AT_MOST: u32 = 5;

/// The machine's knowledge of the kernel.
#[derive(Debug)]
pub(super) struct Mirror {
    timing: Timing,
    interface: InterfaceName,
    /// Shared with the job that changes the kernel.
    observed: Option<SharedObserved>,
    trust: Trust,
    /// The possible effects of the steps that were refused since then.
    doubt: Doubt,
    /// The flows that next holders might inherit.
    uncut: Uncut,
    wanted: Wanted,
    /// The kernel announced a change, or a glance found one, and no look that shows it has begun since.
    announced: bool,
    job: Job,
    /// How many jobs that changed the kernel were interrupted, one after the other.
    interruptions: u32,
    /// Why the last complete reading was made.
    why: String,
    /// The first edited object of our table in the last complete reading.
    firewall_difference: Option<nft::Difference>,
    /// Why the last complete reading failed.
    error: Option<String>,
    /// When the reading under way, or the last one, began.
    began_at: Instant,
    ended_at: Option<Instant>,
    /// Until then questions are answered from the last reading; `None`: one is under way.
    rests_until: Option<Instant>,
    glance_began_at: Instant,
    /// No glance begins before, however often the kernel announces changes.
    glances_from: Instant,
    /// Between two complete readings; longer where one takes long.
    interval: Duration,
    next_reading: Instant,
    backend: Option<BackendInUse>,
    table_owned: bool,
    traffic: BTreeMap<PublicKey, Traffic>,
    handshakes: Handshakes,
    /// Peers with a live session at the last complete reading.
    connected: usize,
    /// This host's time of the last complete reading.
    read_at: Option<SystemTime>,
    volume: Volume,
    readings: u64,
}

/// The findings of a complete reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EndedReading {
    /// Our table guarded our link before and does not now: nothing is filtered.
    pub guard_lost: bool,
}

impl Mirror {
    /// Knows nothing yet: a reading is due at once.
    pub fn new(timing: Timing, interface: InterfaceName, now: Now) -> Self {
        Self {
            timing,
            interface,
            observed: None,
            trust: Trust::Kept,
            doubt: Doubt::default(),
            uncut: Uncut::default(),
            wanted: Wanted::Reading { why: "start".into() },
            announced: false,
            job: Job::None,
            interruptions: 0,
            why: String::new(),
            firewall_difference: None,
            error: None,
            began_at: now.instant,
            ended_at: None,
            rests_until: Some(now.instant),
            glance_began_at: now.instant,
            glances_from: now.instant,
            interval: timing.compare_interval(),
            next_reading: now.instant,
            backend: None,
            table_owned: false,
            traffic: BTreeMap::new(),
            handshakes: Handshakes::new(now),
            connected: 0,
            read_at: None,
            volume: Volume::default(),
            readings: 0,
        }
    }

    /// From the next complete reading on.
    pub const fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    pub fn observed(&self) -> Option<RwLockReadGuard<'_, ObservedState>> {
        self.observed.as_ref().map(SharedObserved::read)
    }

    /// Whether the kernel could be read when that was last tried.
    pub const fn is_readable(&self) -> bool {
        self.error.is_none()
    }

    pub fn is_busy(&self) -> bool {
        self.job != Job::None
    }

    /// Whether a plan is being applied.
    pub fn is_applying(&self) -> bool {
        matches!(self.job, Job::Apply { .. })
    }

    /// Whether a plan has been applied for so long that rows are read meanwhile. Beside shorter jobs they
    /// wait, so that each plan is proven however often rows change.
    pub fn is_in_long_job(&self, now: Instant) -> bool {
        matches!(self.job, Job::Apply { long_at, .. } if long_at <= now)
    }

    /// Whether a plan may be made from the reading.
    pub fn can_be_planned(&self) -> bool {
        self.observed.is_some() && !matches!(self.trust, Trust::Doubtful | Trust::Exhausted)
    }

    /// Whether withdrawals may be planned from the reading although it is in doubt, because there is no
    /// newer one to be had.
    pub fn can_be_withdrawn_by(&self) -> bool {
        let is_known = self.observed.is_some() && !self.is_busy();
        is_known && self.trust == Trust::Doubtful && !self.is_readable()
    }

    /// Refused steps may have been carried out: from now on the reading shows what they may have given.
    pub fn assume_given(&mut self) {
        let given = self.doubt.take_given();
        if let Some(observed) = &self.observed {
            given.iter().for_each(|step| observed.apply(step));
        }
    }

    /// Keeps the safe ones of the withdrawals that were planned from this reading in doubt.
    pub fn safe(&self, withdrawals: Plan, observed: &ObservedState) -> Plan {
        self.doubt.safe(withdrawals, observed)
    }

    /// Adds to the plan a cut of the flows of prefixes that this agent, or an earlier run, took while they were
    /// open.
    pub fn cut_in(&self, plan: Plan, cuts_flows: bool) -> Plan {
        self.uncut.cut_in(plan, cuts_flows)
    }

    /// Nothing is left to withdraw by a reading in doubt.
    pub const fn exhausted(&mut self) {
        self.trust = Trust::Exhausted;
    }

    /// There is a newer plan to make: the job that changes the kernel may stop, and there may be something to
    /// withdraw again.
    pub fn more_to_do(&mut self) {
        self.interrupt();
        if self.trust == Trust::Exhausted {
            self.trust = Trust::Doubtful;
        }
    }

    /// Whether a newer reading than the one we hold is wanted.
    pub fn awaits_reading(&self) -> bool {
        self.wants_reading() && self.trust != Trust::Fresh
    }

    /// Whether a change that the kernel announced or a glance found waits to be looked at.
    pub const fn is_disturbed(&self) -> bool {
        self.announced
    }

    /// Whether nothing that the kernel announced waits to be read or is being read. `read_back`: a look at it
    /// just ended.
    pub fn is_undisturbed(&self, read_back: bool) -> bool {
        !self.is_disturbed() && !self.wants_reading() && (read_back || !self.is_busy())
    }

    pub const fn wants_reading(&self) -> bool {
        matches!(self.wanted, Wanted::Reading { .. })
    }

    /// The event that announced the drift that `plan` repairs, and the object of our table that was edited.
    pub fn drift(&self, plan: &Plan) -> String {
        let edited = self.firewall_difference.as_ref();
        let repairs = plan.steps().iter().any(|step| matches!(step, Step::Firewall { .. }));
        match edited.filter(|_| repairs) {
            Some(edited) => format!("{}: {edited}", self.why),
            None => self.why.clone(),
        }
    }

    /// Between two complete readings, as long as the last one took.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    pub const fn traffic(&self) -> &BTreeMap<PublicKey, Traffic> {
        &self.traffic
    }

    /// The kernel announced a change.
    pub fn kernel_changed(&mut self, why: String) {
        self.awaits_look();
        self.want_reading_for(why);
    }

    /// What a glance found may be so no longer.
    fn awaits_look(&mut self) {
        if self.trust == Trust::Glanced {
            self.trust = Trust::Kept;
        }
        self.announced = true;
    }

    /// Wants a complete reading, for this reason.
    pub fn want_reading_for(&mut self, why: impl Into<String>) {
        self.wanted = Wanted::Reading { why: why.into() };
    }

    /// Wants a complete reading. The reason of one that is wanted already stays.
    pub fn want_reading(&mut self, why: &str) {
        if !self.wants_reading() {
            self.want_reading_for(why);
        }
    }

    /// An operator asks for the peers. However many ask, these readings take no greater share of the
    /// time than the regular ones.
    pub fn peers_asked(&mut self, now: Instant) {
        if self.rests_until.is_some_and(|until| until <= now) {
            self.want_reading("peers asked for");
        }
    }

    /// A heartbeat is due: a complete reading if one is near, else a glance.
    pub fn want_beat(&mut self, now: Instant) {
        if self.next_reading <= now + self.timing.heartbeat / 2 {
            self.want_reading("heartbeat");
        } else if self.wanted == Wanted::Nothing {
            self.wanted = Wanted::Glance;
        }
    }

    /// Begins a complete reading, if one is wanted and may begin.
    pub fn begin_reading(&mut self, now: Instant) -> Option<Action> {
        if !is_due(self.may_read_at(now), now) {
            return None;
        }
        let Wanted::Reading { why } = &mut self.wanted else { return None };
        self.why = std::mem::take(why);
        self.wanted = Wanted::Nothing;
        self.announced = false;
        self.next_reading = now + self.timing.compare_interval();
        self.began_at = now;
        self.rests_until = None;
        self.readings += 1;
        self.job = Job::Look;
        Some(Action::Observe)
    }

    /// Begins to change the kernel. The reading is shared with the job, and in doubt until it ends.
    pub fn begin_apply(&mut self, plan: Plan, now: Instant) -> Option<Action> {
        let observed = self.observed.clone()?;
        self.uncut.begin(&plan, &observed.read());
        observed.begin();
        let in_doubt = !self.can_be_planned();
        self.job = Job::Apply { in_doubt, long_at: now + JOB_AT_LEAST };
        self.trust = Trust::Doubtful;
        Some(Action::Apply(plan, observed))
    }

    /// A complete reading ended.
    pub fn end_reading(&mut self, mut reading: Reading, now: Now) -> EndedReading {
        self.look_ended(now.instant);
        self.error = None;
        self.handshakes.steady(&mut reading.traffic, now);
        let took = now.instant.duration_since(self.began_at);
        self.interval = self.timing.compare_interval_after(took);
        self.next_reading = self.began_at + self.interval;
        let was_guarded = self.observed().is_some_and(|former| self.guards(&former));
        let guard_lost = was_guarded && !self.guards(&reading.state);
        self.backend = reading.backend;
        self.table_owned = reading.table_owned;
        self.firewall_difference = reading.firewall_difference;
        let steady = self.handshakes.clock(now.instant);
        let handshakes = reading.traffic.values().filter_map(|traffic| traffic.last_handshake);
        self.connected = handshakes.filter(|at| is_alive(*at, steady)).count();
        // The first reading shows what was counted before the agent started.
        if self.read_at.is_some() {
            self.volume.add(&self.traffic, &reading.traffic);
        }
        self.traffic = reading.traffic;
        self.read_at = Some(now.wall);
        self.observed = Some(reading.state.into());
        (self.trust, self.doubt) = (Trust::Fresh, Doubt::default());
        EndedReading { guard_lost }
    }

    /// A complete reading failed; the next is due after `wait`.
    pub fn reading_failed(&mut self, error: String, wait: Duration, now: Instant) {
        self.look_ended(now);
        self.error = Some(error);
        self.next_reading = now + wait;
    }

    fn look_ended(&mut self, now: Instant) {
        self.job = Job::None;
        self.ended_at = Some(now);
        self.rests_until = Some(now + affordable_after(now.duration_since(self.began_at)));
    }

    /// Lets the job that changes the kernel stop, because there is a newer plan to make. The next ones last
    /// longer each time, so that they end however often rows change.
    fn interrupt(&self) {
        if let (Job::Apply { .. }, Some(observed)) = (self.job, &self.observed) {
            observed.interrupt(JOB_AT_LEAST * 2_u32.pow(self.interruptions.min(DOUBLED_AT_MOST)));
        }
    }

    /// The job that changed the kernel ended with an answer to every step that it tried. What was in doubt
    /// before is so still.
    pub fn applied(&mut self, outcome: &Outcome) {
        let is_whole = outcome.refused.is_empty() && outcome.untried == 0;
        if let (true, Some(observed)) = (is_whole, &self.observed) {
            self.uncut.applied(&observed.read());
        }
        for refused in &outcome.refused {
            self.doubt.refused(&refused.step, refused.fate());
        }
        self.interruptions = if outcome.untried > 0 { self.interruptions + 1 } else { 0 };
        let in_doubt = matches!(self.job, Job::Apply { in_doubt: true, .. });
        self.trust = if in_doubt { Trust::Doubtful } else { Trust::Kept };
        self.job = Job::None;
    }

    /// The kernel may differ from the reading in ways that we do not know. The next reading is due
    /// after `wait`.
    pub fn doubt(&mut self, wait: Duration, now: Instant) {
        self.trust = Trust::Doubtful;
        self.next_reading = now + wait;
    }

    /// The reading was used for a proof, of the whole kernel or of a part. Says whether the kernel was read back for it: a heartbeat
    /// proves what was read, not what we remember.
    pub fn prove(&mut self, whole: bool) -> bool {
        if whole {
            self.uncut.proven();
        }
        let read_back = matches!(self.trust, Trust::Fresh | Trust::Glanced);
        self.trust = Trust::Kept;
        read_back
    }

    fn guards(&self, observed: &ObservedState) -> bool {
        let table = observed.firewall.as_ref();
        table.is_some_and(|table| table.guards(self.interface.as_str()))
    }
}

#[cfg(test)]
mod tests;
