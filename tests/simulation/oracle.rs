//! What must hold after every step, whatever happened.
//!
//! * No step of ours lets a packet pass that neither the plan's rows nor the kernel before it allow.
//! * No step names a peer that is as the rows want it, and none removes a peer that they admit. A withdrawal whose
//!   answer was lost may be repeated before the kernel can be read.
//! * A proof is true: the kernel is what the rows of its time ask for, but for edits of other programs
//!   that nothing announced since the agent last looked.
//! * What the rows withdraw is gone as soon as the machine waits for nothing but time, whatever else is
//!   refused or unreadable. Rows are read as soon as their announcement says, or the next check finds.
//! * No peer inherits the flows of another: see `flows.rs`.
//! * Who must stay out whatever the rows say is out: see `out.rs`. Whom the guard holds and whom the agent keeps
//!   out is excused only if the rows, or what the agent remembers, give a reason: see `excused.rs`.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use gatepost::dataplane::Outcome;
use gatepost::model::{DesiredState, ObservedState, Peer, PublicKey};
use gatepost::plan::{Plan, Step};
use gatepost::reconcile::{Event, Report};
use ipnet::IpNet;

use super::flows::{LeftOut, cut_by};
use super::out::Out;
use super::reach::Reach;
use super::tables::Tables;
use super::wanted::{Cache, Wanted, desired, meets};
use super::world::World;

/// The longest wait of the machine that no refusal and no failure explains.
const AT_ONCE: Duration = Duration::from_millis(300);
/// A refusal that hinders a withdrawal may be followed by waits of this length: a wait that grew to its
/// last, and then a reading of the kernel.
const AFTER_REFUSALS: Duration = Duration::from_secs(80);
/// For as long a refusal may explain a wait.
const REMEMBERED: Duration = Duration::from_secs(120);
/// An announcement ends the wait after a read that failed, but reads do not follow each other faster.
const AFTER_A_FAILURE: Duration = Duration::from_millis(1_300);
/// In any mode, without any announcement: between two turns, and before a read that failed is repeated.
const UNANNOUNCED: Duration = Duration::from_secs(32);

#[derive(Default)]
pub struct Oracle {
    pub cache: Cache,
    pub out: Out,
    /// The kernel announced a change, and no complete look has begun since.
    pub announced: bool,
    /// The kernel announced a change of its routing, and no look has begun since.
    pub routing_announced: bool,
    job: Option<JobOracle>,
    /// The packets that passed after the last event although the rows forbid them.
    forbidden: Reach,
    /// How long such packets have passed, while nothing explained it.
    forbidden_for: Duration,
    /// How long the rows that were read have been old, while nothing explained it.
    old_for: Duration,
    /// The notification of the latest rows arrived.
    told_of: usize,
    last_trouble: Option<Duration>,
    last_read_failure: Option<Duration>,
    /// What the kernel holds is in doubt until it is read.
    in_doubt: bool,
    versions_read: usize,
    /// The proofs that were true when they were made.
    true_proofs: BTreeSet<SystemTime>,
    shown: Option<SystemTime>,
    /// A read has succeeded since the agent began.
    knows_clock: bool,
    /// How far the agent may be mistaken about the database's clock: as long as its longest read took.
    slack: Duration,
    pub confirmed_at: Option<Duration>,
    pub left_out: LeftOut,
}

/// What a plan was made from.
struct JobOracle {
    /// What passed before, whether or not the link was up.
    before: Reach,
    wanted: Option<Rc<Wanted>>,
    /// What the rows allow without the peers that stay out although the rows admit them: a prefix
    /// around one of theirs is then another peer's as a whole.
    around: Reach,
    /// Another program changed something that the agent does not know.
    was_edited: bool,
    /// The prefixes whose flows it cuts.
    cut: BTreeSet<IpNet>,
}

impl Oracle {
    pub const fn looked(&mut self, read: bool, at: Duration) {
        if read {
            self.in_doubt = false;
        } else if self.in_doubt {
            self.last_trouble = Some(at);
        }
    }

    pub const fn read_failed(&mut self, at: Duration) {
        self.last_read_failure = Some(at);
    }

    pub const fn read_saw(&mut self, versions: usize) {
        self.versions_read = versions;
    }

    /// Rows arrive that a read brought which took so long. Returns how many versions it saw.
    pub fn rows_come(&mut self, took: Duration) -> usize {
        self.knows_clock = true;
        self.slack = self.slack.max(took);
        self.versions_read
    }

    fn remembers(moment: Option<Duration>, now: Duration) -> bool {
        moment.is_some_and(|at| now < at + REMEMBERED)
    }
}

impl World {
    pub fn agent_began(&mut self) {
        self.job_ends();
        let oracle = &mut self.oracle;
        (oracle.announced, oracle.routing_announced) = (false, false);
        oracle.in_doubt = true;
        (oracle.shown, oracle.knows_clock) = (None, false);
        oracle.slack = Duration::ZERO;
        oracle.out.agent_began(self.elapsed);
    }

    pub fn before_event(&mut self, event: &Event) {
        self.oracle.out.hears(event);
        match event {
            Event::KernelChanged { .. } => self.oracle.announced = true,
            Event::RoutingChanged => self.oracle.routing_announced = true,
            // From now on it should be read at once, however old it is.
            Event::Connected { .. } | Event::Notified => {
                self.oracle.told_of = self.database.versions.len();
                self.oracle.old_for = Duration::ZERO;
            }
            _ => {}
        }
    }

    /// A time by which the agent knows every revocation that has come.
    pub fn time_known_for_sure(&self) -> SystemTime {
        self.database_now() - self.oracle.slack
    }

    /// What the machine's rows ask for.
    fn followed(&mut self, at: SystemTime) -> Option<Rc<Wanted>> {
        let followed = self.agent.followed.clone()?;
        Some(self.oracle.cache.of(&followed.tables, &self.blocks, at))
    }

    pub fn plan_begins(&mut self, plan: &Plan) {
        let as_of = self.agent.followed.as_ref().map(|followed| followed.as_of);
        // Scheduled revocations that came since then only withdraw.
        let wanted = as_of.and_then(|as_of| self.followed(as_of));
        let state = self.host.kernel.state.clone();
        let is_judged = super::reach::is_judged(&state);
        let before = if is_judged { Reach::behind_the_link(&state) } else { Reach::default() };
        let was_edited = self.host.unseen;
        let around = self.around_excepted(self.database_now());
        if !was_edited && let Some(wanted) = &wanted {
            self.check_peers(plan, &state, wanted);
        }
        let cut = cut_by(plan);
        self.oracle.job = Some(JobOracle { before, wanted, around, was_edited, cut });
    }

    /// A plan is carried out, or its agent was killed. Says whether no other program changed anything.
    fn job_ends(&mut self) -> bool {
        let Some(job) = self.oracle.job.take() else { return false };
        let was_alone = !job.was_edited && !self.host.unseen;
        if !was_alone {
            self.oracle.left_out.disturbed(job.cut);
        }
        was_alone
    }

    fn around_excepted(&mut self, at: SystemTime) -> Reach {
        let view = self.agent.machine.view();
        let (Some(followed), Some(shown)) = (&self.agent.followed, view.desired()) else {
            return Reach::default();
        };
        if view.is_stale() {
            return Reach::of_rows(shown);
        }
        let kept_out: BTreeSet<_> = shown.kept_out().collect();
        if kept_out.is_empty() {
            return Reach::default();
        }
        let tables = Rc::clone(&followed.tables);
        drop(view);
        self.oracle.cache.around(&tables, &self.blocks, at, kept_out)
    }

    /// No step names a peer that is as it should be, and none removes a peer that the rows admit.
    fn check_peers(&mut self, plan: &Plan, state: &ObservedState, wanted: &Wanted) {
        let excepted = self.excused();
        let is_stale = self.agent.machine.view().is_stale();
        for step in plan.steps() {
            let Some(key) = peer_of(step) else { continue };
            let row = wanted.desired.row_of(key);
            if excepted.contains(key) || is_stale || row.is_some_and(|it| it.revoked_at.is_some()) {
                continue;
            }
            let (has, wants) = (state.peers.get(key), wanted.desired.peers().get(key));
            if has.is_some() && has == wants && !self.oracle.in_doubt {
                self.fail(format!("a write to a peer that is as it should be: {step}"));
            }
            if matches!(step, Step::RemovePeer { .. }) && wants.is_some_and(is_usable) {
                self.fail(format!("a peer is removed that the rows admit: {step}"));
            }
        }
        let removed = plan.steps().iter().filter(|step| {
            let holds = |key| state.peers.get(key).is_some_and(is_usable);
            matches!(step, Step::RemovePeer { key } if holds(key))
        });
        let is_emptied = self
            .agent
            .followed
            .as_ref()
            .is_some_and(|it| it.tables.peers.is_empty() && it.tables.gateway.active);
        let confirmed = self.oracle.confirmed_at.is_some_and(|at| at + REMEMBERED > self.elapsed);
        if is_emptied && removed.count() > 1 && !confirmed && !is_stale {
            self.fail("an emptied table removes all peers, and no operator confirmed it");
        }
    }

    /// A step of ours was applied, refused, or applied in part.
    pub fn kernel_changed(&mut self, before: &ObservedState, step: &Step) {
        let now = Reach::of_kernel(&self.host.kernel.state);
        self.flows_open();
        let later = self.followed(self.database_now());
        let Some(job) = &self.oracle.job else { return };
        if job.was_edited || self.host.unseen {
            return;
        }
        let had = Reach::of_kernel(before);
        let nothing = Reach::default();
        let allowed = job.wanted.as_ref().map_or(&nothing, |wanted| &wanted.reach);
        let later = later.as_ref().map_or(&nothing, |wanted| &wanted.reach);
        let leak = now.beyond(&[&had, &job.before, allowed, &job.around, later]);
        let leak = leak.without(&self.excused());
        if !leak.is_empty() {
            self.fail(format!("{leak:?} passes after {step}, and neither policy allows it"));
        }
    }

    pub fn plan_ended(&mut self, outcome: &Outcome) {
        self.figures.refused += outcome.refused.len() as u64;
        let was_alone = self.job_ends();
        if outcome.refused.is_empty() {
            if was_alone && outcome.untried == 0 {
                self.check_flows();
                self.all_is_put_right();
            }
        } else {
            self.oracle.in_doubt = true;
            if self.host.hinders_withdrawals() || self.host.unseen {
                self.oracle.last_trouble = Some(self.elapsed);
            }
        }
    }

    pub fn after_event(&mut self) {
        self.check_who_is_out();
        self.oracle.forbidden = self.forbidden();
        if self.oracle.forbidden.is_empty() {
            self.oracle.forbidden_for = Duration::ZERO;
        }
        if !self.is_old() {
            self.oracle.old_for = Duration::ZERO;
        }
    }

    /// What the machine shows as proven is true.
    pub fn check_proof(&mut self) {
        let shown = self.agent.machine.view().last_sync_at();
        let Some(as_of) = shown.filter(|_| shown != self.oracle.shown) else { return };
        self.oracle.shown = shown;
        self.figures.proofs += 1;
        if self.oracle.announced || self.oracle.routing_announced {
            self.fail("a proof while an announced change of the kernel waits for a look");
        }
        if self.agent.job.is_none() && !self.host.unseen {
            self.check_flows();
        }
        if self.is_true(as_of) {
            self.oracle.true_proofs.insert(as_of);
            // Whatever was refused before has been made good.
            self.oracle.last_trouble = None;
        } else {
            self.fail(format!("proven as of {as_of:?}, and not true"));
        }
    }

    /// Whether the kernel is what the database asked for at a moment.
    fn is_true(&mut self, as_of: SystemTime) -> bool {
        let Some(version) = self.database.version_at(as_of).cloned() else { return false };
        [as_of, self.database_now()].into_iter().any(|at| {
            let wanted = self.oracle.cache.of(&version.tables, &self.blocks, at);
            wanted.is_met_by(&self.host.known.state)
                || self.is_true_of_restored(&version.tables, at)
        })
    }

    /// The last good rows may admit peers that were withdrawn since, and stay out.
    fn is_true_of_restored(&self, tables: &Tables, at: SystemTime) -> bool {
        if self.oracle.knows_clock {
            return false;
        }
        let view = self.agent.machine.view();
        let kept_out = view.desired().into_iter().flat_map(DesiredState::kept_out);
        let lost = &self.disk.withdrawals.lost;
        let kept_out = kept_out.filter(|key| !lost.contains_key(key)).collect();
        let mut desired = desired(tables, &self.blocks, at);
        desired.keep_out(kept_out);
        meets(&self.host.known.state, &desired)
    }

    pub fn check_report(&mut self, report: &Report) {
        if let Some(as_of) = report.synced_as_of
            && !self.oracle.true_proofs.contains(&as_of)
        {
            self.fail(format!("reported as synced as of {as_of:?}, and never was"));
        }
    }

    /// The packets that pass although the rows forbid them.
    fn forbidden(&mut self) -> Reach {
        if self.suspends_all() {
            return self.passes_while_suspended();
        }
        // Who goes may make room for another.
        let times = [self.time_known_for_sure(), self.database_now()].map(|at| self.followed(at));
        let [Some(earlier), Some(now)] = times else { return Reach::default() };
        let passing = Reach::of_kernel(&self.host.kernel.state);
        let around = self.around_excepted(self.database_now());
        passing.beyond(&[&earlier.reach, &now.reach, &around]).without(&self.excused())
    }

    /// Whether the database has other rows than those that were read.
    fn is_old(&self) -> bool {
        let versions = self.database.versions.len();
        self.agent.followed.as_ref().is_none_or(|it| it.versions < versions)
    }

    /// Time goes by while the agent does nothing: is there an excuse?
    pub fn time_passes(&mut self, time: Duration) {
        if self.agent.job.is_some() {
            return;
        }
        self.forbidden_goes_on(time);
        self.rows_grow_old(time);
    }

    fn forbidden_goes_on(&mut self, time: Duration) {
        let unreadable = self.oracle.in_doubt && !self.host.is_readable;
        if self.host.unseen || self.host.hinders_withdrawals() || unreadable {
            return;
        }
        let forbidden = self.oracle.forbidden.clone();
        if forbidden.is_empty() {
            return;
        }
        self.oracle.forbidden_for += time;
        let after_trouble = Oracle::remembers(self.oracle.last_trouble, self.elapsed);
        let limit = if after_trouble { AFTER_REFUSALS } else { AT_ONCE };
        if self.oracle.forbidden_for > limit {
            self.fail(format!(
                "what the rows withdraw still passes after {limit:?}: {forbidden:?}"
            ));
        }
    }

    fn rows_grow_old(&mut self, time: Duration) {
        let can_read = self.database.is_up && self.database.is_readable;
        if !can_read || !self.agent.errands.is_empty() || !self.is_old() {
            return;
        }
        self.oracle.old_for += time;
        let told = self.oracle.told_of == self.database.versions.len() && self.agent.is_connected;
        let failed = Oracle::remembers(self.oracle.last_read_failure, self.elapsed);
        let limit = match (told, failed) {
            (true, false) => AT_ONCE,
            (true, true) => AFTER_A_FAILURE,
            (false, _) => UNANNOUNCED,
        };
        if self.oracle.old_for > limit {
            self.fail(format!("the rows are not read for {limit:?}"));
        }
    }
}

/// A peer without any prefix is none.
fn is_usable(peer: &Peer) -> bool {
    !peer.allowed_ips.is_empty()
}

fn peer_of(step: &Step) -> Option<&PublicKey> {
    match step {
        Step::RemovePeer { key }
        | Step::NarrowPeer { key, .. }
        | Step::AddPeer { key, .. }
        | Step::WidenPeer { key, .. }
        | Step::SetPresharedKey { key, .. }
        | Step::SetKeepalive { key, .. } => Some(key),
        _ => None,
    }
}
