//! What outlives the agent: the withdrawals that it remembers, and the last good rows.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::SystemTime;

use gatepost::model::{ChangedRows, KeyText, PeerRow, PublicKey};
use gatepost::reconcile::{Keep, Withdrawals};

use super::database::{Answer, Seen};
use super::tables::Tables;

#[derive(Debug, Default)]
pub struct Disk {
    pub withdrawals: Withdrawals,
    pub last_good: Option<(Rc<Tables>, SystemTime)>,
}

#[derive(Debug, Clone)]
enum Read {
    Everything(Rc<Tables>, SystemTime),
    Changed(ChangedRows),
}

impl Disk {
    /// Writes what does not concern these peers.
    fn keep_around(&mut self, read: &Read, held: &BTreeSet<PublicKey>) {
        let Some((old, at)) = &mut self.last_good else { return };
        let is_held = |row: &&PeerRow| match row.public_key {
            KeyText::Key(key) => held.contains(&key),
            KeyText::Bad { .. } => false,
        };
        let mut new = match read {
            Read::Everything(tables, _) => Tables::clone(tables),
            Read::Changed(rows) => {
                let mut tables = Tables::clone(old);
                tables.apply(rows);
                tables
            }
        };
        let rows = old.peers.values().chain(new.peers.values());
        let devices: BTreeSet<_> = rows.filter(is_held).map(|row| row.device_id).collect();
        let former: Vec<_> =
            new.peers.extract_if(.., |_, it| devices.contains(&it.device_id)).collect();
        for row in old.peers.values().filter(|row| devices.contains(&row.device_id)) {
            let mut row = row.clone();
            if let Some((_, new)) = former.iter().find(|(id, _)| *id == row.id) {
                row.allowed_ips = row
                    .allowed_ips
                    .iter()
                    .filter(|it| new.allowed_ips.contains(it))
                    .copied()
                    .collect();
            }
            new.peers.insert(row.id, row);
        }
        new.gateway.vpn_cidr = old.gateway.vpn_cidr;
        *at = match read {
            Read::Everything(_, at) => *at,
            Read::Changed(rows) => rows.taken_at,
        };
        *old = Rc::new(new);
    }
}

/// Rows of one run of the agent that are not known to be good.
#[derive(Debug, Default)]
pub struct Keeper {
    new: Vec<Read>,
    held: Vec<Read>,
}

impl Keeper {
    pub fn push(&mut self, seen: &Seen) {
        match &seen.answer {
            Answer::Unchanged => {}
            Answer::Changed(rows) => self.new.push(Read::Changed(rows.clone())),
            Answer::Everything { .. } => {
                self.new = vec![Read::Everything(Rc::clone(seen.rows()), seen.taken_at)];
            }
        }
    }

    /// Writes what this verdict makes good. `held`: the peers whose removal waits.
    pub fn keep(&mut self, keep: Keep, held: &BTreeSet<PublicKey>, disk: &mut Disk) {
        let whole = matches!(self.new.first(), Some(Read::Everything(..)));
        let these = if keep == Keep::These && !whole { self.new.clone() } else { Vec::new() };
        if keep == Keep::Later || keep == Keep::These && whole {
            self.new.iter().for_each(|read| disk.keep_around(read, held));
        }
        if whole {
            self.held.clear();
        }
        self.held.append(&mut self.new);
        let good = if keep == Keep::All { std::mem::take(&mut self.held) } else { these };
        for read in good {
            match (read, &mut disk.last_good) {
                (Read::Everything(tables, at), good) => *good = Some((tables, at)),
                (Read::Changed(rows), Some((tables, at))) => {
                    let mut changed = Tables::clone(tables);
                    changed.apply(&rows);
                    (*tables, *at) = (Rc::new(changed), rows.taken_at);
                }
                (Read::Changed(_), None) => {}
            }
        }
    }
}
