//! What operators ask of the loop, and its answers.

use tokio::sync::oneshot;

use super::event::Event;
use super::shell::{Host, Shell};
use super::status::{Explanation, PeerStatus};

/// What an operator asks of the loop. A dropped answer means that the loop has ended.
#[derive(Debug)]
pub enum Ask {
    /// Every peer, by its id.
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    /// The verdict for what `who` sends to `destination`.
    Explain {
        who: String,
        destination: String,
        answer: oneshot::Sender<Result<Explanation, String>>,
    },
    /// Compare everything anew; answered when that has ended, with its error if it failed.
    Resync(oneshot::Sender<Result<(), String>>),
    /// Let the removal that the guard holds back go ahead; the error says if there is none.
    Confirm(oneshot::Sender<Result<(), String>>),
}

impl<D: Host> Shell<D> {
    pub(super) fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Peers(answer) => drop(answer.send(self.machine.peers())),
            Ask::Explain { who, destination, answer } => {
                match self.machine.explain(&who, &destination) {
                    Ok(answers) => {
                        let dataplane = self.dataplane.clone();
                        tokio::spawn(async move {
                            drop(answer.send(Ok(answers.counted(&dataplane).await)));
                        });
                    }
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
            Ask::Resync(answer) => {
                self.tell(Event::Resync);
                self.resyncs.push((self.machine.resyncs_asked(), answer));
            }
            Ask::Confirm(answer) => {
                let held = self.machine.held().is_some();
                if held {
                    self.tell(Event::ConfirmRemovals);
                }
                drop(answer.send(if held {
                    Ok(())
                } else {
                    Err("no removal is held back".into())
                }));
            }
        }
    }

    /// Tells those who asked for a resync how it ended.
    pub(super) fn answer_resyncs(&mut self) {
        for (number, answer) in std::mem::take(&mut self.resyncs) {
            match self.machine.resync_end(number) {
                Some(end) => drop(answer.send(end)),
                None => self.resyncs.push((number, answer)),
            }
        }
    }
}
