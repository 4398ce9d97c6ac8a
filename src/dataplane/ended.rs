//! Notices that kernel WireGuard ended the sessions of our link.
//!
//! A link that goes down forgets the keys of its sessions (`wg_stop` in the kernel's
//! drivers/net/wireguard/device.c), and so does one that is put into a VRF or taken out: the kernel takes it
//! down and up (`cycle_netdev` in drivers/net/vrf.c). Once the link is up again, only the kernel's announcement
//! shows that this happened.

use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;

use super::link;
use super::netlink::{Announcement, NetlinkError, Subscription};

// include/uapi/linux/rtnetlink.h
const GROUP_LINK: u32 = 1;
/// It is emptied at each reading. If more comes, sessions are left to their clients.
const QUEUE_BYTES: usize = 1024 * 1024;
/// After so long, clients have begun new sessions themselves (KEEPALIVE_TIMEOUT and REKEY_TIMEOUT of
/// WireGuard's paper).
const BEGUN_BY_CLIENTS: Duration = Duration::from_secs(15);

/// The kernel's announcements about the link that was asked about last.
pub(super) struct EndedSessions {
    subscription: Subscription,
    link_index: Option<u32>,
    ended_at: Option<Instant>,
}

impl EndedSessions {
    /// Listens from now on, in the network namespace of the calling thread.
    pub fn listen() -> Result<Self, NetlinkError> {
        let subscription =
            Subscription::open_with_queue(NETLINK_ROUTE, &[GROUP_LINK], QUEUE_BYTES)?;
        Ok(Self { subscription, link_index: None, ended_at: None })
    }

    /// Whether this link went down lately, since it was first asked about and since
    /// [`forget`](Self::forget).
    pub fn of(&mut self, link_index: u32) -> bool {
        if self.hear() {
            self.ended_at = Some(Instant::now());
        }
        if self.link_index.replace(link_index) != Some(link_index) {
            self.ended_at = None;
        }
        self.ended_at.is_some_and(|at| at.elapsed() < BEGUN_BY_CLIENTS)
    }

    /// Forgets the sessions that ended until now, because they begin anew.
    pub const fn forget(&mut self) {
        self.ended_at = None;
    }

    /// Whether the link that is known went down meanwhile. What cannot be read tells nothing.
    fn hear(&mut self) -> bool {
        let known = self.link_index;
        let mut went_down = false;
        while let Ok(true) = self.subscription.read(|announcement| {
            if let Announcement::Message(message) = announcement {
                went_down |= known.is_some() && link::that_is_down(message)? == known;
            }
            Ok(())
        }) {}
        went_down
    }
}
