//! The last denied packets, for `gatepost denied`, and whether they can be read at all.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use gatepost::reconcile::status::DeniedPacket;
use tokio::sync::{broadcast, watch};

/// How many packets are kept.
const KEPT: usize = 1_000;
/// A follower that falls behind by more than this loses the oldest.
const BEHIND: usize = 256;

/// The packets that the log's reader has seen, for all callers. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Recent {
    kept: Arc<Mutex<VecDeque<DeniedPacket>>>,
    news: broadcast::Sender<DeniedPacket>,
    /// Why no packet is read; `None`: they are.
    trouble: watch::Sender<Option<String>>,
    /// `firewall.deny_log`, which SIGHUP may change.
    logs: watch::Sender<bool>,
}

impl Recent {
    /// Without any packet. `logs`: whether the firewall logs any.
    #[must_use]
    pub fn new(logs: bool) -> Self {
        Self {
            kept: Arc::default(),
            news: broadcast::Sender::new(BEHIND),
            trouble: watch::Sender::new(None),
            logs: watch::Sender::new(logs),
        }
    }

    /// Adds a packet, in place of the oldest if there are many.
    pub fn push(&self, packet: DeniedPacket) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(packet.clone());
        // It fails where none is following.
        let _ = self.news.send(packet);
    }

    /// The packets that are known, the oldest first, and those that come from then on.
    #[must_use]
    pub fn follow(&self) -> (Vec<DeniedPacket>, broadcast::Receiver<DeniedPacket>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.news.subscribe())
    }

    /// Why denied packets are not read, though the firewall logs them.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.borrow().clone()
    }

    /// Says why they are not read; `None`: they are.
    pub fn set_trouble(&self, why: Option<String>) {
        self.trouble.send_replace(why);
    }

    /// Whether the firewall logs denied packets.
    #[must_use]
    pub fn logs(&self) -> bool {
        *self.logs.borrow()
    }

    /// From now on the firewall logs denied packets, or does not.
    pub fn set_logs(&self, logs: bool) {
        self.logs.send_replace(logs);
    }

    /// Waits until the configuration is read again.
    pub async fn until_reload(&self) {
        let _ = self.logs.subscribe().changed().await;
    }

    /// Waits until the firewall logs denied packets, or no more.
    pub async fn until_logs(&self, wanted: bool) {
        // It fails only when the sender is gone, which is here.
        let _ = self.logs.subscribe().wait_for(|logs| *logs == wanted).await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::SystemTime;

    use gatepost::reconcile::status::{DeniedEnd, Timestamp};

    use super::*;

    #[test]
    fn only_the_last_packets_are_kept() {
        let recent = Recent::new(true);
        let packet = |number: usize| DeniedPacket {
            at: Timestamp(SystemTime::UNIX_EPOCH),
            from: end([10, 8, 0, 2].into()),
            to: end([10, 20, 0, 5].into()),
            service: format!("tcp/{number}"),
            reason: "no policy".into(),
            policy: None,
        };
        let (_, mut news) = recent.follow();
        (0..KEPT + 7).for_each(|number| recent.push(packet(number)));
        let (kept, _) = recent.follow();
        assert_eq!((kept.len(), &*kept[0].service), (KEPT, "tcp/7"));
        assert!(matches!(news.try_recv(), Err(broadcast::error::TryRecvError::Lagged(_))));
        assert_eq!(news.try_recv().unwrap().service, format!("tcp/{}", KEPT + 7 - BEHIND));
    }

    fn end(address: IpAddr) -> DeniedEnd {
        DeniedEnd { address, user: String::new(), device: String::new() }
    }
}
