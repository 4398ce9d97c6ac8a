//! The rows: what the database wants of this host, where they come from, and how old they are.

mod answer;
mod block;
mod build;
mod change;
mod due;
mod history;
mod peers;
mod plan;
mod refused;
mod reload;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::event::{Action, LastGood, Provenance, ReadKind};
use super::history::{History, Lost};
use super::note::Note;
use super::options::{StaleOptions, StalePolicy};
use super::proof::Grounds;
use super::row_status::RowStatus;
use super::stale::Staleness;
use crate::model::{
    AuditEvents, BlockList, BuildError, ChangedRows, DesiredState, Local, PublicKey, Touched,
    Unloadable,
};

pub(super) use answer::{Taken, Verdict};
pub(super) use change::{Change, Compared};
pub(super) use plan::{Extent, Planned, Waiting};
use refused::Refused;

/// The desired state that the last usable rows made.
#[derive(Debug)]
pub(super) struct Rows {
    local: Arc<Local>,
    block_list: Arc<BlockList>,
    /// Whether a plan was made since the block list changed.
    blocks_are_planned: bool,
    desired: Option<DesiredState>,
    history: History,
    /// Peers that stay out for now because of the history, whatever the rows say.
    kept_out: BTreeSet<PublicKey>,
    origin: Origin,
    restore: Restore,
    age: Staleness,
    refused: Option<Refused>,
    /// While `[stale]` suspends peers: who may stay.
    admitted: Option<BTreeSet<PublicKey>>,
    /// Made when the rows change: it is asked for far more often.
    status: RowStatus,
}

/// Where the desired state comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Database,
    /// An earlier run read these rows last: only a read of everything can follow.
    LastGood,
    /// As `LastGood`, but they may have been altered: they only withdraw.
    Unsealed,
}

/// Whether the last good rows of an earlier run were asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restore {
    NotTried,
    Tried,
    Missing,
}

/// The view for readers.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsView<'a> {
    pub all: &'a Rows,
    pub local: &'a Local,
    pub block_list: &'a BlockList,
    pub desired: Option<&'a DesiredState>,
    /// The rows that plans follow.
    pub followed: Option<&'a DesiredState>,
    pub refused: Option<&'a BuildError>,
    pub status: &'a RowStatus,
    pub is_stale: bool,
    /// An earlier version's file holds the rows: they only withdraw.
    pub only_withdraw: bool,
    /// The peers whose withdrawal the database lost: they stay out for a while.
    pub lost: &'a BTreeMap<PublicKey, Lost>,
}

impl Rows {
    pub fn new(
        local: Arc<Local>,
        block_list: Arc<BlockList>,
        stale: StaleOptions,
        history: History,
        now: Instant,
    ) -> Self {
        Self {
            local,
            block_list,
            blocks_are_planned: false,
            desired: None,
            kept_out: history.keeps_out(),
            history,
            origin: Origin::Database,
            restore: Restore::NotTried,
            age: Staleness::new(stale, now),
            refused: None,
            admitted: None,
            status: RowStatus::default(),
        }
    }

    /// `None`: no rows could be used yet.
    pub const fn desired(&self) -> Option<&DesiredState> {
        self.desired.as_ref()
    }

    /// The events that are audited; `None`: no rows tell.
    pub fn audit_events(&self) -> Option<&AuditEvents> {
        self.desired().map(|desired| &desired.settings().audit_events)
    }

    pub fn view(&self) -> RowsView<'_> {
        RowsView {
            all: self,
            local: &self.local,
            block_list: &self.block_list,
            desired: self.desired.as_ref(),
            followed: self.followed(),
            refused: self.refused.as_ref().map(|refused| &refused.error),
            status: &self.status,
            is_stale: self.age.is_stale(),
            only_withdraw: self.origin == Origin::Unsealed,
            lost: self.history.lost(),
        }
    }

    /// What a proof needs to know of the rows; `None`: there are none. `all_go`: no removal waits. `announced`: all
    /// changes are.
    pub fn grounds(&self, all_go: bool, announced: bool) -> Option<Grounds> {
        let desired = self.desired.as_ref()?;
        Some(Grounds {
            as_of: desired.as_of(),
            rows_read_at: self.age.read_at(),
            are_usable: self.are_usable(),
            are_followed: all_go && !self.keep_any_out(),
            are_sealed: self.sealed_count() > 0,
            may_be_told: announced && self.decide() && !self.in_doubt(),
        })
    }

    /// Whether the last rows that were read could be used, and nothing is known to forbid that.
    fn are_usable(&self) -> bool {
        self.can_change() && self.may_grant() && self.sealed_count() == 0
    }

    /// Whether it is known what must not be granted. If the rows grew stale before the first reading of the kernel,
    /// the next reading shows which peers `deny_new` may keep.
    fn may_grant(&self) -> bool {
        let denies_new = self.age.suspending() == Some(StalePolicy::DenyNew);
        let knows_who_stays = !denies_new || self.admitted.is_some();
        knows_who_stays
            && self.block_list.why_unreadable().is_none()
            && self.origin != Origin::Unsealed
    }

    fn can_change(&self) -> bool {
        self.desired.is_some() && self.refused.is_none()
    }

    /// Whether a plan may be made: from the rows, from what can be used of them, because `[stale]` or a
    /// block asks for one, or because without rows nothing may pass.
    pub fn may_plan(&self) -> bool {
        let blocks = !self.block_list.is_empty();
        let withdraws = self.rest().is_some() || self.are_missing();
        self.can_change() || withdraws || blocks || self.age.suspends()
    }

    /// Whether the database was away when the agent began, an earlier run left no last good rows, and no
    /// rows could be used since.
    pub fn are_missing(&self) -> bool {
        self.desired.is_none() && self.restore == Restore::Missing
    }

    /// Whether the rows as a whole decide what the kernel holds, and not `[stale]`.
    pub fn decide(&self) -> bool {
        self.refused.is_none() && self.may_grant() && !self.age.suspends()
    }

    /// Whether the last read failed, or its rows could not be used.
    fn in_doubt(&self) -> bool {
        self.age.in_doubt()
    }

    /// The database cannot be read, or its rows cannot be used.
    pub const fn doubt(&mut self) {
        self.age.doubt();
    }

    /// The rows are what the database holds now: peers that `[stale]` suspended are admitted again.
    fn are_good(&mut self, now: Instant) -> Option<Touched> {
        if self.age.renew(now) { self.suspend_all_but(None) } else { None }
    }

    /// How much must be read when `kind` is wanted: changes need a state that they can change, which
    /// the database wrote and which could be built.
    pub fn enough(&self, kind: ReadKind) -> ReadKind {
        let can_change = self.can_change() && self.origin == Origin::Database;
        if can_change { kind } else { ReadKind::Everything }
    }

    /// Leaves out profiles that the kernel refused, until rows change them or are all read again. Says
    /// whether any of them is wanted.
    pub fn quarantine_profiles(&mut self, refused: Vec<Unloadable>) -> bool {
        let desired = self.desired.as_mut().filter(|_| !refused.is_empty());
        let quarantined = desired.is_some_and(|desired| desired.quarantine_profiles(refused));
        if quarantined {
            self.refresh();
        }
        quarantined
    }

    /// Loads the last good rows of an earlier run: once, and only while there are none.
    pub fn begin_restore(&mut self) -> Option<Action> {
        let begins = self.desired.is_none() && self.restore == Restore::NotTried;
        begins.then(|| self.restore = Restore::Tried).map(|()| Action::Restore)
    }

    /// There are no last good rows. Without rows of the database either, whatever may forward must deny.
    pub fn nothing_restored(&mut self) -> Change {
        self.restore = Restore::Missing;
        if self.are_missing() { Change::of_everything(None, None) } else { Change::default() }
    }

    /// Starts from the last good rows of an earlier run, unless the database answered first. Returns their time, if
    /// they are followed.
    pub fn restore(&mut self, last_good: LastGood) -> (Option<SystemTime>, Change) {
        if self.desired.is_some() {
            return (None, Change::default());
        }
        match self.build_last_good(last_good) {
            Ok(as_of) => {
                let note = Some(Note::Restored { as_of });
                (Some(as_of), Change::of_everything(note, None))
            }
            Err(error) => (None, Change::noted(Some(Note::CannotBuild(error)), None)),
        }
    }

    fn build_last_good(&mut self, last_good: LastGood) -> Result<SystemTime, BuildError> {
        let LastGood { rows, changes, provenance } = last_good;
        let mut desired = self.build(rows)?;
        for rows in changes {
            desired.apply(rows);
        }
        if let Some(policy) = self.history.closes_who_was_narrowed() {
            desired.apply(ChangedRows::of_policy(policy, desired.as_of()));
        }
        self.history.rows_are_restored();
        self.kept_out = self.history.keeps_out();
        desired.keep_out(self.kept_out.clone());
        let as_of = desired.as_of();
        self.desired = Some(desired);
        self.origin = match provenance {
            Provenance::Sealed => Origin::LastGood,
            Provenance::Unsealed => Origin::Unsealed,
        };
        self.age.restored();
        self.refresh();
        Ok(as_of)
    }

    /// Takes in changed rows; `None`: there is no state that they could change.
    fn apply(&mut self, mut rows: ChangedRows) -> Option<Touched> {
        self.history.marks_read(std::mem::take(&mut rows.marks), rows.taken_at);
        let touched = self.desired.as_mut()?.apply(rows);
        self.refresh();
        self.remember_withdrawn(&touched.departed);
        Some(touched)
    }

    /// Takes in that no row had changed by this time of the database.
    fn unchanged(&mut self, taken_at: SystemTime) -> Option<Touched> {
        let touched = self.desired.as_mut()?.unchanged(taken_at);
        if !touched.is_empty() {
            self.refresh();
            self.remember_expired(&touched.departed);
        }
        Some(touched)
    }

    /// Admits only these peers, as if no other were eligible; `None` admits all eligible peers again.
    fn suspend_all_but(&mut self, admitted: Option<BTreeSet<PublicKey>>) -> Option<Touched> {
        self.admitted.clone_from(&admitted);
        self.change(|desired| desired.suspend_all_but(admitted.clone()))
    }

    /// While `stale.policy` denies new sessions, a peer whose session ended is not let in again.
    /// `connected`: the peers with a live session, if a reading just showed them.
    pub fn suspend_disconnected(
        &mut self,
        connected: impl FnOnce() -> Option<BTreeSet<PublicKey>>,
    ) -> Option<Touched> {
        if self.age.suspending() != Some(StalePolicy::DenyNew) {
            return None;
        }
        let connected = connected()?;
        let stays = |admitted: &BTreeSet<_>| admitted.iter().all(|key| connected.contains(key));
        if self.admitted.as_ref().is_some_and(stays) {
            return None;
        }
        self.suspend_all_but(Some(connected))
    }

    fn public_key(&self) -> PublicKey {
        self.local.private_key.public_key()
    }

    /// Changes what the rows ask for, and what can be used of those that were refused.
    fn change(&mut self, change: impl Fn(&mut DesiredState) -> Touched) -> Option<Touched> {
        let rest = self.refused.as_mut().and_then(|refused| refused.rest.as_mut());
        let touched = rest.into_iter().chain(&mut self.desired).map(change);
        let touched = touched.reduce(Touched::merged);
        self.refresh();
        touched
    }

    fn refresh(&mut self) {
        match &self.desired {
            Some(desired) => self.status.renew(desired),
            None => self.status = RowStatus::default(),
        }
    }
}

#[cfg(test)]
mod tests;
