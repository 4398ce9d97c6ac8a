//! The list of peers, as the kernel counts them at the time of the question, or shortly before: questions
//! cause no more readings than the agent affords.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::reconcile::view::status::{PeerStatus, Timestamp};
use crate::reconcile::view::{Listed, View, peers_in_words};
use crate::store::Store;

/// A kernel that is being changed, or does not answer, delays the list no longer; its peers then say
/// when they were read.
const READ_WITHIN: Duration = Duration::from_secs(2);

/// The questions that wait for a reading.
#[derive(Debug, Default)]
pub(super) struct AskedPeers {
    pending: Vec<Asked>,
}

#[derive(Debug)]
struct Asked {
    /// The user whose peers are wanted; `None`: all.
    user: Option<String>,
    answer: oneshot::Sender<Vec<PeerStatus>>,
    /// The time of the last reading when it was asked for.
    former: Option<Timestamp>,
    until: Instant,
}

impl AskedPeers {
    /// An operator waits for the list of peers, or of those of a user. The last reading was `former`.
    pub fn push(
        &mut self,
        user: Option<String>,
        answer: oneshot::Sender<Vec<PeerStatus>>,
        former: Option<Timestamp>,
    ) {
        self.pending.push(Asked { user, answer, former, until: Instant::now() + READ_WITHIN });
    }

    /// Answers the questions for which the kernel was read, or need not be, or which have waited
    /// long enough. `store`: where to ask for words; `None`: it does not answer.
    pub fn answer(&mut self, view: &View<'_>, store: Option<&Store>) {
        let now = Instant::now();
        let rests = view.rests(now.into_std());
        let is_ready = |it: &mut Asked| rests || it.until <= now || view.read_at() != it.former;
        for asked in self.pending.extract_if(.., is_ready) {
            let (mut peers, store) = (view.peers(), store.cloned());
            let listed = match &asked.user {
                Some(user) => {
                    let user = user.to_lowercase();
                    peers.retain(|peer| peer.user.to_lowercase() == user);
                    Listed::OfUser
                }
                None => Listed::All,
            };
            tokio::spawn(async move {
                let peers = match store {
                    Some(store) => peers_in_words(peers, listed, &store).await,
                    None => peers,
                };
                // The asker may be gone.
                drop(asked.answer.send(peers));
            });
        }
    }

    /// When a question has waited long enough.
    pub fn due(&self) -> Option<Instant> {
        self.pending.iter().map(|asked| asked.until).min()
    }
}
