//! The host's block list beside the rows.

use std::sync::Arc;

use super::{Change, Rows};
use crate::model::{Block, BlockChange, BlockList, Departed, DesiredState, ObservedState, Whom};
use crate::reconcile::event::Keep;
use crate::reconcile::note::Note;

impl Rows {
    /// The rows whose peers a block concerns.
    pub fn concerned_by(&self, whom: &Whom, block: &Block) -> Vec<Departed> {
        let alone = BlockList::from_iter([(*whom, block.clone())]);
        let rows = self.desired.iter().flat_map(DesiredState::rows);
        rows.filter(|(row, _)| alone.bars(row)).map(|(row, _)| Departed::from(row)).collect()
    }

    /// From now on this is the host's block list. No row, and no row that is missing, delays that.
    pub fn block(&mut self, list: Arc<BlockList>) -> Change {
        let former = std::mem::replace(&mut self.block_list, Arc::clone(&list));
        self.blocks_are_planned = false;
        let touched = self.change(|desired| desired.block(Arc::clone(&list)));
        let change = |lifted, (whom, block): (&Whom, &Block)| {
            let peers = self.concerned_by(whom, block);
            BlockChange { lifted, whom: *whom, block: block.clone(), peers }
        };
        let set = list.without(&former).map(|it| change(false, it));
        let lifted = former.without(&list).map(|it| change(true, it));
        let notes = set.chain(lifted).map(Note::Block).collect();
        Change { notes, ..Change::of_everything(None, touched) }
    }

    /// A plan was made, so that the kernel was known, and no former plan is being applied. `keep`: what became
    /// of the rows by it.
    pub fn planned(&mut self, keep: Option<Keep>) {
        self.blocks_are_planned = true;
        if keep == Some(Keep::All) {
            self.are_kept();
        }
    }

    /// Whether no blocked peer is in the kernel. One that is not there yet may be on its way, by a plan
    /// made before the block.
    pub fn blocks_are_in_force(&self, observed: &ObservedState) -> bool {
        (self.blocks_are_planned || self.block_list.is_empty()) && self.blocked(observed).is_empty()
    }
}
