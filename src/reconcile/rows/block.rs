//! The host's block list beside the rows.

use std::sync::Arc;

use super::Rows;
use crate::model::{
    Block, BlockChange, BlockList, Departed, DesiredState, ObservedState, Touched, Whom,
};

impl Rows {
    /// The rows whose peers a block concerns.
    pub fn concerned_by(&self, whom: &Whom, block: &Block) -> Vec<Departed> {
        let alone = BlockList::from_iter([(*whom, block.clone())]);
        let rows = self.desired.iter().flat_map(DesiredState::rows);
        rows.filter(|(row, _)| alone.bars(row)).map(|(row, _)| Departed::from(row)).collect()
    }

    /// From now on this is the host's block list. No row, and no row that is missing, delays that.
    pub fn block(&mut self, list: Arc<BlockList>) -> (Vec<BlockChange>, Option<Touched>) {
        let former = std::mem::replace(&mut self.block_list, Arc::clone(&list));
        self.blocks_are_planned = false;
        let touched = self.change(|desired| desired.block(Arc::clone(&list)));
        let change = |lifted, (whom, block): (&Whom, &Block)| {
            let peers = self.concerned_by(whom, block);
            BlockChange { lifted, whom: *whom, block: block.clone(), peers }
        };
        let set = list.without(&former).map(|it| change(false, it));
        let lifted = former.without(&list).map(|it| change(true, it));
        (set.chain(lifted).collect(), touched)
    }

    /// A plan was made, so that the kernel was known, and no former plan is being applied.
    pub const fn planned(&mut self) {
        self.blocks_are_planned = true;
    }

    /// Whether no blocked peer is in the kernel. One that is not there yet may be on its way, by a plan
    /// made before the block.
    pub fn blocks_are_in_force(&self, observed: &ObservedState) -> bool {
        (self.blocks_are_planned || self.block_list.is_empty()) && self.blocked(observed).is_empty()
    }
}
