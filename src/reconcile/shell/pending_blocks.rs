//! The blocks that operators wait for.

use tokio::sync::oneshot;

use crate::reconcile::view::WhoError;
use crate::reconcile::view::status::BlockAnswer;

/// Where what became of a block is awaited.
pub(super) type BlockReply = oneshot::Sender<Result<BlockAnswer, WhoError>>;

/// The blocks that are not in force yet, or not on the disk.
#[derive(Debug, Default)]
pub(super) struct PendingBlocks {
    pending: Vec<PendingBlock>,
    /// The number of the last list that was to be written.
    last_number: u64,
}

#[derive(Debug)]
struct PendingBlock {
    number: u64,
    answer: BlockAnswer,
    /// The list is on the disk, or will not be.
    saved: bool,
    reply: BlockReply,
}

impl PendingBlocks {
    /// The number of the next list that is to be written.
    pub const fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// An operator waits for what the list of this number blocks.
    pub fn push(&mut self, number: u64, answer: BlockAnswer, reply: BlockReply) {
        self.pending.push(PendingBlock { number, answer, saved: false, reply });
    }

    /// The list of this number is on the disk, or `error` says why it will not be.
    pub fn saved(&mut self, number: u64, error: Option<String>) {
        let pending = self.pending.iter_mut().find(|pending| pending.number == number);
        if let Some(pending) = pending {
            pending.saved = true;
            pending.answer.file = error;
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes those that no longer wait for the disk.
    pub fn take_saved(&mut self) -> impl Iterator<Item = (BlockAnswer, BlockReply)> {
        let saved = self.pending.extract_if(.., |pending| pending.saved);
        saved.map(|PendingBlock { answer, reply, .. }| (answer, reply))
    }
}
