//! What a pass and a reading leave behind for the database and the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::time::Duration;

use serde_json::json;

use super::Machine;
use super::event::{Action, Note, Now};
use super::ledger::{
    applied_entry, peer_name, quarantine_entry, released_entry, revoked_entry, session_entry,
};
use super::pass::Pass;
use crate::model::{Departed, DesiredState, GatewayId, PolicyId, PublicKey, Traffic};
use crate::store::{AuditEntry, AuditEvent, AuditStatus, Entity};

impl Machine {
    /// A pass has come to its end.
    pub(super) fn finish(
        &mut self,
        pass: Pass,
        policies: &BTreeMap<PolicyId, Box<str>>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let took = now.instant.duration_since(pass.started);
        if let Some(gateway_id) = self.desired.as_ref().map(|desired| desired.gateway().id) {
            self.audit_finished(gateway_id, &pass, policies, millis(took));
        }
        let Pass { steps, first, drift, .. } = pass;
        actions.push(Action::Say(match drift {
            Some(why) => {
                self.totals.drift_repairs += 1;
                Note::DriftRepaired { steps, first, why }
            }
            None => Note::Synced { steps, took, first },
        }));
    }

    fn audit_finished(
        &mut self,
        gateway_id: GatewayId,
        pass: &Pass,
        policies: &BTreeMap<PolicyId, Box<str>>,
        milliseconds: u64,
    ) {
        self.audit_revoked(pass, milliseconds);
        let figures = json!({ "milliseconds": milliseconds, "flows_cut": pass.flows_cut });
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
    }

    /// A pass is given up: what it did stays done.
    pub(super) fn leave_unfinished(&mut self, pass: &Pass, now: Now) {
        let Some(gateway_id) = self.desired.as_ref().map(|desired| desired.gateway().id) else {
            return;
        };
        let Pass { steps, applied, first, .. } = pass;
        if *applied == 0 {
            return;
        }
        let milliseconds = millis(now.instant.duration_since(pass.started));
        self.audit_revoked(pass, milliseconds);
        self.ledger.audit(AuditEntry {
            event: AuditEvent::GatewaySynced,
            entity: Entity::Gateway(gateway_id),
            device_id: None,
            ip_address: None,
            status: AuditStatus::Warning,
            message: format!("in part: {applied} of {steps} steps in {milliseconds} ms"),
            metadata: json!({
                "steps": steps, "applied": applied, "milliseconds": milliseconds, "first": first,
            }),
        });
    }

    fn audit_revoked(&mut self, pass: &Pass, milliseconds: u64) {
        // The kernel counts the flows of a pass together.
        let cut = if pass.revoked.len() == 1 && !pass.cut_others {
            "flows_cut"
        } else {
            "flows_cut_in_pass"
        };
        for departed in pass.revoked.values() {
            let figures = json!({ "milliseconds": milliseconds, cut: pass.flows_cut });
            self.ledger.audit(revoked_entry(departed, figures));
        }
    }

    /// Takes in what the peers did since the last reading.
    pub(super) fn take_traffic(&mut self, traffic: BTreeMap<PublicKey, Traffic>, now: Now) {
        let Some(desired) = &self.desired else {
            // Nobody to report of yet: the sessions begin with the next reading.
            self.traffic = traffic;
            return;
        };
        self.traffic = traffic;
        if now.instant < self.due.handshakes {
            return;
        }
        self.due.handshakes = now.instant + self.options.timing.report_interval;
        let (handshakes, events) = self.sessions.update(&self.traffic, now.wall);
        for (key, handshake) in handshakes {
            if let Some(row) = desired.row_of(&key) {
                self.ledger.handshake(row.device_id, handshake);
            }
        }
        for entry in events.iter().filter_map(|event| session_entry(desired, event)) {
            self.ledger.audit(entry);
        }
    }

    /// One audit row for the start of the agent, once it knows its gateway and has done its work.
    pub(super) fn say_started(&mut self) {
        let Some(desired) = self.desired.as_ref().filter(|_| !self.started_told) else { return };
        self.started_told = true;
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
            let (peer, name) = (row.id, peer_name(row));
            if self.quarantine_said.get(&peer).is_none_or(|(said, _)| said != reason) {
                self.ledger.audit(quarantine_entry(row, reason));
                let (name, reason) = (name.clone(), reason.to_string());
                actions.push(Action::Say(Note::Quarantined { peer, name, reason }));
            }
            now_out.insert(peer, (reason.clone(), name));
        }
        for (peer, (_, name)) in mem::replace(&mut self.quarantine_said, now_out) {
            if !self.quarantine_said.contains_key(&peer) {
                self.ledger.audit(released_entry(peer, &name));
                actions.push(Action::Say(Note::Released { peer, name }));
            }
        }
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

fn millis(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
