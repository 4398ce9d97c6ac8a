//! Which withdrawals were carried out, and whether the database still knows of them.
//!
//! A failover to a standby that lagged behind takes back commits that were acknowledged, and so does
//! a restored backup: the rows admit peers again that were withdrawn. For each withdrawal the marks
//! are kept that brought it about. Once the database has another epoch, it is asked for them. If one
//! is missing, its commit was lost, and the peer stays out for a while, so that an operator can act.
//! The last good rows may lack withdrawals, too: while they are followed, those peers stay out.
//!
//! A withdrawal counts from the first plan that has it, also if the kernel only closes the peer, and not
//! while the guard holds it back: a restore that undoes a mistake cuts off no peer.

mod kept;
mod marks;
mod question;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use ipnet::{Ipv4Net, Ipv6Net};
use uuid::Uuid;

pub use self::kept::{KeptWithoutRow, Lost, Withdrawal, Withdrawals};
use self::marks::Marks;
use self::question::{Asking, Question};
use crate::model::{
    Departed, DeviceId, Effect, Mark, MarkId, PolicyId, PolicyRow, PublicKey, TargetRow, TargetType,
};

/// More withdrawals than this are not kept: the oldest go first.
const AT_MOST: usize = 10_000;
/// How long the database keeps change marks. An agent that did not read for longer reads everything.
pub(super) const MARKS_KEPT_FOR: Duration = Duration::from_hours(24);
/// Before a question that failed is put again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct History {
    /// `guard.lost_history`
    hold_for: Duration,
    kept: Withdrawals,
    /// Whether `kept` differs from what the disk holds.
    changed: bool,
    /// Withdrawals that no plan had yet, or that the guard holds back. While the question is open, also newer ones
    /// of peers whose earlier withdrawals the database is asked for.
    pending: BTreeMap<PublicKey, Withdrawal>,
    /// The marks of the last read, and its time.
    marks: (Vec<Mark>, SystemTime),
    /// The latest marks of the last read that found any, and its time.
    latest: (Vec<MarkId>, SystemTime),
    question: Option<Question>,
    /// The agent follows the last good rows: no rows were read since it began.
    follows_last_good: bool,
    /// The time of the latest rows that became the last good ones as a whole.
    last_good: SystemTime,
}

impl History {
    /// `kept`: what an earlier run of the agent kept.
    pub const fn new(hold_for: Duration, kept: Withdrawals) -> Self {
        Self {
            hold_for,
            kept,
            changed: false,
            pending: BTreeMap::new(),
            marks: (Vec::new(), SystemTime::UNIX_EPOCH),
            latest: (Vec::new(), SystemTime::UNIX_EPOCH),
            question: None,
            follows_last_good: false,
            last_good: SystemTime::UNIX_EPOCH,
        }
    }

    pub const fn set_hold_for(&mut self, hold_for: Duration) {
        self.hold_for = hold_for;
    }

    /// For how long a peer stays out whose withdrawal was lost.
    pub const fn hold_for(&self) -> Duration {
        self.hold_for
    }

    /// What is to be kept on disk, if that is something else than before.
    pub fn take_changed(&mut self) -> Option<Withdrawals> {
        std::mem::take(&mut self.changed).then(|| self.kept.clone())
    }

    /// The peers whose removal waits, which the disk is to know with the rest.
    pub fn remember_held(
        &mut self,
        held: BTreeMap<PublicKey, SystemTime>,
        without_row: KeptWithoutRow,
        departed: BTreeMap<PublicKey, Departed>,
    ) {
        let Withdrawals { epoch, peers, lost, .. } = std::mem::take(&mut self.kept);
        self.kept = Withdrawals { epoch, peers, lost, held, departed, without_row };
        self.changed = true;
    }

    /// The last good rows keep the rows of held peers that are gone from the database, but not what policies took from
    /// them since. So this policy denies those everything; `None`: there are none.
    pub fn closes_who_was_narrowed(&self) -> Option<PolicyRow> {
        let Withdrawals { without_row, departed, .. } = &self.kept;
        let closed: Vec<_> =
            without_row.narrowed.iter().filter_map(|key| departed.get(key)).collect();
        if closed.is_empty() {
            return None;
        }
        let target = |who: &Departed| TargetRow {
            target_type: TargetType::Device,
            target_id: who.device_id.0,
            dangling: false,
        };
        Some(PolicyRow {
            id: PolicyId(Uuid::nil()),
            name: "narrowed while its row was gone".to_owned(),
            priority: i32::MIN,
            effect: Effect::Deny,
            full_tunnel: false,
            destinations: vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
            targets: closed.into_iter().map(target).collect(),
            beyond: None,
        })
    }

    /// Whom the rows do not admit for now: the peers whose withdrawal the database lost, or is asked
    /// for, or that the last good rows may not know of.
    pub fn keeps_out(&self) -> BTreeSet<PublicKey> {
        let withdrawn = self.kept.peers.keys().filter(|_| self.are_in_question());
        withdrawn.chain(self.kept.lost.keys()).copied().collect()
    }

    /// Whether the rows may lack withdrawals.
    const fn are_in_question(&self) -> bool {
        self.question.is_some() || self.follows_last_good
    }

    /// From now on the agent follows the last good rows. Any withdrawal may be missing in them: rows that
    /// could not be used, or waited for an operator, were not kept, and a database that lost it may have
    /// been read last.
    pub const fn rows_are_restored(&mut self) {
        self.follows_last_good = true;
    }

    /// The rows read at this time are the last good ones now.
    pub fn rows_are_kept(&mut self, as_of: SystemTime) {
        self.last_good = self.last_good.max(as_of);
    }

    /// Whose withdrawal the database lost.
    pub const fn lost(&self) -> &BTreeMap<PublicKey, Lost> {
        &self.kept.lost
    }

    /// The marks of a read whose rows come next.
    pub fn marks_read(&mut self, marks: Vec<Mark>, read_at: SystemTime) {
        if !marks.is_empty() {
            self.latest = (marks::latest(&marks), read_at);
        }
        self.marks = (marks, read_at);
    }

    /// Before an answer came, withdrawals of the epoch in question were carried out, too: also the epoch
    /// before it may not know them.
    fn last_epoch(&self) -> Option<&String> {
        let asked = self.question.as_ref().map(|question| &question.epoch);
        asked.or(self.kept.epoch.as_ref())
    }

    /// Whether the database had another epoch before.
    pub fn is_other(&self, epoch: &str) -> bool {
        self.last_epoch().is_some_and(|last| last != epoch)
    }

    /// Everything is read, from a database of this epoch. Says whether it was another before. `stay`: the
    /// peers whose withdrawal is held back, which no other epoch has to know.
    pub fn follow(&mut self, epoch: String, stay: impl Fn(&PublicKey, DeviceId) -> bool) -> bool {
        let (is_first, is_new) = (self.last_epoch().is_none(), self.is_other(&epoch));
        if is_new {
            // What was read is asked for, too, although no plan had it yet.
            for (key, mut it) in self.pending.extract_if(.., |key, it| !stay(key, it.device_id)) {
                // Any of its marks may be lost.
                let asked_for = self.kept.peers.remove(&key);
                it.marks.extend(asked_for.into_iter().flat_map(|asked_for| asked_for.marks));
                self.kept.peers.insert(key, it);
                self.changed = true;
            }
        }
        if is_new && !self.kept.peers.is_empty() {
            self.question = Some(Question { epoch, state: Asking::WaitsForRows });
        } else if is_new || is_first {
            (self.question, self.changed) = (None, true);
            self.kept.epoch = Some(epoch);
        }
        is_new
    }

    /// The rows of everything were read and can be used.
    pub fn rows_are_read(&mut self, now: Instant) {
        self.follows_last_good = false;
        if let Some(question) = &mut self.question
            && question.state == Asking::WaitsForRows
        {
            question.state = Asking::Due(now);
        }
    }

    /// When the question is put, if it waits for a time.
    pub fn question_due(&self) -> Option<Instant> {
        match self.question.as_ref()?.state {
            Asking::Due(at) => Some(at),
            Asking::WaitsForRows | Asking::Asked => None,
        }
    }

    /// Which withdrawals to ask the database for, and of which epoch it must be, if that is due.
    pub fn begin_question(
        &mut self,
        now: Instant,
    ) -> Option<(String, BTreeMap<PublicKey, Withdrawal>)> {
        self.question_due().filter(|at| *at <= now)?;
        let question = self.question.as_mut()?;
        question.state = Asking::Asked;
        Some((question.epoch.clone(), self.kept.peers.clone()))
    }

    /// The database of this epoch could not be asked.
    pub fn not_answered(&mut self, epoch: &str, now: Instant) {
        if let Some(question) = self.question.as_mut().filter(|it| it.is_asked_of(epoch)) {
            question.state = Asking::Due(now + ASK_AGAIN);
        }
    }

    /// The database of this epoch lost these of the withdrawals. Returns the names of those whom the rows give a
    /// right to a tunnel again; `None`: it was not asked, or the rows are of another epoch by now.
    pub fn answered(
        &mut self,
        epoch: &str,
        lost: &BTreeSet<PublicKey>,
        entitled: &BTreeSet<PublicKey>,
        database_now: SystemTime,
    ) -> Option<Vec<String>> {
        let Question { epoch, .. } =
            self.question.take_if(|question| question.is_asked_of(epoch))?;
        self.kept.epoch = Some(epoch);
        self.changed = true;
        let since = self.later_than_all(database_now);
        let mut names = Vec::new();
        for key in lost.intersection(entitled) {
            if let Some(Withdrawal { name, .. }) = self.kept.peers.remove(key) {
                names.push(name.clone());
                let until = database_now + self.hold_for;
                self.kept.lost.insert(*key, Lost { name, since, until });
            }
        }
        Some(names)
    }

    /// The database may be another server, with another clock, which shows `now`: who is kept out stays out for
    /// as long as before. Where `before`, the former server's time, is not known, the time begins anew.
    pub fn goes_by_another_clock(&mut self, before: Option<SystemTime>, now: SystemTime) {
        for lost in self.kept.lost.values_mut() {
            let left = before.map(|before| lost.until.duration_since(before).unwrap_or_default());
            lost.until = now + left.unwrap_or(self.hold_for).min(self.hold_for);
            self.changed = true;
        }
    }

    /// When, by the database's clock, the next lost withdrawal is followed.
    pub fn next_end(&self) -> Option<SystemTime> {
        self.kept.lost.values().map(|it| it.until).min()
    }

    /// This time as a confirmation can name it, or a later one, so that a confirmation of the peers kept
    /// out so far concerns no other.
    fn later_than_all(&self, database_now: SystemTime) -> SystemTime {
        let latest = self.kept.lost.values().map(|it| it.since).max();
        let next = latest.map(|at| at + Duration::from_micros(1));
        let now = database_now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let whole = Duration::new(now.as_secs(), now.subsec_micros() * 1_000);
        next.into_iter().fold(SystemTime::UNIX_EPOCH + whole, SystemTime::max)
    }

    /// Lets in again whom `ends` says. Returns their names.
    pub fn let_in(&mut self, ends: impl Fn(&PublicKey, &Lost) -> bool) -> Vec<String> {
        let ended = self.kept.lost.extract_if(.., |key, it| ends(key, it));
        let names: Vec<_> = ended.map(|(_, it)| it.name).collect();
        self.changed |= !names.is_empty();
        names
    }

    /// Notes the marks of the last read as the cause of these peers' withdrawal.
    pub fn departed<'a>(&mut self, departed: impl Iterator<Item = (&'a PublicKey, &'a Departed)>) {
        let (marks, read_at) = &self.marks;
        let departed: Vec<_> = departed.collect();
        if departed.is_empty() || marks.is_empty() {
            return;
        }
        let ids = departed.iter().map(|(_, who)| (who.device_id, who.user_id));
        let about = Marks::about(ids, marks);
        for (key, who) in departed {
            let marks = about.those_of(who.device_id, who.user_id);
            if !marks.is_empty() {
                let withdrawal = || Withdrawal::of(who, marks, *read_at);
                self.pending.entry(*key).or_insert_with(withdrawal);
            }
        }
    }

    /// These peers were to be revoked from a time on, and it has come. The marks of the commits that said so
    /// may have been read long ago; but a database that lost them lost also what was read last.
    pub fn expired<'a>(&mut self, expired: impl Iterator<Item = (&'a PublicKey, &'a Departed)>) {
        let (marks, read_at) = &self.latest;
        for (key, who) in expired {
            let is_known = self.pending.get(key).is_some_and(|it| it.read_at >= *read_at);
            if !marks.is_empty() && !is_known {
                self.pending.insert(*key, Withdrawal::of(who, marks.clone(), *read_at));
            }
        }
    }

    /// The database's answer about their devices removes these peers. No mark records that; the latest ones stand
    /// for it, because a database that lost them may have lost this, too.
    pub fn taken_out(&mut self, peers: &BTreeMap<PublicKey, Departed>, database_now: SystemTime) {
        let withdrawal = |who| Withdrawal::of(who, self.latest.0.clone(), database_now);
        self.pending.extend(peers.iter().map(|(key, who)| (*key, withdrawal(who))));
    }

    /// The devices and users that the marks of the last read list.
    pub fn listed(&self) -> BTreeSet<Uuid> {
        self.marks.0.iter().filter_map(Mark::listed).flatten().copied().collect()
    }

    /// The first rows that were read give these peers no right to a tunnel. Whether they had one before is
    /// not known: what that read found is taken for what withdrew them.
    pub fn are_out(&mut self, withdrawn: &BTreeMap<PublicKey, Departed>) {
        let known = &self.kept.peers;
        let unknown = withdrawn.iter().filter(|(key, _)| !known.contains_key(key));
        let unknown: Vec<_> = unknown.take(AT_MOST.saturating_sub(known.len())).collect();
        self.departed(unknown.into_iter());
    }

    /// A plan withdraws these peers: it is about to be applied. What the database is asked for waits for the
    /// answer.
    pub fn withdrawing<'a>(&mut self, keys: impl Iterator<Item = &'a PublicKey>) {
        let Self { kept: Withdrawals { peers, .. }, pending, question, changed, .. } = self;
        for key in keys {
            let is_asked_for = question.is_some() && peers.contains_key(key);
            if !is_asked_for && let Some(it) = pending.remove(key) {
                *changed |= peers.get(key) != Some(&it);
                peers.insert(*key, it);
            }
        }
        if peers.len() > AT_MOST {
            let mut by_age: Vec<_> = peers.iter().map(|(key, it)| (it.read_at, *key)).collect();
            by_age.sort_unstable();
            let too_many = by_age.len() - AT_MOST;
            by_age.iter().take(too_many).for_each(|(_, key)| drop(peers.remove(key)));
        }
    }

    /// The rows that were read bar these peers. For one that is out already, what that read found is what
    /// keeps it out from now on, or from the answer on while the database is asked for it: the marks of
    /// another epoch say nothing about a commit that is lost.
    pub fn stay_out(&mut self, are_barred: impl Fn(&PublicKey) -> bool) {
        let (marks, read_at) = &self.marks;
        if marks.is_empty() {
            return;
        }
        let out = || self.kept.peers.values().chain(self.pending.values());
        let about = Marks::about(out().map(|it| (it.device_id, it.user_id)), marks);
        let found = |(key, it): (&PublicKey, &Withdrawal)| {
            let marks = about.those_of(it.device_id, it.user_id);
            let is_out = !marks.is_empty() && are_barred(key);
            is_out.then(|| (*key, Withdrawal { marks, read_at: *read_at, ..it.clone() }))
        };
        let pending: Vec<_> = self.pending.iter().filter_map(found).collect();
        let kept: Vec<_> = self.kept.peers.iter().filter_map(found).collect();
        self.pending.extend(pending);
        if self.question.is_some() {
            self.pending.extend(kept);
        } else {
            self.changed |= !kept.is_empty();
            self.kept.peers.extend(kept);
        }
    }

    /// The kernel has these peers now; the rows admit those. What the rows admit again leaves the list,
    /// unless they may lack withdrawals.
    pub fn applied(
        &mut self,
        has: impl Fn(&PublicKey) -> bool,
        admit: impl Fn(&PublicKey, DeviceId) -> bool,
        database_now: SystemTime,
    ) {
        self.pending.retain(|key, it| !admit(key, it.device_id));
        let in_question = self.are_in_question();
        let may_be_asked_for = |it: &Withdrawal| {
            it.read_at + MARKS_KEPT_FOR > database_now || it.read_at > self.last_good
        };
        let is_over = |key: &PublicKey, it: &Withdrawal| !in_question && admit(key, it.device_id);
        let before = self.kept.peers.len();
        self.kept.peers.retain(|key, it| may_be_asked_for(it) && !is_over(key, it));
        self.changed |= before != self.kept.peers.len();
        let out: Vec<_> = self.pending.keys().filter(|key| !has(key)).copied().collect();
        self.withdrawing(out.iter());
    }
}
