//! Decides what to say: each trouble once, and again after an hour if it continues.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::error::{DatabaseError, DatabaseState};
use super::event::{ReadKind, Sent};
use super::mode::Mode;
use super::name::PeerName;
use super::note::{Ignored, Note};
use super::rows::Verdict;
use super::trouble::Trouble;
use super::work::{Applied, FIRST_LINES};
use crate::causes::causes;
use crate::dataplane::RefusedStep;
use crate::model::{BlockList, DesiredState, PeerId, PolicyId, QuarantinedPolicy, Reason};
use crate::plan::PlanError;
use crate::plan::guard::HeldBack;

const SAY_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

#[derive(Debug, Default)]
pub(super) struct Notices {
    /// The notes that wait to be said.
    notes: Vec<Note>,
    /// When each trouble was said.
    said: BTreeMap<(Trouble, String), Instant>,
    /// The troubles that were said and continue.
    lasting: BTreeSet<Trouble>,
    quarantined: BTreeMap<PeerId, (Reason, PeerName)>,
    judged: Judged,
    quarantined_policies: BTreeMap<PolicyId, QuarantinedPolicy>,
    ignored: BTreeSet<String>,
    /// The last report was not written.
    report_failed: bool,
    /// How changes are learnt of, as it was said last.
    mode: Option<Mode>,
}

/// The rows that were judged since their quarantines were last told.
#[derive(Debug)]
enum Judged {
    Rows(BTreeSet<PeerId>),
    All,
}

impl Default for Judged {
    fn default() -> Self {
        Self::Rows(BTreeSet::new())
    }
}

impl Notices {
    pub fn say(&mut self, note: Note) {
        self.lasting.extend(note.begins());
        self.notes.push(note);
    }

    pub fn say_all(&mut self, notes: impl IntoIterator<Item = Note>) {
        notes.into_iter().for_each(|note| self.say(note));
    }

    /// Says what is in the way, unless it was said within the last hour.
    pub fn complain(&mut self, trouble: Trouble, note: Note, now: Instant) {
        self.said.retain(|_, said_at| now.duration_since(*said_at) < SAY_AGAIN_AFTER);
        if let Entry::Vacant(unsaid) = self.said.entry((trouble, gist(&note))) {
            unsaid.insert(now);
            self.lasting.insert(trouble);
            self.notes.push(note);
        }
    }

    /// Says how changes are learnt of, unless it is as before. The end of an outage is said once rows are read.
    pub fn connected(&mut self, mode: Mode) {
        if self.mode.replace(mode) != Some(mode) {
            self.say(Note::DatabaseUp { mode });
        }
    }

    /// Says that the server has no session to listen on, if it has none.
    pub fn no_session(&mut self, why: Option<&str>, now: Instant) {
        match why {
            Some(why) => {
                self.complain(Trouble::Session, Note::NoSession { error: why.to_owned() }, now);
            }
            None => self.ended(Trouble::Session),
        }
    }

    /// The database did not answer a question beside the reads.
    pub fn question_failed(&mut self, error: &DatabaseError, now: Instant) {
        let note = Note::ReadFailed { state: error.state(), error: error.to_string() };
        self.complain(Trouble::Database, note, now);
    }

    /// Says what the verdict on an answer means, and what the `desired` rows bring if any were read.
    pub fn judged(&mut self, verdict: Verdict, desired: Option<&DesiredState>, now: Instant) {
        let kind = match verdict {
            Verdict::Good { kind, .. } => kind,
            Verdict::Refused(error) => {
                return self.complain(Trouble::Rows, Note::CannotBuild(error), now);
            }
            Verdict::TooLittle | Verdict::Unknown => return,
        };
        if kind == ReadKind::Everything {
            self.ended(Trouble::Rows);
            self.judged = Judged::All;
        }
        self.ended(Trouble::Database);
        self.ended(Trouble::Stale);
        if let Some(desired) = desired.filter(|_| kind != ReadKind::Check) {
            self.rows(desired, now);
        }
    }

    /// Says what became of the steps of a plan.
    pub fn applied(&mut self, applied: &Applied, now: Instant) {
        self.refused(Trouble::Route, &applied.blocked, now);
        self.refused(Trouble::Kernel, applied.refused.iter().take(FIRST_LINES), now);
    }

    /// Complains that no whole plan can be made.
    pub fn cannot_plan(&mut self, error: &PlanError, now: Instant) {
        self.complain(Trouble::Kernel, Note::CannotPlan(error.clone()), now);
    }

    /// The kernel did not acknowledge these steps.
    fn refused<'a>(
        &mut self,
        trouble: Trouble,
        steps: impl IntoIterator<Item = &'a RefusedStep>,
        now: Instant,
    ) {
        for RefusedStep { step, error } in steps {
            let (step, error) = (step.to_string(), causes(error.as_ref()));
            self.complain(trouble, Note::StepRefused { step, error }, now);
        }
    }

    /// Everything was proven, but for routes that others stand in the way of, unless there are none.
    pub fn proven(&mut self, has_all_routes: bool, desired: Option<&DesiredState>) {
        self.ended(Trouble::Kernel);
        if has_all_routes {
            self.ended(Trouble::Route);
        }
        self.quarantined_policies(desired, true);
    }

    /// Says whose removal is held back, where that is news.
    pub fn held_back(&mut self, news: Option<HeldBack>, all_go: bool) {
        self.say_all(news.map(Note::HeldBack));
        if all_go {
            self.ended(Trouble::Held);
        }
    }

    /// A report ended. One that fails causes a read, which meets the same trouble and tells it. So only a
    /// second failure in a row is told.
    pub fn reported(&mut self, sent: &Sent, now: Instant) {
        if let Some(first) = sent.lost.first().cloned() {
            self.say(Note::ReportsLost { reports: sent.lost.len(), first });
        }
        match sent.hosts.as_ref().map(|hosts| hosts.leader.as_ref()) {
            Some(Some(leader)) => {
                self.complain(Trouble::Host, Note::LedBy { leader: leader.clone() }, now);
            }
            Some(None) => self.ended(Trouble::Host),
            None => {}
        }
        if let Some(error) = &sent.error {
            let failed_before = std::mem::replace(&mut self.report_failed, true);
            let reads_fail = self.lasting.contains(&Trouble::Database);
            if error.is_told_by_reads() || reads_fail || !failed_before {
                return;
            }
            let note = Note::ReportFailed { error: error.to_string() };
            return self.complain(Trouble::Report, note, now);
        }
        self.report_failed = false;
        self.ended(Trouble::Report);
        let Some(refusals) = &sent.refusals else { return };
        for refusal in refusals {
            let note = Note::ReportsRefused(refusal.clone());
            self.complain(Trouble::Merge, note, now);
        }
        if refusals.is_empty() {
            self.ended(Trouble::Merge);
        }
    }

    /// Says that earlier blocks are not known, if they are not.
    pub fn block_list(&mut self, list: &BlockList, now: Instant) {
        match list.why_unreadable() {
            Some(why) => {
                let note = Note::BlocksUnknown { error: why.to_owned() };
                self.complain(Trouble::Blocks, note, now);
            }
            None => self.ended(Trouble::Blocks),
        }
    }

    /// Ends a trouble. If it was reported, its end is reported. If it returns, it is reported again.
    pub fn ended(&mut self, trouble: Trouble) {
        if self.lasting.remove(&trouble) {
            self.notes.push(Note::Over(trouble));
        }
        self.said.retain(|(other, _), _| *other != trouble);
    }

    /// Says what the rows bring: a gateway that is not active, each quarantine once and once when it
    /// ends, and once what has no effect.
    fn rows(&mut self, desired: &DesiredState, now: Instant) {
        if desired.gateway().active {
            self.ended(Trouble::Inactive);
        } else {
            self.complain(Trouble::Inactive, Note::GatewayInactive, now);
        }
        match desired.sealed_count() {
            0 => self.ended(Trouble::Sealed),
            peers => self.complain(Trouble::Sealed, Note::NoSealingKey { peers }, now),
        }
        self.quarantines(desired);
        self.ignored(desired);
    }

    /// Says what became of the rows that were judged again.
    fn quarantines(&mut self, desired: &DesiredState) {
        let judged = match std::mem::take(&mut self.judged) {
            Judged::Rows(rows) => rows,
            Judged::All => {
                let rows = desired.quarantined().map(|(row, _)| row.id);
                rows.chain(self.quarantined.keys().copied()).collect()
            }
        };
        let mut released = Vec::new();
        for peer in judged {
            let Some((row, reason)) = desired.quarantine_of(peer) else {
                let former = self.quarantined.remove(&peer);
                released.extend(former.map(|(_, name)| Note::Released { peer, name }));
                continue;
            };
            if self.quarantined.get(&peer).is_none_or(|(said, _)| said != reason) {
                let (device, name, reason) = (row.device_id, PeerName::of(row), reason.clone());
                self.say(Note::Quarantined { peer, device, name, reason });
            }
            self.quarantined.insert(peer, (reason.clone(), PeerName::of(row)));
        }
        self.say_all(released);
    }

    /// These rows were judged again: what became of them is said once rows are good.
    pub fn rows_judged(&mut self, rows: BTreeSet<PeerId>) {
        if let Judged::Rows(judged) = &mut self.judged {
            judged.extend(rows);
        }
    }

    /// Says which policies the kernel refuses to load, and, once everything is `settled`, which it no
    /// longer refuses: these are in force. A policy that is tried again and refused again is no news.
    pub fn quarantined_policies(&mut self, desired: Option<&DesiredState>, settled: bool) {
        let Some(policies) = desired.map(DesiredState::quarantined_policies) else { return };
        for (id, policy) in &policies {
            if self.quarantined_policies.get(id).is_none_or(|said| said.why != policy.why) {
                self.say(Note::PolicyQuarantined { id: *id, policy: policy.clone() });
            }
        }
        if settled {
            let before = std::mem::take(&mut self.quarantined_policies);
            for (id, QuarantinedPolicy { name, .. }) in before {
                if !policies.contains_key(&id) {
                    self.say(Note::PolicyReleased { id, name });
                }
            }
        }
        self.quarantined_policies.extend(policies);
    }

    fn ignored(&mut self, desired: &DesiredState) {
        let policies = desired.policy_notes().into_iter().cloned().map(Ignored::Policy);
        let settings = desired.setting_warnings().iter().map(|it| Ignored::Setting(it.to_string()));
        let gateway = desired.gateway_dns_beyond().map(|it| Ignored::Gateway(it.to_string()));
        let mut ignored = BTreeSet::new();
        for part in policies.chain(settings).chain(gateway) {
            let text = part.to_string();
            if !self.ignored.contains(&text) {
                self.say(Note::Ignored(part));
            }
            ignored.insert(text);
        }
        self.ignored = ignored;
    }

    /// Takes what is to be said now.
    pub fn take(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }
}

/// A note without the figures that are never the same twice.
fn gist(note: &Note) -> String {
    match note {
        // It may be a refused connection first, and then a limit.
        Note::DatabaseDown { state: DatabaseState::Unreachable, .. }
        | Note::ReadFailed { state: DatabaseState::Unreachable, .. } => {
            DatabaseState::Unreachable.to_string()
        }
        Note::DatabaseDown { state, error, .. } | Note::ReadFailed { state, error } => {
            format!("{state}: {error}")
        }
        Note::NotConverged { first, .. } => first.join("; "),
        // A trigger may name the row, the transaction or the time.
        Note::ReportsRefused(refusal) => {
            let words = refusal.why.split_whitespace();
            let same = words.filter(|word| !word.contains(|letter: char| letter.is_ascii_digit()));
            same.collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreError;

    #[test]
    fn a_trouble_is_said_once_an_hour_and_again_when_it_comes_back() {
        let (mut notices, start) = (Notices::default(), Instant::now());
        let news = |notices: &mut Notices, error: &str, secs| {
            let note = Note::StepRefused { step: "route add".into(), error: error.into() };
            notices.complain(Trouble::Kernel, note, start + Duration::from_secs(secs));
            !notices.take().is_empty()
        };
        assert!(news(&mut notices, "refused", 0));
        assert!(!news(&mut notices, "refused", 3_599));
        assert!(news(&mut notices, "other", 3_599));
        assert!(news(&mut notices, "refused", 3_600));
        notices.ended(Trouble::Database);
        assert!(!news(&mut notices, "refused", 3_601));
        notices.ended(Trouble::Kernel);
        assert_eq!(notices.take(), [Note::Over(Trouble::Kernel)]);
        notices.ended(Trouble::Kernel);
        assert_eq!(notices.take(), [], "it was over");
        assert!(news(&mut notices, "refused", 3_602));
    }

    #[test]
    fn report_that_fails_is_told_at_the_second_time_and_not_beside_reads_that_fail() {
        let now = Instant::now();
        let failed = || {
            let missing = StoreError::Rewritten { tables: "users".into() };
            Sent { error: Some(missing.into()), ..Sent::default() }
        };
        let told = |notices: &mut Notices| {
            notices.reported(&failed(), now);
            notices.take().len()
        };
        let mut notices = Notices::default();
        assert_eq!((told(&mut notices), told(&mut notices), told(&mut notices)), (0, 1, 0));
        notices.reported(&Sent::default(), now);
        assert_eq!(notices.take(), [Note::Over(Trouble::Report)]);
        assert_eq!(told(&mut notices), 0);
        let note = Note::ReadFailed { state: DatabaseState::NotReady, error: String::new() };
        notices.complain(Trouble::Database, note, now);
        assert_eq!((notices.take().len(), told(&mut notices)), (1, 0));
        notices.ended(Trouble::Database);
        notices.take();
        assert_eq!(told(&mut notices), 1);
    }
}
