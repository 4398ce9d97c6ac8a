//! What to say, and what was said: each trouble once, and again when it goes on for an hour.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::event::Sent;
use super::name::peer_name;
use super::note::{Ignored, Note};
use crate::causes::causes;
use crate::dataplane::RefusedStep;
use crate::model::{BlockList, DesiredState, PeerId, PolicyId, QuarantinedPolicy, Reason};

const SAY_AGAIN_AFTER: Duration = Duration::from_secs(3_600);

/// What a trouble concerns, and so what ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trouble {
    /// Ends when rows were read.
    Database,
    /// Ends when a snapshot could be built.
    Rows,
    /// Ends when the block list could be read.
    Blocks,
    /// Ends when the gateway's row is active.
    Inactive,
    /// Ends when no peer has a preshared key that stays sealed.
    Sealed,
    /// Ends when a report was taken.
    Report,
    /// Ends when no table refuses reports.
    Merge,
    /// Ends when no other host leads.
    Host,
    /// Ends when the kernel was proven equal.
    Kernel,
    /// A route of another program: goes on while everything else is proven.
    Route,
}

#[derive(Debug, Default)]
pub(super) struct Notices {
    /// What is to be said now.
    notes: Vec<Note>,
    /// When each trouble was said.
    said: BTreeMap<(Trouble, String), Instant>,
    quarantined: BTreeMap<PeerId, (Reason, String)>,
    quarantined_policies: BTreeMap<PolicyId, QuarantinedPolicy>,
    ignored: BTreeSet<String>,
    reports_refused: bool,
}

impl Notices {
    pub fn say(&mut self, note: Note) {
        self.notes.push(note);
    }

    pub fn say_all(&mut self, notes: impl IntoIterator<Item = Note>) {
        self.notes.extend(notes);
    }

    /// Says what is in the way, unless it was said within the last hour.
    pub fn complain(&mut self, trouble: Trouble, note: Note, now: Instant) {
        self.said.retain(|_, said_at| now.duration_since(*said_at) < SAY_AGAIN_AFTER);
        if let Entry::Vacant(unsaid) = self.said.entry((trouble, gist(&note))) {
            unsaid.insert(now);
            self.notes.push(note);
        }
    }

    /// The kernel did not acknowledge these steps.
    pub fn refused<'a>(
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

    /// A report ended.
    pub fn reported(&mut self, sent: &Sent, now: Instant) {
        if let Some(first) = sent.lost.first().cloned() {
            self.say(Note::ReportsLost { reports: sent.lost.len(), first });
        }
        match sent.hosts.as_ref().map(|hosts| hosts.leader.as_ref()) {
            Some(Some(leader)) => {
                self.complain(Trouble::Host, Note::LedBy { leader: leader.clone() }, now);
            }
            Some(None) => self.forget(Trouble::Host),
            None => {}
        }
        if let Some(error) = &sent.error {
            let note = Note::ReportFailed { error: error.to_string() };
            return self.complain(Trouble::Report, note, now);
        }
        self.forget(Trouble::Report);
        for refusal in &sent.refusals {
            let note = Note::ReportsRefused(refusal.clone());
            self.complain(Trouble::Merge, note, now);
        }
        let refused = !sent.refusals.is_empty();
        if std::mem::replace(&mut self.reports_refused, refused) && !refused {
            self.forget(Trouble::Merge);
            self.say(Note::ReportsTaken);
        }
    }

    /// Says that earlier blocks are not known, if they are not.
    pub fn block_list(&mut self, list: &BlockList, now: Instant) {
        match list.why_unreadable() {
            Some(why) => {
                let note = Note::BlocksUnknown { error: why.to_owned() };
                self.complain(Trouble::Blocks, note, now);
            }
            None => self.forget(Trouble::Blocks),
        }
    }

    /// The trouble is over: if it comes back, that is news.
    pub fn forget(&mut self, trouble: Trouble) {
        self.said.retain(|(other, _), _| *other != trouble);
    }

    /// Says what the rows bring: a gateway that is not active, each quarantine once and once when it
    /// ends, and once what has no effect.
    pub fn rows(&mut self, desired: &DesiredState, now: Instant) {
        if desired.gateway().active {
            self.forget(Trouble::Inactive);
        } else {
            self.complain(Trouble::Inactive, Note::GatewayInactive, now);
        }
        match desired.sealed_count() {
            0 => self.forget(Trouble::Sealed),
            peers => self.complain(Trouble::Sealed, Note::NoSealingKey { peers }, now),
        }
        let mut quarantined = BTreeMap::new();
        for (row, reason) in desired.quarantined() {
            let (peer, device, name) = (row.id, row.device_id, peer_name(row));
            if self.quarantined.get(&peer).is_none_or(|(said, _)| said != reason) {
                let (name, reason) = (name.clone(), reason.clone());
                self.say(Note::Quarantined { peer, device, name, reason });
            }
            quarantined.insert(peer, (reason.clone(), name));
        }
        for (peer, (_, name)) in std::mem::replace(&mut self.quarantined, quarantined) {
            if !self.quarantined.contains_key(&peer) {
                self.say(Note::Released { peer, name });
            }
        }
        self.ignored(desired);
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
        let mut ignored = BTreeSet::new();
        for part in policies.chain(settings) {
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
        Note::DatabaseDown { what, error, .. } => format!("{what}: {error}"),
        Note::NotConverged { first, .. } => first.join("; "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        notices.forget(Trouble::Database);
        assert!(!news(&mut notices, "refused", 3_601));
        notices.forget(Trouble::Kernel);
        assert!(news(&mut notices, "refused", 3_602));
    }
}
