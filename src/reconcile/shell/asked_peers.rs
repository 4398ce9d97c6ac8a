//! The list of peers, as the kernel counts them at the time of the question, or shortly before: questions
//! cause no more readings than the agent affords.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::state::Shell;
use crate::dataplane::Dataplane;
use crate::reconcile::event::Event;
use crate::reconcile::view::status::{PeerStatus, Timestamp};

/// A kernel that is being changed, or does not answer, delays the list no longer; its peers then say
/// when they were read.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Somebody waits for the list.
pub(super) struct AskedPeers {
    answer: oneshot::Sender<Vec<PeerStatus>>,
    /// The time of the last reading when it was asked for.
    former: Option<Timestamp>,
    until: Instant,
}

impl<D: Dataplane + 'static> Shell<D> {
    pub(super) fn ask_peers(&mut self, answer: oneshot::Sender<Vec<PeerStatus>>) {
        let former = self.machine.view().read_at();
        self.asked_peers.push(AskedPeers { answer, former, until: Instant::now() + READ_WITHIN });
        self.handle(Event::PeersAsked);
    }

    /// Answers those for whom the kernel was read, or need not be, or who have waited long enough.
    pub(super) fn answer_peers(&mut self) {
        let (view, now) = (self.machine.view(), Instant::now());
        let rests = view.rests(now.into_std());
        let is_ready =
            |it: &mut AskedPeers| rests || it.until <= now || view.read_at() != it.former;
        for asked in self.asked_peers.extract_if(.., is_ready) {
            // The asker may be gone.
            drop(asked.answer.send(view.peers()));
        }
    }

    /// When somebody has waited long enough.
    pub(super) fn peers_due(&self) -> Option<Instant> {
        self.asked_peers.iter().map(|asked| asked.until).min()
    }
}
