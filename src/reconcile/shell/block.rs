//! Operators block and unblock: the kernel follows at once, and the list goes to the disk beside it.

use std::sync::Arc;

use super::block_file::BlockFileError;
use super::pending_blocks::BlockReply;
use super::state::{Inner, Shell};
use crate::causes::causes;
use crate::dataplane::Dataplane;
use crate::model::{BlockList, Whom};
use crate::reconcile::clock;
use crate::reconcile::event::Event;
use crate::reconcile::view::status::{BlockAnswer, BlockStatus};

impl<D: Dataplane + 'static> Shell<D> {
    pub(super) fn block(&mut self, who: &str, reply: BlockReply) {
        let found = self.machine.view().block_list_with(who, clock::now().wall);
        match found {
            Err(error) => drop(reply.send(Err(error))),
            Ok((whom, list)) => self.change_blocks(list, whom, reply),
        }
    }

    pub(super) fn unblock(&mut self, who: &str, reply: BlockReply) {
        let found = self.machine.view().block_list_without(who);
        match found {
            Err(error) => drop(reply.send(Err(error))),
            Ok((whom, list)) => self.change_blocks(list, whom, reply),
        }
    }

    fn change_blocks(&mut self, list: BlockList, whom: Whom, reply: BlockReply) {
        let former = self.machine.view().block_list().clone();
        let Some(block) = list.get(&whom).or_else(|| former.get(&whom)) else { return };
        let answer = BlockAnswer {
            block: BlockStatus::from((&whom, block)),
            peers: self.machine.view().concerned_by(&whom, block),
            kernel: None,
            file: None,
        };
        let list = Arc::new(list);
        self.handle(Event::Blocks(Arc::clone(&list)));
        let number = self.save_blocks(list);
        self.blocks.push(number, answer, reply);
    }

    /// Begins to put the list on the disk. Returns the number by which [`Self::blocks_saved`] names it.
    fn save_blocks(&mut self, list: Arc<BlockList>) -> u64 {
        let number = self.blocks.next_number();
        self.block_file.set(list);
        let (file, events) = (self.block_file.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            // The loop may have ended meanwhile.
            drop(events.send(Inner::BlocksSaved(number, file.save())));
        });
        number
    }

    /// The list is on the disk, or will not be.
    pub(super) fn blocks_saved(&mut self, number: u64, saved: Result<(), BlockFileError>) {
        if let Err(error) = &saved {
            tracing::warn!(%error, "a change of the block list would not outlive the agent: {error}");
        }
        self.blocks.saved(number, saved.err().map(|error| causes(&error)));
    }

    /// Answers the operators whose blocks are in force, or will not be as things stand.
    pub(super) fn answer_blocks(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        let in_force = self.machine.view().blocks_are_in_force();
        let stuck = self.machine.view().stuck();
        if in_force == Some(true) || stuck.is_some() {
            for (mut answer, reply) in self.blocks.take_saved() {
                answer.kernel = stuck.clone().filter(|_| in_force != Some(true));
                // The client may have gone.
                drop(reply.send(Ok(answer)));
            }
        }
    }

    /// Reads the list again, if it could not be read before. Blocks made meanwhile are added on disk, too.
    pub(super) fn read_blocks_again(&mut self) {
        let former = self.machine.view().block_list().clone();
        if former.why_unreadable().is_none() {
            return;
        }
        let mut list = self.block_file.load_or_deny();
        former.iter().for_each(|(whom, block)| list.add(*whom, block.clone()));
        let list = Arc::new(list);
        self.handle(Event::Blocks(Arc::clone(&list)));
        if list.why_unreadable().is_none() && !former.is_empty() {
            self.save_blocks(list);
        }
    }
}
