//! The host's block list changes.

use std::sync::Arc;

use super::Machine;
use crate::model::BlockList;
use crate::reconcile::audit;
use crate::reconcile::clock::Now;
use crate::reconcile::note::Note;
use crate::reconcile::notices::Trouble;
use crate::store::AuditEvent;

impl Machine {
    /// Follows the list from now on. No row, and no row that is missing, delays that.
    pub(super) fn block(&mut self, list: Arc<BlockList>, now: Now) {
        let former = self.rows.block_list();
        let touched = self.rows.block(Arc::clone(&list));
        for (whom, block) in list.without(&former) {
            let peers = self.rows.concerned_by(whom, block);
            self.outbox.audit(audit::blocked(AuditEvent::PeerBlocked, whom, block, &peers));
            let (name, peers) = (block.name.to_string(), peers.len());
            self.notices.say(Note::Blocked { whom: *whom, name, peers });
        }
        for (whom, block) in former.without(&list) {
            let peers = self.rows.concerned_by(whom, block);
            self.outbox.audit(audit::blocked(AuditEvent::PeerUnblocked, whom, block, &peers));
            let (name, peers) = (block.name.to_string(), peers.len());
            self.notices.say(Note::Unblocked { whom: *whom, name, peers });
        }
        self.blocks_unknown(now);
        self.touch(touched, now.instant);
        self.compare_on_purpose(now);
    }

    /// Says that earlier blocks are not known, if they are not.
    pub(super) fn blocks_unknown(&mut self, now: Now) {
        match self.rows.block_list().why_unreadable() {
            Some(why) => {
                let note = Note::BlocksUnknown { error: why.to_owned() };
                self.complain(Trouble::Blocks, note, now);
            }
            None => self.notices.forget(Trouble::Blocks),
        }
    }
}
