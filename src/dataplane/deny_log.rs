//! Reads the packets that the firewall logs as denied, from the group of nflog that its rules name.
//!
//! The rules log few packets, and the kernel queues them for a while and sends several at once. A
//! reader that falls behind loses some: their number says nothing about how many were denied.

use std::collections::VecDeque;

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::netlink::{Announcement, AsyncSubscription, Message, NetlinkError, Subscription, put};
use super::nft::DENY_LOG_PREFIX;
use crate::model::{Denial, NflogGroup};

// include/uapi/linux/netfilter/nfnetlink_log.h
const NFNL_SUBSYS_ULOG: u16 = 4;
const PACKET: u16 = NFNL_SUBSYS_ULOG << 8;
const CONFIG: u16 = NFNL_SUBSYS_ULOG << 8 | 1;
const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TIMEOUT: u16 = 4;
const CONFIG_THRESHOLD: u16 = 5;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;

/// Some thousand packets: more are lost, and no flood takes more of the kernel's memory.
const QUEUE_BYTES: usize = 512 * 1024;
/// The kernel sends what it has after this time or so many packets.
const TIMEOUT_HUNDREDTHS: u32 = 20;
const THRESHOLD_PACKETS: u32 = 32;

/// Why the group cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyLogError {
    #[error(
        "another program reads nflog group {0}, such as ulogd2 or another gatepost: write a free \
         group into firewall.deny_log_group, or stop that program"
    )]
    Taken(NflogGroup),
    #[error("nflog group {0} cannot be read: {1}")]
    Refused(NflogGroup, NetlinkError),
}

/// The only reader of a group.
pub struct DenyLog {
    subscription: AsyncSubscription,
    denials: VecDeque<Denial>,
}

impl DenyLog {
    /// Reads this group from now on, in the calling thread's network namespace. Needs a tokio runtime
    /// with I/O.
    ///
    /// # Errors
    /// [`DenyLogError::Taken`]: another program reads it.
    pub fn open(group: NflogGroup) -> Result<Self, DenyLogError> {
        let refused = |error: NetlinkError| match error.refusal() {
            // The kernel refuses a second reader so, and a second request of the same reader.
            Some(Errno::EPERM | Errno::EBUSY) => DenyLogError::Taken(group),
            _ => DenyLogError::Refused(group, error),
        };
        let open = || {
            let mut subscription =
                Subscription::open_with_queue(NETLINK_NETFILTER, &[], QUEUE_BYTES)?;
            subscription.request(CONFIG, &config(group))?;
            AsyncSubscription::of(subscription)
        };
        Ok(Self { subscription: open().map_err(refused)?, denials: VecDeque::new() })
    }

    /// Waits for the next packets, of which it returns all that came together: a few dozen at most.
    ///
    /// # Errors
    /// The socket failed or the kernel sent what cannot be read: open another one.
    pub async fn next(&mut self) -> Result<Vec<Denial>, NetlinkError> {
        loop {
            let Self { subscription, denials } = self;
            subscription
                .read(|announcement| {
                    if let Announcement::Message(message) = announcement {
                        denials.extend(denial_in(message)?);
                    }
                    Ok(())
                })
                .await?;
            if !denials.is_empty() {
                return Ok(denials.drain(..).collect());
            }
        }
    }
}

/// Makes the message by which this socket becomes the reader of the group.
fn config(NflogGroup(group): NflogGroup) -> Vec<u8> {
    const SNAP_BYTES: u32 = 0xffff;
    let [high, low] = group.to_be_bytes();
    let mut body = vec![0, 0, high, low];
    let [a, b, c, d] = SNAP_BYTES.to_be_bytes();
    put(&mut body, CONFIG_COMMAND, &[COMMAND_BIND]);
    put(&mut body, CONFIG_MODE, &[a, b, c, d, COPY_PACKET, 0]);
    put(&mut body, CONFIG_TIMEOUT, &TIMEOUT_HUNDREDTHS.to_be_bytes());
    put(&mut body, CONFIG_THRESHOLD, &THRESHOLD_PACKETS.to_be_bytes());
    body
}

/// The denied packet of a message; `None`: it is about something else, or no IP packet.
pub(super) fn denial_in(message: &Message<'_>) -> Result<Option<Denial>, NetlinkError> {
    if message.kind != PACKET {
        return Ok(None);
    }
    let (_, attributes) = message.split::<4>("NFULNL_MSG_PACKET")?;
    let prefix = attributes.find(PREFIX)?.map(|prefix| prefix.text_lossy()).unwrap_or_default();
    if prefix != DENY_LOG_PREFIX {
        return Ok(None);
    }
    let packet = attributes.find(PAYLOAD)?;
    Ok(packet.and_then(|packet| Denial::of_packet(packet.value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: [u8; 22] =
        [0x45, 0, 0, 84, 0, 0, 0, 0, 64, 1, 0, 0, 10, 8, 0, 2, 10, 20, 0, 5, 8, 0];

    fn message(kind: u16, payload: &[u8]) -> Message<'_> {
        Message { kind, flags: 0, sequence: 0, port: 0, payload }
    }

    fn logged(prefix: &str, packet: &[u8]) -> Vec<u8> {
        let mut payload = vec![2, 0, 0, 71];
        put(&mut payload, PREFIX, format!("{prefix}\0").as_bytes());
        put(&mut payload, PAYLOAD, packet);
        payload
    }

    #[test]
    fn only_what_our_rules_log_is_read() {
        let read = |payload: &[u8]| denial_in(&message(PACKET, payload)).unwrap();
        let found = read(&logged(DENY_LOG_PREFIX, &PING)).unwrap();
        assert_eq!((found.from, found.to), ([10, 8, 0, 2].into(), [10, 20, 0, 5].into()));
        assert_eq!(read(&logged("another program's", &PING)), None);
        assert_eq!(read(&logged(DENY_LOG_PREFIX, &[])), None);
        assert_eq!(denial_in(&message(3, &[0; 4])), Ok(None), "the end of several");
    }

    #[test]
    fn malformed_message_is_an_error() {
        let whole = logged(DENY_LOG_PREFIX, &PING);
        let error = denial_in(&message(PACKET, &whole[..whole.len() - 8])).unwrap_err();
        assert!(error.to_string().contains("malformed NFULNL_MSG_PACKET, attribute 9"), "{error}");
    }
}
