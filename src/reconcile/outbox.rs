//! What goes back to the database: proofs, handshakes, sessions, audit entries.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::audit;
use super::clock::{Clocks, is_due};
use super::event::{Action, Sent};
use super::ledger::Ledger;
use super::options::Timing;
use super::session::Sessions;
use super::work::{Ended, Pass};
use crate::backoff::Backoff;
use crate::model::{AuditEvents, DesiredState, PublicKey, Traffic};
use crate::store::{AuditEntry, Handshake, Hosts, Refusal};

/// Reports are batched: at most one in this time.
const REPORT_GAP: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Outbox {
    ledger: Ledger,
    under_way: UnderWay,
    next_report: Instant,
    backoff: Backoff,
    sessions: Sessions,
    handshakes_every: Duration,
    next_handshakes: Instant,
    /// By the steady clock, until the database's is known.
    undated: Ledger,
    /// The audit log has the start of this agent.
    started: bool,
    /// Reports that the database refused for what they say.
    lost: u64,
    /// Tables that refuse all reports.
    refusals: Vec<Refusal>,
    /// The other hosts of the gateway.
    hosts: Hosts,
    /// When the database heard of this host last, and named the others.
    heard_of_at: Option<Instant>,
}

/// The report that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UnderWay {
    Nothing,
    Report,
    /// Its proof is void: if the report fails, the proof is not sent again.
    Disproved,
}

/// What readers see.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutboxView<'a> {
    /// Nothing waits to be written back.
    pub is_empty: bool,
    pub dropped_audit_entries: u64,
    pub lost_reports: u64,
    pub refusals: &'a [Refusal],
    pub hosts: &'a Hosts,
    /// When the database heard of this host last.
    pub heard_of_at: Option<Instant>,
}

impl Outbox {
    pub fn new(timing: Timing, now: Instant) -> Self {
        Self {
            ledger: Ledger::default(),
            under_way: UnderWay::Nothing,
            next_report: now,
            backoff: Backoff::new(timing.seed.wrapping_add(3)),
            sessions: Sessions::default(),
            handshakes_every: timing.report_interval,
            next_handshakes: now,
            undated: Ledger::default(),
            started: false,
            lost: 0,
            refusals: Vec::new(),
            hosts: Hosts::default(),
            heard_of_at: None,
        }
    }

    pub const fn set_report_interval(&mut self, interval: Duration) {
        self.handshakes_every = interval;
    }

    pub fn view(&self) -> OutboxView<'_> {
        OutboxView {
            is_empty: !self.is_reporting() && self.ledger.is_empty(),
            dropped_audit_entries: self.ledger.dropped(),
            lost_reports: self.lost,
            refusals: &self.refusals,
            hosts: &self.hosts,
            heard_of_at: self.heard_of_at,
        }
    }

    /// When the next report may go, if there is something to report and the database is there.
    pub fn due(&self, connected: bool) -> Option<Instant> {
        (connected && !self.is_reporting() && !self.ledger.is_empty()).then_some(self.next_report)
    }

    fn is_reporting(&self) -> bool {
        self.under_way != UnderWay::Nothing
    }

    /// Begins a report, if one is due and the database is there. `events`: those that are audited;
    /// without it, all.
    pub fn begin_report(
        &mut self,
        connected: bool,
        events: Option<&AuditEvents>,
        now: Instant,
    ) -> Option<Action> {
        if !is_due(self.due(connected), now) {
            return None;
        }
        self.under_way = UnderWay::Report;
        self.next_report = now + REPORT_GAP;
        let mut report = self.ledger.take();
        let leads = self.hosts.leader.is_none();
        let is_wanted = |event| leads && events.is_none_or(|events| events.contains(event));
        report.audit.retain(|entry| is_wanted(entry.event));
        Some(Action::Report(report))
    }

    /// Takes in which other hosts the gateway has. While one of them leads, it alone audits.
    pub fn hosts(&mut self, hosts: Hosts, now: Instant) {
        self.hosts = hosts;
        self.heard_of_at = Some(now);
    }

    pub const fn connected(&mut self) {
        self.ledger.set_unreachable(false);
    }

    pub const fn disconnected(&mut self) {
        self.disprove();
        self.ledger.set_unreachable(true);
    }

    /// A report ended. Entries that were not taken go into the next report; entries whose content the
    /// database rejects are lost.
    pub fn reported(&mut self, sent: &mut Sent, connected: bool, now: Instant) {
        let ended = std::mem::replace(&mut self.under_way, UnderWay::Nothing);
        self.ledger.set_unreachable(sent.error.is_some() || !connected);
        let mut left = std::mem::take(&mut sent.left);
        if ended == UnderWay::Disproved {
            left.synced_as_of = None;
        }
        self.ledger.put_back(left);
        if !connected {
            self.ledger.unsynced();
        }
        if let Some(hosts) = &sent.hosts {
            self.hosts(hosts.clone(), now);
        }
        self.lost += sent.lost.len() as u64;
        if sent.error.is_some() {
            self.next_report = now + self.backoff.next_wait();
        } else {
            self.backoff.reset();
            if let Some(refusals) = &sent.refusals {
                self.refusals.clone_from(refusals);
            }
        }
    }

    /// The kernel was proven equal to the database as of this time of the database; `None`: that is not to be told.
    pub fn synced(&mut self, as_of: Option<SystemTime>) {
        if let Some(as_of) = as_of {
            self.ledger.synced(as_of);
        }
    }

    /// The kernel differs, and may have differed when it was proven equal: a proof that is not reported yet is dropped.
    pub const fn disprove(&mut self) {
        self.ledger.unsynced();
        if matches!(self.under_way, UnderWay::Report) {
            self.under_way = UnderWay::Disproved;
        }
    }

    /// Notes the entries that are wanted: others would take the place of wanted ones while the database
    /// is away. Without `events` it is not known yet which those are.
    pub fn audit(
        &mut self,
        entries: impl IntoIterator<Item = AuditEntry>,
        events: Option<&AuditEvents>,
    ) {
        let is_wanted = |event| events.is_none_or(|events| events.contains(event));
        let entries = entries.into_iter().filter(|entry| is_wanted(entry.event));
        entries.for_each(|entry| self.ledger.audit(entry));
    }

    /// Audits the start of the agent, once it knows its gateway.
    pub fn started(&mut self, desired: Option<&DesiredState>) {
        let Some(desired) = desired else { return };
        if !std::mem::replace(&mut self.started, true) {
            self.audit([audit::started(desired)], Some(&desired.settings().audit_events));
        }
    }

    /// Audits the end of a pass, by the rows that are desired now.
    pub fn ended(&mut self, ended: &Ended, desired: Option<&DesiredState>) {
        if let Some(desired) = desired {
            self.audit(audit::ended(ended, desired), Some(&desired.settings().audit_events));
        }
    }

    /// Audits what a pass did that was given up.
    pub fn left(&mut self, pass: &Pass, desired: Option<&DesiredState>) {
        if let Some(desired) = desired {
            let entries = audit::unfinished(pass, desired.gateway().id);
            self.audit(entries, Some(&desired.settings().audit_events));
        }
    }

    /// Takes in what the peers did since the last reading, at most once in each report interval: their
    /// handshakes become `devices.last_seen_at` and `devices.last_connected_at`.
    pub fn traffic(
        &mut self,
        traffic: &BTreeMap<PublicKey, Traffic>,
        desired: &DesiredState,
        now: Clocks,
    ) {
        if now.instant < self.next_handshakes {
            return;
        }
        self.next_handshakes = now.instant + self.handshakes_every;
        let device_of = |key: &PublicKey| desired.row_of(key).map(|row| row.device_id);
        let (handshakes, events) = self.sessions.update(traffic, device_of, now.steady);
        handshakes.into_iter().for_each(|handshake| self.undated.handshake(handshake));
        if let Some(database) = now.database {
            let by_database = |steady| now.by(database, steady);
            for handshake in self.undated.take().handshakes.into_values() {
                let Handshake { device_id, first_at, seen_at, connected_at } = handshake;
                self.ledger.handshake(Handshake {
                    device_id,
                    first_at: by_database(first_at),
                    seen_at: by_database(seen_at),
                    connected_at: connected_at.map(by_database),
                });
            }
        }
        let entries = events.iter().filter_map(|event| audit::session(desired, event));
        self.audit(entries, Some(&desired.settings().audit_events));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::model::PolicyId;
    use crate::reconcile::error::DatabaseError;
    use crate::store::AuditEvent;

    fn outbox(now: Instant) -> Outbox {
        Outbox::new(Timing::SECONDS, now)
    }

    #[test]
    fn one_report_at_a_time_and_none_without_news() {
        let now = Instant::now();
        let mut outbox = outbox(now);
        assert_eq!(outbox.due(true), None);
        outbox.synced(Some(SystemTime::UNIX_EPOCH));
        assert!(outbox.begin_report(true, None, now).is_some());
        outbox.synced(Some(SystemTime::UNIX_EPOCH));
        assert_eq!(outbox.due(true), None, "one is under way");
        outbox.reported(&mut Sent::default(), true, now);
        assert!(outbox.begin_report(true, None, now).is_none(), "they are batched");
        assert_eq!(outbox.due(true), Some(now + REPORT_GAP));
    }

    #[test]
    fn unwanted_entries_take_no_place_of_wanted_ones_while_the_database_is_away() {
        let mut outbox = outbox(Instant::now());
        let events = AuditEvents::parse(&json!(["policy.released"])).unwrap();
        let applied = || audit::applied(PolicyId(Uuid::nil()), "intranet", json!({}));
        let released = AuditEntry { event: AuditEvent::PolicyReleased, ..applied() };
        outbox.disconnected();
        outbox.audit((0..20_000).map(|_| applied()), Some(&events));
        assert!(outbox.view().is_empty);
        outbox.audit([released], Some(&events));
        assert!(!outbox.view().is_empty);
        assert_eq!(outbox.view().dropped_audit_entries, 0);
    }

    /// A report of a proof is under way, `between` happens, and then the report fails.
    fn report_that_fails(between: impl FnOnce(&mut Outbox), connected: bool) -> Outbox {
        let now = Instant::now();
        let mut outbox = outbox(now);
        outbox.synced(Some(SystemTime::UNIX_EPOCH));
        let Some(Action::Report(left)) = outbox.begin_report(true, None, now) else { panic!() };
        between(&mut outbox);
        let bound = String::new();
        let error = Some(DatabaseError::OtherGateway { configured: bound.clone(), bound });
        outbox.reported(&mut Sent { left, error, ..Sent::default() }, connected, now);
        outbox
    }

    #[test]
    fn a_proof_from_before_the_database_went_away_is_not_reported() {
        assert!(report_that_fails(Outbox::disconnected, false).view().is_empty);
        let comes_back = |outbox: &mut Outbox| {
            outbox.disconnected();
            outbox.connected();
        };
        assert!(report_that_fails(comes_back, true).view().is_empty, "also if it is back by now");
    }

    #[test]
    fn a_proof_that_was_disproved_while_its_report_failed_is_not_reported() {
        assert!(!report_that_fails(|_| (), true).view().is_empty);
        assert!(report_that_fails(Outbox::disprove, true).view().is_empty);
        let proven_again = |outbox: &mut Outbox| {
            outbox.disprove();
            outbox.synced(Some(SystemTime::UNIX_EPOCH));
        };
        assert!(!report_that_fails(proven_again, true).view().is_empty, "it holds again");
    }
}
