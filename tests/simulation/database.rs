//! A model of the control plane's database: transactions that commit in any order, abort or get lost;
//! epochs; readers with a cursor.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::SystemTime;

use gatepost::model::{
    BarredBy, DeviceId, DeviceRow, DeviceRows, Mark, PeerRow, PublicKey, UserId,
};
use gatepost::reconcile::{AskedDevice, DeviceStandings, ReadAnswer, ReadKind, Withdrawal};

use super::bytes::Bytes;
use super::tables::{Change, Tables};

/// The tables as they were from a moment on.
#[derive(Debug, Clone)]
pub struct Version {
    pub at: SystemTime,
    pub tables: Rc<Tables>,
    /// How many marks there were.
    marks: usize,
}

/// Up to where a reader has read.
#[derive(Debug, Clone)]
pub struct Cursor {
    epoch: u32,
    tables: Rc<Tables>,
    marks: usize,
}

/// What a read of the database saw.
#[derive(Debug, Clone)]
pub struct Seen {
    pub cursor: Cursor,
    pub taken_at: SystemTime,
    pub answer: Answer,
}

#[derive(Debug, Clone)]
pub enum Answer {
    Everything { epoch: u32, marks: Vec<Mark> },
    Changed(gatepost::model::ChangedRows),
    Unchanged,
}

#[derive(Debug)]
pub struct Database {
    pub versions: Vec<Version>,
    marks: Vec<(Mark, SystemTime)>,
    open: Vec<(u64, Vec<Change>)>,
    pub epoch: u32,
    next_xid: u64,
    /// Connections can be made.
    pub is_up: bool,
    /// Reads succeed.
    pub is_readable: bool,
    /// Statements that write succeed.
    pub takes_reports: bool,
}

impl Seen {
    pub fn rows(&self) -> &Rc<Tables> {
        &self.cursor.tables
    }

    pub fn read_answer(&self) -> ReadAnswer {
        let taken_at = self.taken_at;
        match &self.answer {
            Answer::Unchanged => ReadAnswer::Unchanged { taken_at },
            Answer::Changed(rows) => ReadAnswer::Changed(rows.clone()),
            Answer::Everything { .. } => {
                ReadAnswer::Everything(Box::new(self.rows().snapshot(taken_at)))
            }
        }
    }
}

impl Database {
    pub fn new(tables: Tables, now: SystemTime) -> Self {
        Self {
            versions: vec![Version { at: now, tables: Rc::new(tables), marks: 0 }],
            marks: Vec::new(),
            open: Vec::new(),
            epoch: 0,
            next_xid: 700,
            is_up: true,
            is_readable: true,
            takes_reports: true,
        }
    }

    pub fn latest(&self) -> &Version {
        self.versions.last().unwrap()
    }

    /// What the tables held at a moment.
    pub fn version_at(&self, at: SystemTime) -> Option<&Version> {
        self.versions.iter().rev().find(|version| version.at <= at)
    }

    /// Begins a transaction, which others may overtake.
    pub fn begin(&mut self, bytes: &mut Bytes<'_>, now: SystemTime) {
        let changes = (0..1 + bytes.below(3)).map(|_| Change::draw(bytes, now)).collect();
        self.next_xid += 1;
        self.open.push((self.next_xid, changes));
    }

    /// Ends one of the transactions. Says whether anything was committed.
    pub fn end(&mut self, bytes: &mut Bytes<'_>, now: SystemTime) -> bool {
        if self.open.is_empty() || !self.is_up {
            return false;
        }
        let (xid, changes) = self.open.remove(bytes.below(self.open.len()));
        if bytes.one_in(8) {
            return false;
        }
        self.commit(xid, &changes, now);
        true
    }

    /// Commits one change at once.
    pub fn write(&mut self, bytes: &mut Bytes<'_>, now: SystemTime) {
        let change = Change::draw(bytes, now);
        self.next_xid += 1;
        self.commit(self.next_xid, &[change], now);
    }

    /// Commits a change that makes the gateway's row usable again.
    pub fn mend_gateway(&mut self, change: &Change, now: SystemTime) {
        self.next_xid += 1;
        self.commit(self.next_xid, std::slice::from_ref(change), now);
    }

    fn commit(&mut self, xid: u64, changes: &[Change], now: SystemTime) {
        let mut tables = Tables::clone(&self.latest().tables);
        let (mut devices, mut all) = (BTreeSet::new(), false);
        for change in changes {
            tables.make(change);
            match change.devices() {
                Some(named) => devices.extend(named),
                None => all = true,
            }
        }
        if !devices.is_empty() {
            let ids = Some(devices.into_iter().collect());
            self.marks.push((Mark { xid, kind: "device".into(), ids }, now));
        }
        if all {
            self.marks.push((Mark { xid, kind: "all".into(), ids: None }, now));
        }
        self.add(Rc::new(tables), now);
    }

    fn add(&mut self, tables: Rc<Tables>, at: SystemTime) {
        self.versions.push(Version { at, tables, marks: self.marks.len() });
    }

    /// A failover to a standby, or a restored backup, without the last commits.
    pub fn lose(&mut self, commits: usize, now: SystemTime) {
        let kept = self.versions.len().saturating_sub(1 + commits);
        let Version { tables, marks, .. } = self.versions[kept].clone();
        self.marks.truncate(marks);
        self.open.clear();
        self.epoch += 1;
        self.add(tables, now);
    }

    /// What a read sees that a reader with this cursor makes now.
    pub fn read(&self, kind: ReadKind, cursor: Option<&Cursor>, now: SystemTime) -> Seen {
        let tables = Rc::clone(&self.latest().tables);
        let since = cursor.filter(|cursor| cursor.epoch == self.epoch);
        let marks = self.marks[since.map_or(0, |cursor| cursor.marks)..].iter();
        let marks = marks.map(|(mark, _)| mark.clone()).collect();
        let changed = since
            .filter(|_| kind != ReadKind::Everything)
            .and_then(|cursor| tables.changed_since(&cursor.tables, now));
        let answer = match changed {
            None => Answer::Everything { epoch: self.epoch, marks },
            Some(rows) if rows == super::rows::no_changes(now) && marks.is_empty() => {
                Answer::Unchanged
            }
            Some(rows) => Answer::Changed(gatepost::model::ChangedRows { marks, ..rows }),
        };
        let cursor = Cursor { epoch: self.epoch, tables, marks: self.marks.len() };
        Seen { cursor, taken_at: now, answer }
    }

    /// What becomes of devices that no row of a peer names. Here only such a row says that one is revoked or
    /// barred.
    pub fn standings(
        &self,
        asked: &BTreeMap<PublicKey, AskedDevice>,
        now: SystemTime,
    ) -> DeviceStandings {
        let tables = &self.latest().tables;
        let rows = &tables.peers;
        let is_revoked = |row: &PeerRow| {
            let by_status = row.bars.without(BarredBy::DEVICE_STATUS) != row.bars;
            by_status || row.revoked_at.is_some_and(|at| at <= now)
        };
        let is_barred = |row: &PeerRow| row.bars.without(BarredBy::DELETIONS) != row.bars;
        let devices = |are: &dyn Fn(&PeerRow) -> bool| -> BTreeSet<_> {
            rows.values().filter(|row| are(row)).map(|row| row.device_id).collect()
        };
        let (revoked, barred) = (devices(&is_revoked), devices(&is_barred));
        let row = |id: &DeviceId| {
            // Each device has a user of its own, of the same number.
            let user_id = UserId(id.0);
            let group_ids = tables.memberships.get(&user_id).cloned().unwrap_or_default();
            let (revoked, barred) = (revoked.contains(id), barred.contains(id));
            (*id, DeviceRow { user_id, group_ids, revoked, barred })
        };
        let rows = DeviceRows {
            settings: tables.settings.clone(),
            devices: asked.values().map(|it| row(&it.device_id)).collect(),
            policies: tables.policies.values().cloned().collect(),
            taken_at: now,
        };
        DeviceStandings::new(&tables.gateway.name, asked, &[rows])
    }

    /// Whose withdrawals it has lost: a mark is gone, and no later one is about the same device.
    pub fn lost(&self, withdrawals: &BTreeMap<PublicKey, Withdrawal>) -> BTreeSet<PublicKey> {
        let is_lost = |it: &Withdrawal| {
            let device = it.device_id.0;
            let names = |mark: &Mark| mark.ids.as_ref().is_some_and(|ids| ids.contains(&device));
            let known = |id: &gatepost::model::MarkId| {
                let is_same = |mark: &Mark| {
                    mark.xid == id.xid
                        && mark.kind == id.kind
                        && id
                            .id
                            .is_none_or(|id| mark.ids.as_ref().is_some_and(|ids| ids.contains(&id)))
                };
                self.marks.iter().any(|(mark, _)| is_same(mark))
            };
            it.marks.iter().any(|mark| !known(mark))
                && !self.marks.iter().any(|(mark, at)| *at > it.read_at && names(mark))
        };
        withdrawals.iter().filter(|(_, it)| is_lost(it)).map(|(key, _)| *key).collect()
    }
}
