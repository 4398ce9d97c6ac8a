//! Notices when another program changes our link, its addresses or its routes.
//!
//! An event carries no data: it says *look again*. What our own routes bring about is not passed on,
//! or every peer that gains or loses one would have everything read again. The kernel names no author
//! for what it does by itself, nor for most changes to a link, so such an event may find nothing to do.
//! WireGuard announces nothing about peers. Edits of the firewall come by `nft::monitor`.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::time::{Interval, MissedTickBehavior};

use super::netlink::{Announcement, AsyncSubscription, Message, NetlinkError};
use super::rule::{SRC_VALID_MARK, filter_of};
use crate::model::InterfaceName;

// include/uapi/linux/rtnetlink.h, if_link.h
/// Links; addresses, routes and rules, IPv4 and IPv6; settings of IPv4.
const GROUPS: [u32; 8] = [1, 5, 9, 7, 11, 8, 19, 24];
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DEL_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DEL_RULE: u16 = 33;
const NEW_NETCONF: u16 = 80;
const DEL_NETCONF: u16 = 81;
const LINK_NAME: u16 = 3;
const ROUTE_OIF: u16 = 4;

/// How often settings are looked at that the kernel announces no change of.
const LOOK: Duration = Duration::from_secs(1);

/// The part of the host to look at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostEvent {
    /// The link came, went or changed.
    Link,
    /// An address of the link came or went.
    Address,
    /// A route through the link came or went.
    Route,
    /// A rule of policy routing came or went, the first link began to check sources, or whether marks
    /// count there changed.
    Rule,
    /// Events were lost: anything may have changed.
    Resync,
}

/// A subscription to the kernel's events about one interface.
pub struct Monitor {
    subscription: AsyncSubscription,
    filter: Filter,
    events: VecDeque<HostEvent>,
    /// The kernel announces no change of it.
    marks_count: Option<Setting>,
    looks: Interval,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace, within a tokio runtime. Everything that
    /// happens from now on is reported, except what is done from `own_port`. The link's index is
    /// learnt from `index` and from the link's own events.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn open(
        interface: InterfaceName,
        index: Option<u32>,
        own_port: u32,
    ) -> Result<Self, NetlinkError> {
        let subscription = AsyncSubscription::open(NETLINK_ROUTE, &GROUPS)?;
        let filter = Filter::new(interface, own_port, index);
        let marks_count = Setting::open(SRC_VALID_MARK);
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { subscription, filter, events: VecDeque::new(), marks_count, looks })
    }

    /// Waits for the next event. Dropping and calling it again loses no event.
    ///
    /// # Errors
    /// The subscription is broken, or the kernel sent what cannot be read. From then on only complete
    /// readings show changes.
    pub async fn next(&mut self) -> Result<HostEvent, NetlinkError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            let Self { subscription, filter, events, marks_count, looks } = self;
            let announced = subscription.read(|announcement| {
                events.extend(match announcement {
                    Announcement::Message(message) => filter.event(message)?,
                    Announcement::Overrun => Some(HostEvent::Resync),
                });
                Ok(())
            });
            tokio::select! {
                announced = announced => announced?,
                _ = looks.tick() => {
                    let changed = marks_count.as_mut().is_some_and(Setting::changed);
                    if changed {
                        return Ok(HostEvent::Rule);
                    }
                }
            }
        }
    }
}

/// A setting in `/proc/sys`, of the network namespace in which it was opened.
struct Setting {
    file: File,
    was: [u8; 1],
}

impl Setting {
    /// `None`: it cannot be read, as on a host without IPv4.
    fn open(path: &str) -> Option<Self> {
        let mut setting = Self { file: File::open(path).ok()?, was: [0] };
        setting.changed();
        Some(setting)
    }

    /// Whether it is another one than when it was last read.
    fn changed(&mut self) -> bool {
        let mut is = [0; 1];
        let read = self.file.read_exact_at(&mut is, 0).is_ok();
        let was = std::mem::replace(&mut self.was, is);
        read && was != is
    }
}

/// Which events concern our link.
pub(super) struct Filter {
    interface: InterfaceName,
    own_port: u32,
    /// Known once the link has been seen.
    index: Option<u32>,
    /// The links that are known to check sources.
    checking: BTreeSet<i32>,
}

impl Filter {
    pub const fn new(interface: InterfaceName, own_port: u32, index: Option<u32>) -> Self {
        Self { interface, own_port, index, checking: BTreeSet::new() }
    }

    pub fn event(&mut self, message: &Message<'_>) -> Result<Option<HostEvent>, NetlinkError> {
        let event = match message.kind {
            NEW_LINK | DEL_LINK => self.link_event(message)?,
            NEW_ADDRESS | DEL_ADDRESS => {
                let ([_, _, _, _, index @ ..], _) = message.split::<8>("RTM_NEWADDR")?;
                self.is_ours(u32::from_ne_bytes(*index)).then_some(HostEvent::Address)
            }
            NEW_ROUTE | DEL_ROUTE => {
                match message.split::<12>("RTM_NEWROUTE")?.1.find(ROUTE_OIF)? {
                    Some(out) => self.is_ours(out.u32()?).then_some(HostEvent::Route),
                    None => None,
                }
            }
            NEW_RULE | DEL_RULE => Some(HostEvent::Rule),
            NEW_NETCONF | DEL_NETCONF => self.setting_event(message)?,
            _ => None,
        };
        Ok(event.filter(|_| message.port != self.own_port))
    }

    fn link_event(&mut self, message: &Message<'_>) -> Result<Option<HostEvent>, NetlinkError> {
        let (header, attributes) = message.split::<16>("RTM_NEWLINK")?;
        let [_, _, _, _, i, j, k, l, ..] = *header;
        let index = u32::from_ne_bytes([i, j, k, l]);
        let name = attributes.find(LINK_NAME)?;
        let named = name.is_some_and(|name| name.text_lossy() == self.interface.as_str());
        // A link that was renamed away comes with its new name and the index we knew.
        let known = self.is_ours(index);
        if named {
            self.index = Some(index);
        }
        Ok((named || known).then_some(HostEvent::Link))
    }

    /// Each link that comes announces its settings: only the first that checks sources is news.
    fn setting_event(&mut self, message: &Message<'_>) -> Result<Option<HostEvent>, NetlinkError> {
        let Some((link, checks)) = filter_of(message)? else { return Ok(None) };
        let had_none = self.checking.is_empty();
        if checks && message.kind == NEW_NETCONF {
            self.checking.insert(link);
        } else {
            self.checking.remove(&link);
        }
        Ok((had_none && !self.checking.is_empty()).then_some(HostEvent::Rule))
    }

    fn is_ours(&self, index: u32) -> bool {
        self.index == Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::netlink::put;
    use super::*;

    fn filter() -> Filter {
        let interface = "wg0".parse().unwrap();
        Filter::new(interface, 7, None)
    }

    fn link(index: u32, name: &str) -> Vec<u8> {
        let mut payload = vec![0; 16];
        payload[4..8].copy_from_slice(&index.to_ne_bytes());
        put(&mut payload, LINK_NAME, format!("{name}\0").as_bytes());
        payload
    }

    fn route(index: u32) -> Vec<u8> {
        let mut payload = vec![0; 12];
        put(&mut payload, ROUTE_OIF, &index.to_ne_bytes());
        payload
    }

    fn message(kind: u16, payload: &[u8]) -> Message<'_> {
        Message { kind, flags: 0, sequence: 0, port: 0, payload }
    }

    #[test]
    fn only_our_link_is_reported_and_it_is_followed_through_a_rename() {
        let mut filter = filter();
        let mut event = |kind, payload: &[u8]| filter.event(&message(kind, payload)).unwrap();
        assert_eq!(event(NEW_LINK, &link(3, "eth0")), None);
        assert_eq!(event(NEW_ROUTE, &route(4)), None, "our link is not known yet");
        assert_eq!(event(NEW_LINK, &link(4, "wg0")), Some(HostEvent::Link));
        assert_eq!(event(NEW_ROUTE, &route(4)), Some(HostEvent::Route));
        assert_eq!(event(DEL_ADDRESS, &[2, 32, 0, 0, 4, 0, 0, 0]), Some(HostEvent::Address));
        assert_eq!(event(NEW_ROUTE, &route(3)), None);
        assert_eq!(event(NEW_LINK, &link(4, "away")), Some(HostEvent::Link));
    }

    #[test]
    fn our_own_changes_are_not_reported() {
        let (mut filter, payload) = (filter(), link(4, "wg0"));
        let ours = Message { port: 7, ..message(NEW_LINK, &payload) };
        assert_eq!(filter.event(&ours), Ok(None));
        assert_eq!(filter.index, Some(4), "but the link's index is learnt from them");
    }

    #[test]
    fn only_the_first_link_that_checks_sources_is_news() {
        let mut filter = filter();
        let mut event = |kind, link: i32, mode: i32| {
            let mut payload = vec![2, 0, 0, 0];
            put(&mut payload, 1, &link.to_ne_bytes());
            put(&mut payload, 3, &mode.to_ne_bytes());
            filter.event(&message(kind, &payload)).unwrap()
        };
        assert_eq!(event(NEW_NETCONF, 3, 0), None);
        assert_eq!(event(NEW_NETCONF, -2, 2), None, "what later links start with");
        assert_eq!(event(NEW_NETCONF, 3, 2), Some(HostEvent::Rule));
        assert_eq!(event(NEW_NETCONF, 4, 1), None);
        assert_eq!(event(NEW_NETCONF, 3, 0), None);
        assert_eq!(event(DEL_NETCONF, 4, 1), None);
        assert_eq!(event(NEW_NETCONF, -1, 1), Some(HostEvent::Rule));
        assert_eq!(filter.event(&message(NEW_RULE, &[])), Ok(Some(HostEvent::Rule)));
    }

    #[test]
    fn a_malformed_event_is_an_error() {
        let mut filter = filter();
        let mut error =
            |kind, payload: &[u8]| filter.event(&message(kind, payload)).unwrap_err().to_string();
        assert!(error(NEW_LINK, &[0; 15]).contains("malformed RTM_NEWLINK"));
        assert!(error(DEL_ADDRESS, &[0; 7]).contains("malformed RTM_NEWADDR"));
        let cut = route(4);
        assert!(error(NEW_ROUTE, &cut[..18]).contains("malformed RTM_NEWROUTE, attribute 4"));
    }
}
