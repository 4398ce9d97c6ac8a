//! The packets that the firewall has judged and for which the engine has not yet looked up a peer.
//!
//! nftables judges a packet for the peer that has its destination. A userspace device looks that peer up
//! later, when the packet has passed the queue of the TUN device and the engine's own. So what a peer
//! lost belongs to no peer until every packet has passed that may have been judged before: it is dropped.
//! Only then may another peer have the prefix.
//!
//! Kernel WireGuard needs no such time. Its link has no queue (`IFF_NO_QUEUE`), and `wg_xmit` looks up
//! the peer in the softirq in which nftables judged the packet, which stays with that peer. Who takes a
//! prefix from a peer there removes a peer, and `wg_peer_remove` waits for these softirqs to end
//! (`synchronize_net`). A qdisc that another program gives a link is such a queue, on both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use gotatun::packet::{Ip, Packet};
use tokio::sync::Notify;
use tokio::time::error::Elapsed;

use super::in_flight::{await_in_flight, copy_tracked, is_free};

/// More packets than wait in a link's own queue (500) and in a usual qdisc before it (10,240).
const QUEUED: usize = 16 * 1024;
/// A packet of no IP version, of the least length that is passed on: the engine looks up no peer for it,
/// and drops it.
const MARKER: [u8; 20] = [0; 20];

/// Those of one device. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Outgoing(Arc<Shared>);

/// A question that packets are being read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Question(u64);

#[derive(Default)]
struct Shared {
    asked: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    stage: Stage,
}

/// Where the packets are that waited when it was last asked.
#[derive(Default)]
enum Stage {
    #[default]
    Passed,
    /// In the queue of the link, until it is found empty or so many packets have been read.
    Queued { left: usize },
    /// Before the marker, which is this buffer's second user until the engine drops it.
    Read(BytesMut),
}

impl Outgoing {
    /// Asks when the packets that wait now have passed.
    pub fn ask(&self) {
        let mut state = self.lock();
        state.last += 1;
        state.stage = Stage::Queued { left: QUEUED };
        drop(state);
        self.0.asked.notify_one();
    }

    /// Waits until it is asked.
    pub async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// The question that the next packets are read for: the question must come before the answer.
    pub fn question(&self) -> Option<Question> {
        let state = self.lock();
        matches!(state.stage, Stage::Queued { .. }).then_some(Question(state.last))
    }

    /// Notes how many packets were read, and whether no more were there. Returns the marker that follows them,
    /// if they were the last to be waited for.
    pub fn read(&self, question: Question, packets: usize, is_empty: bool) -> Option<Packet<Ip>> {
        let mut state = self.lock();
        if question.0 != state.last {
            return None;
        }
        let Stage::Queued { left } = &mut state.stage else { return None };
        *left = left.saturating_sub(packets);
        if *left > 0 && !is_empty {
            return None;
        }
        let (start, marker) = copy_tracked(&MARKER);
        state.stage = Stage::Read(start);
        marker.try_into_ip().ok()
    }

    /// Waits until the packets have passed that waited when it was last asked. With no patience it only
    /// looks.
    ///
    /// # Errors
    /// Some have not.
    pub async fn passed(&self, patience: Duration) -> Result<(), Elapsed> {
        await_in_flight(patience, || self.lock().have_passed()).await
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn have_passed(&mut self) -> bool {
        if let Stage::Read(start) = &mut self.stage
            && is_free(start)
        {
            self.stage = Stage::Passed;
        }
        matches!(self.stage, Stage::Passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn have_passed(outgoing: &Outgoing) -> bool {
        outgoing.passed(Duration::ZERO).await.is_ok()
    }

    #[tokio::test]
    async fn packets_have_passed_when_the_marker_behind_them_is_dropped() {
        let outgoing = Outgoing::default();
        assert!(have_passed(&outgoing).await && outgoing.question().is_none());
        outgoing.ask();
        outgoing.asked().await;
        let question = outgoing.question().unwrap();
        assert!(outgoing.read(question, 64, false).is_none());
        assert!(!have_passed(&outgoing).await);
        let marker = outgoing.read(question, 3, true).unwrap();
        // The engine drops what has no destination.
        assert_eq!(marker.destination(), None);
        assert!(!have_passed(&outgoing).await && outgoing.question().is_none());
        drop(marker);
        assert!(have_passed(&outgoing).await);
    }

    #[tokio::test]
    async fn a_queue_that_is_never_empty_ends_after_all_that_it_held() {
        let outgoing = Outgoing::default();
        outgoing.ask();
        let question = outgoing.question().unwrap();
        assert!(outgoing.read(question, QUEUED - 1, false).is_none());
        drop(outgoing.read(question, 1, false).unwrap());
        assert!(have_passed(&outgoing).await);
    }

    #[tokio::test]
    async fn what_was_read_before_the_last_question_answers_none() {
        let outgoing = Outgoing::default();
        outgoing.ask();
        let former = outgoing.question().unwrap();
        outgoing.ask();
        assert!(outgoing.read(former, QUEUED, true).is_none());
        let question = outgoing.question().unwrap();
        let marker = outgoing.read(question, 0, true).unwrap();
        // Asked again while the marker is on its way: its end is no answer.
        outgoing.ask();
        drop(marker);
        assert!(!have_passed(&outgoing).await);
    }
}
