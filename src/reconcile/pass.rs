//! One pass: plan, guard, apply, and prove by planning again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;

use super::Machine;
use super::event::{Action, Note, Now};
use super::ledger::{applied_entry, quarantine_entry, revoked_entry, session_entry};
use super::machine::{Obstacle, Proven};
use crate::dataplane::{Outcome, Reading};
use crate::model::{Departed, DesiredState, PolicyId, PublicKey};
use crate::plan::{Plan, Scope, Step, guard, plan};
use crate::store::{AuditEntry, AuditEvent, AuditStatus, Entity};

/// A pass that changes this often without coming to rest is given up for a while.
const MAX_ATTEMPTS: u32 = 3;
/// So many lines of a plan are printed in full.
const FIRST_LINES: usize = 8;

/// A pass that has begun to change the kernel.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    started: Instant,
    attempts: u32,
    steps: usize,
    first: Vec<String>,
    /// Nobody changed a row: somebody changed the kernel.
    drift: Option<String>,
    revoked: BTreeMap<PublicKey, Departed>,
    flows_cut: u64,
    refused: usize,
}

impl Pass {
    fn figures(&self, now: Now, lag: Option<Duration>) -> PassFigures {
        let took = now.instant.duration_since(self.started);
        PassFigures { at: now.wall, took, lag, steps: self.steps, refused: self.refused }
    }

    /// Rows changed meanwhile: what it still has to do says nothing of what it did.
    pub(super) const fn forgive(&mut self) {
        self.attempts = 0;
    }
}

/// What the last pass that had something to change came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassFigures {
    pub at: SystemTime,
    pub took: Duration,
    /// From when its oldest change was heard of, or was begun to be read, to the proof. `None`: it
    /// was not proven, or no row had changed.
    pub lag: Option<Duration>,
    pub steps: usize,
    /// Of these the kernel refused so many.
    pub refused: usize,
}

impl Machine {
    pub(super) fn take_reading(
        &mut self,
        reading: Result<Reading, String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.due.last_observed = Some(now.instant);
        let reading = match reading {
            Ok(reading) => reading,
            Err(error) => {
                self.obstacle = Some(Obstacle::Observe(error.clone()));
                self.proven = None;
                self.due.compare = now.instant + self.backoff.next_wait();
                actions.push(Action::Say(Note::ObserveFailed { error }));
                return;
            }
        };
        if matches!(self.obstacle, Some(Obstacle::Observe(_))) {
            self.obstacle = None;
        }
        let took = now.instant.duration_since(self.due.observing_since);
        self.due.compare =
            self.due.observing_since + self.options.timing.compare_interval_after(took);
        self.backend = reading.backend;
        self.observed = Some(reading.state.into());
        self.scope = Scope::Everything;
        if now.instant < self.due.handshakes {
            return;
        }
        self.due.handshakes = now.instant + self.options.timing.report_interval;
        let (handshakes, events) = self.sessions.update(&reading.traffic, now.wall);
        self.traffic = reading.traffic;
        let Some(desired) = &self.desired else { return };
        for (key, handshake) in handshakes {
            if let Some(row) = desired.row_of(&key) {
                self.ledger.handshake(row.device_id, handshake);
            }
        }
        for entry in events.iter().filter_map(|event| session_entry(desired, event)) {
            self.ledger.audit(entry);
        }
    }

    /// Plans what is in scope, and begins to apply it or proves that nothing differs.
    pub(super) fn next_step(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.scope == Scope::nothing() || self.due.retry_pass.is_some_and(|at| at > now.instant)
        {
            return;
        }
        let (Some(desired), Some(observed)) = (&self.desired, &self.observed) else { return };
        let planned = plan(desired, &observed.read(), &self.scope);
        let planned = match planned {
            Ok(planned) => planned,
            Err(error) => return self.meet(Obstacle::Plan(error), now, actions),
        };
        if planned.is_empty() {
            return self.prove(now, actions);
        }
        let deliberate = self.removals_confirmed || self.stale || !desired.gateway().active;
        if let Err(held) =
            guard::check(&planned, observed.read().peers.len(), self.options.max_removed)
            && !deliberate
        {
            if self.held != Some(held) {
                actions.push(Action::Say(Note::HeldBack(held)));
            }
            self.held = Some(held);
            self.proven = None;
            self.scope = Scope::nothing();
            self.pass = None;
            return;
        }
        if self.scope == Scope::Everything {
            self.held = None;
        }
        if self.pass.as_ref().is_some_and(|pass| pass.attempts >= MAX_ATTEMPTS) {
            return self.give_up_for_now(&planned, now, actions);
        }
        self.begin_apply(planned, now, actions);
    }

    fn begin_apply(&mut self, planned: Plan, now: Now, actions: &mut Vec<Action>) {
        let Some(observed) = self.observed.clone() else { return };
        let drift = (!self.rows_changed && self.proven.is_some()).then(|| self.observing.clone());
        let pass = self.pass.get_or_insert_with(|| Pass {
            started: now.instant,
            attempts: 0,
            steps: 0,
            first: Vec::new(),
            drift,
            revoked: BTreeMap::new(),
            flows_cut: 0,
            refused: 0,
        });
        pass.attempts += 1;
        pass.steps += planned.steps().len();
        let room = FIRST_LINES.saturating_sub(pass.first.len());
        pass.first.extend(planned.steps().iter().take(room).map(ToString::to_string));
        for step in planned.steps() {
            if let Step::RemovePeer { key } = step
                && let Some(departed) = self.departed.remove(key)
            {
                pass.revoked.insert(*key, departed);
            }
        }
        // From here until the next proof the kernel is not known to be equal.
        self.begin(Action::Apply(planned, observed), actions);
    }

    pub(super) fn take_outcome(&mut self, outcome: Outcome, now: Now, actions: &mut Vec<Action>) {
        self.totals.steps += outcome.applied as u64;
        self.totals.refused_steps += outcome.refused.len() as u64;
        self.totals.flows_cut += outcome.flows_cut as u64;
        if let Some(pass) = &mut self.pass {
            pass.flows_cut += outcome.flows_cut as u64;
            pass.refused += outcome.refused.len();
        }
        let Some((step, error)) = outcome.refused.first() else {
            if self.scope == Scope::Everything {
                self.observe_wanted = Some("verify".into());
            }
            return;
        };
        let first = format!("{step}: {error}");
        for (step, error) in outcome.refused.iter().take(FIRST_LINES) {
            let (step, error) = (step.to_string(), error.clone());
            actions.push(Action::Say(Note::StepRefused { step, error }));
        }
        self.proven = None;
        self.obstacle = Some(Obstacle::Refused { steps: outcome.refused.len(), first });
        self.retry_later(now);
    }

    fn retry_later(&mut self, now: Now) -> Duration {
        let delay = self.backoff.next_wait();
        self.due.retry_pass = Some(now.instant + delay);
        self.due.compare = now.instant + delay;
        self.scope = Scope::Everything;
        if let Some(pass) = self.pass.take() {
            self.last_pass = Some(pass.figures(now, None));
        }
        delay
    }

    fn give_up_for_now(&mut self, planned: &Plan, now: Now, actions: &mut Vec<Action>) {
        let first: Vec<String> =
            planned.steps().iter().take(FIRST_LINES).map(ToString::to_string).collect();
        let steps = planned.steps().len();
        self.proven = None;
        self.obstacle =
            Some(Obstacle::Refused { steps, first: first.first().cloned().unwrap_or_default() });
        let retry_in = self.retry_later(now);
        actions.push(Action::Say(Note::NotConverged { steps, first, retry_in }));
    }

    fn meet(&mut self, obstacle: Obstacle, now: Now, actions: &mut Vec<Action>) {
        if let Obstacle::Plan(error) = &obstacle
            && self.obstacle.as_ref() != Some(&obstacle)
        {
            actions.push(Action::Say(Note::CannotPlan(error.clone())));
        }
        self.obstacle = Some(obstacle);
        self.proven = None;
        self.retry_later(now);
    }

    /// Nothing differs within the scope: what was a plan is now a proof.
    fn prove(&mut self, now: Now, actions: &mut Vec<Action>) {
        let complete = self.scope == Scope::Everything;
        self.scope = Scope::nothing();
        self.due.retry_pass = None;
        self.backoff.reset();
        let policies = std::mem::take(&mut self.policies_changed);
        if complete {
            self.held = None;
            self.removals_confirmed = false;
            self.departed.clear();
        }
        self.obstacle = None;
        self.rows_changed = false;
        self.totals.passes += 1;
        self.say_started();
        if self.held.is_none()
            && let Some(desired) = &self.desired
        {
            let as_of = desired.as_of();
            let first = self.proven.replace(Proven { as_of, at: now.wall }).is_none();
            // A beat is the proof of a reading, not of what we remember.
            let read_back = std::mem::take(&mut self.glanced) || complete;
            let beat = read_back && std::mem::take(&mut self.heartbeat_wanted);
            if (first || beat || self.pass.is_some()) && !self.suspends() {
                self.ledger.synced(as_of);
            }
        }
        let changed_since = self.changed_since.take();
        if let Some(pass) = self.pass.take() {
            let since = changed_since.filter(|_| pass.drift.is_none());
            let lag = since.map(|since| now.instant.duration_since(since));
            self.last_pass = Some(pass.figures(now, lag));
            self.finish(pass, &policies, now, actions);
        }
    }

    fn finish(
        &mut self,
        pass: Pass,
        policies: &BTreeMap<PolicyId, Box<str>>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let took = now.instant.duration_since(pass.started);
        let Some(gateway_id) = self.desired.as_ref().map(|desired| desired.gateway().id) else {
            return;
        };
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let figures = json!({ "milliseconds": milliseconds, "flows_cut": pass.flows_cut });
        for departed in pass.revoked.values() {
            self.ledger.audit(revoked_entry(departed, figures.clone()));
        }
        for (id, name) in policies {
            self.ledger.audit(applied_entry(*id, name, figures.clone()));
        }
        let (event, verb, status) = match &pass.drift {
            Some(_) => {
                (AuditEvent::DriftRepaired, "repaired what others changed", AuditStatus::Warning)
            }
            None => (AuditEvent::GatewaySynced, "brought up to date", AuditStatus::Success),
        };
        self.ledger.audit(AuditEntry {
            event,
            entity: Entity::Gateway(gateway_id),
            device_id: None,
            ip_address: None,
            status,
            message: format!("{verb}: {} steps in {milliseconds} ms", pass.steps),
            metadata: json!({ "steps": pass.steps, "milliseconds": milliseconds, "first": &pass.first }),
        });
        let Pass { steps, first, drift, .. } = pass;
        actions.push(Action::Say(match drift {
            Some(why) => {
                self.totals.drift_repairs += 1;
                Note::DriftRepaired { steps, first, why }
            }
            None => Note::Synced { steps, took, first },
        }));
    }

    /// One audit row for the start of the agent, once it knows its gateway and has done its work.
    fn say_started(&mut self) {
        let (1, Some(desired)) = (self.totals.passes, &self.desired) else { return };
        self.ledger.audit(AuditEntry {
            event: AuditEvent::GatewayStarted,
            entity: Entity::Gateway(desired.gateway().id),
            device_id: None,
            ip_address: None,
            status: AuditStatus::Success,
            message: format!("the agent of {} started", desired.gateway().name),
            metadata: json!({ "peers": desired.peers().len() }),
        });
    }

    /// Remembers who the peers were that a new state no longer has.
    pub(super) fn note_departed(&mut self, new: &DesiredState) {
        let Some(old) = &self.desired else { return };
        for key in old.peers().keys().filter(|key| !new.peers().contains_key(key)) {
            if let Some(row) = old.row_of(key) {
                self.departed.insert(*key, Departed::from(row));
            }
        }
    }

    /// Remembers which policies decide otherwise in a new state.
    pub(super) fn note_policies(&mut self, new: &DesiredState) {
        if let Some(old) = &self.desired {
            self.policies_changed.extend(new.policies().changed_since(old.policies()));
        }
    }

    /// Says each row's quarantine once, and once when it ends.
    pub(super) fn say_quarantine(&mut self, actions: &mut Vec<Action>) {
        let Some(desired) = &self.desired else { return };
        let mut now_out = BTreeMap::new();
        for (row, reason) in desired.quarantined() {
            if self.quarantine_said.get(&row.id) != Some(reason) {
                self.ledger.audit(quarantine_entry(row, reason));
                actions.push(Action::Say(Note::Quarantined {
                    peer: row.id,
                    name: super::ledger::peer_name(row),
                    reason: reason.to_string(),
                }));
            }
            now_out.insert(row.id, reason.clone());
        }
        let back = self.quarantine_said.keys().filter(|peer| !now_out.contains_key(peer));
        actions.extend(back.map(|peer| Action::Say(Note::Released { peer: *peer })));
        self.quarantine_said = now_out;
        self.say_ignored(actions);
    }

    /// Says once what of the policies and settings has no effect.
    fn say_ignored(&mut self, actions: &mut Vec<Action>) {
        let Some(desired) = &self.desired else { return };
        let mut ignored = BTreeSet::new();
        for note in desired.policy_notes() {
            let what = note.to_string();
            if !self.ignored_said.contains(&what) {
                self.ledger.audit(AuditEntry {
                    event: AuditEvent::PolicyIgnored,
                    entity: Entity::Policy(note.policy_id),
                    device_id: None,
                    ip_address: None,
                    status: AuditStatus::Warning,
                    message: what.clone(),
                    metadata: json!(note),
                });
                actions.push(Action::Say(Note::Ignored { what: what.clone() }));
            }
            ignored.insert(what);
        }
        for what in desired.setting_warnings().iter().map(ToString::to_string) {
            if !self.ignored_said.contains(&what) {
                actions.push(Action::Say(Note::Ignored { what: what.clone() }));
            }
            ignored.insert(what);
        }
        self.ignored_said = ignored;
    }
}
