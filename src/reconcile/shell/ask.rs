//! The operators' requests to the loop, and its answers.

use std::time::SystemTime;

use tokio::sync::oneshot;

use super::pending_blocks::BlockReply;
use super::state::Shell;
use crate::dataplane::Dataplane;
use crate::model::{Denial, Whom};
use crate::reconcile::clock;
use crate::reconcile::event::Event;
use crate::reconcile::options::Reloaded;
use crate::reconcile::view::status::{DeniedPacket, Explanation, PeerStatus};
use crate::reconcile::view::{ExplainError, ResyncError, WhoError};

/// A question of an operator. A dropped answer means that the loop has ended.
#[derive(Debug)]
pub enum Ask {
    /// Every peer, by the id of its row, after the kernel was read once more; of `user` alone, if one is
    /// named.
    Peers { user: Option<String>, answer: oneshot::Sender<Vec<PeerStatus>> },
    /// The verdict for what `who` sends to `destination`.
    Explain {
        who: String,
        destination: String,
        answer: oneshot::Sender<Result<Explanation, ExplainError>>,
    },
    /// Whom `who` names, and the name that has.
    Whom { who: String, answer: oneshot::Sender<Result<(Whom, Box<str>), WhoError>> },
    /// The denied packets; the answer names their senders and the deciding policies.
    Denied { denials: Vec<Denial>, answer: oneshot::Sender<Vec<DeniedPacket>> },
    /// Follow these options from now on.
    Reload(Box<Reloaded>),
    /// Compare everything again; answered when that has ended.
    Resync(oneshot::Sender<Result<(), ResyncError>>),
    /// Cut off this user, device, key or address, whatever rows say; answered when no packet passes.
    Block { who: String, answer: BlockReply },
    /// Lift a block.
    Unblock { who: String, answer: BlockReply },
    /// Let the removals go ahead that are held back by rows read until this time of the database, and
    /// let in the peers that are kept out since `let_in_until` or earlier.
    Confirm {
        until: SystemTime,
        let_in_until: Option<SystemTime>,
        answer: oneshot::Sender<Result<(), NothingHeldBack>>,
    },
}

/// There is no removal to confirm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no removal is held back")]
pub struct NothingHeldBack;

impl<D: Dataplane + 'static> Shell<D> {
    pub(super) fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Peers { user, answer } => {
                self.asked_peers.push(user, answer, self.machine.view().read_at());
                self.handle(Event::PeersAsked);
            }
            Ask::Explain { who, destination, answer } => {
                let answers = self.machine.view().explain(&who, &destination);
                match answers {
                    Ok(answers) => {
                        let (store, dataplane) = (self.store.clone(), self.dataplane.clone());
                        let is_connected = self.in_use.is_some();
                        tokio::spawn(async move {
                            let answers = match is_connected {
                                true => answers.in_words(&store).await,
                                false => answers,
                            };
                            drop(answer.send(Ok(answers.counted(&dataplane).await)));
                        });
                    }
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
            Ask::Whom { who, answer } => drop(answer.send(self.machine.view().whom(&who))),
            Ask::Denied { denials, answer } => {
                // The asker may have ended.
                drop(answer.send(self.machine.view().denied(&denials, clock::now().wall)));
            }
            Ask::Block { who, answer } => self.block(&who, answer),
            Ask::Unblock { who, answer } => self.unblock(&who, answer),
            Ask::Reload(options) => self.handle(Event::Reloaded(options)),
            Ask::Resync(answer) => {
                self.read_blocks_again();
                self.handle(Event::Resync);
                self.resyncs.push((self.machine.view().resyncs_asked(), answer));
            }
            Ask::Confirm { until, let_in_until, answer } => {
                let view = self.machine.view();
                let held_back =
                    view.held_back().is_some() || let_in_until.is_some() && view.keeps_out();
                drop(view);
                if held_back {
                    self.handle(Event::ConfirmRemovals { until, let_in_until });
                }
                let _ = answer.send(if held_back { Ok(()) } else { Err(NothingHeldBack) });
            }
        }
    }

    /// Answers the comparisons that have ended.
    pub(super) fn answer_resyncs(&mut self) {
        for (number, answer) in std::mem::take(&mut self.resyncs) {
            let end = self.machine.view().resync_end(number);
            match end {
                Some(end) => drop(answer.send(end)),
                None => self.resyncs.push((number, answer)),
            }
        }
    }
}
