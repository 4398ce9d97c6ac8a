//! What outlives the agent: the withdrawals that it remembers, and the last good rows.

use std::rc::Rc;
use std::time::SystemTime;

use gatepost::model::ChangedRows;
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

    /// Writes what this verdict makes good.
    pub fn keep(&mut self, keep: Keep, disk: &mut Disk) {
        let whole = matches!(self.new.first(), Some(Read::Everything(..)));
        let these = if keep == Keep::These && !whole { self.new.clone() } else { Vec::new() };
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
