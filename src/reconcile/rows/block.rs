//! The host's block list beside the rows.

use std::sync::Arc;

use super::Rows;
use crate::model::{Block, BlockList, Departed, DesiredState, Touched, Whom};

impl Rows {
    pub fn block_list(&self) -> Arc<BlockList> {
        Arc::clone(&self.block_list)
    }

    /// The rows whose peers a block concerns.
    pub fn concerned_by(&self, whom: &Whom, block: &Block) -> Vec<Departed> {
        let alone = BlockList::from_iter([(*whom, block.clone())]);
        let rows = self.desired.iter().flat_map(DesiredState::rows);
        rows.filter(|(row, _)| alone.bars(row)).map(|(row, _)| Departed::from(row)).collect()
    }

    /// From now on this is the host's block list.
    pub fn block(&mut self, list: Arc<BlockList>) -> Option<Touched> {
        self.block_list = Arc::clone(&list);
        self.change(|desired| desired.block(Arc::clone(&list)))
    }
}
