//! What rows ask for, built from the model's tables: the product's loop has no part in it, and its pure
//! functions must agree with what is worked out without them.

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use gatepost::model::{BlockList, DesiredState, ObservedState, PeerRow, PublicKey};
use gatepost::plan::{Scope, plan};

use super::plain::{Plain, is_as};
use super::reach::Reach;
use super::tables::{Tables, local};

#[derive(Debug)]
pub struct Wanted {
    pub desired: DesiredState,
    pub reach: Reach,
}

struct Entry {
    key: Key,
    wanted: Rc<Wanted>,
}

/// What a state is built from.
#[derive(Clone)]
struct Key {
    tables: Rc<Tables>,
    blocks: Arc<BlockList>,
    /// Which rows' scheduled revocation has come.
    expired: u64,
    kept_out: BTreeSet<PublicKey>,
}

impl Key {
    fn of(tables: &Rc<Tables>, blocks: &Arc<BlockList>, at: SystemTime) -> Self {
        let has_come = |row: &PeerRow| row.revoked_at.is_some_and(|revoked| revoked <= at);
        let rows = tables.peers.values().enumerate();
        let expired = rows.fold(0, |bits, (bit, row)| bits | u64::from(has_come(row)) << bit);
        let (tables, blocks) = (Rc::clone(tables), Arc::clone(blocks));
        Self { tables, blocks, expired, kept_out: BTreeSet::new() }
    }

    fn is(&self, other: &Self) -> bool {
        self.expired == other.expired
            && Rc::ptr_eq(&self.tables, &other.tables)
            && Arc::ptr_eq(&self.blocks, &other.blocks)
            && self.kept_out == other.kept_out
    }
}

/// The last few that were asked for.
#[derive(Default)]
pub struct Cache(VecDeque<Entry>);

/// Builds a state of these tables, with a gateway's row that can be used.
pub fn desired(tables: &Tables, blocks: &Arc<BlockList>, at: SystemTime) -> DesiredState {
    let rows = tables.buildable().snapshot(at);
    DesiredState::build_without(blocks.clone(), local(), rows).unwrap()
}

/// Whether a kernel is as a desired state asks for.
pub fn meets(state: &ObservedState, desired: &DesiredState) -> bool {
    let is_met = plan(desired, state, &Scope::Everything).is_ok_and(|left| left.is_empty());
    assert!(!is_met || is_as(state, desired), "an empty plan, and the kernel is not as desired");
    is_met
}

impl Cache {
    /// What these tables ask for at a moment, with a gateway's row that can be used.
    pub fn of(
        &mut self,
        tables: &Rc<Tables>,
        blocks: &Arc<BlockList>,
        at: SystemTime,
    ) -> Rc<Wanted> {
        self.find(Key::of(tables, blocks, at), at)
    }

    /// What they allow while these peers stay out.
    pub fn around(
        &mut self,
        tables: &Rc<Tables>,
        blocks: &Arc<BlockList>,
        at: SystemTime,
        kept_out: BTreeSet<PublicKey>,
    ) -> Reach {
        let key = Key { kept_out, ..Key::of(tables, blocks, at) };
        self.find(key, at).reach.clone()
    }

    fn find(&mut self, key: Key, at: SystemTime) -> Rc<Wanted> {
        if let Some(entry) = self.0.iter().find(|entry| entry.key.is(&key)) {
            return Rc::clone(&entry.wanted);
        }
        let mut desired = desired(&key.tables, &key.blocks, at);
        desired.keep_out(key.kept_out.clone());
        let reach = Reach::of_rows(&desired);
        let plain = Plain::new(&key.tables, &key.blocks, at);
        reach.must_lie_within(&plain);
        if key.kept_out.is_empty() {
            reach.must_contain(&plain);
        }
        let wanted = Rc::new(Wanted { desired, reach });
        if self.0.len() > 12 {
            self.0.pop_front();
        }
        self.0.push_back(Entry { key, wanted: Rc::clone(&wanted) });
        wanted
    }
}

impl Wanted {
    /// Whether a kernel is as wanted.
    pub fn is_met_by(&self, state: &ObservedState) -> bool {
        meets(state, &self.desired)
    }
}
