//! Sockets that listen to what the kernel announces to a multicast group.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, NetlinkAddr};
use tokio::io::unix::AsyncFd;

use super::error::NetlinkError;
use super::message::{Message, NLMSG_ERROR, messages, put_message};
use super::socket::{bind, buffer, receive, socket_error};

/// A busy host makes thousands of changes at once. Few concern us, but all of them are received.
const SOCKET_BUFFER_BYTES: usize = 16 * 1024 * 1024;

/// One announcement of a subscription.
pub(crate) enum Announcement<'a> {
    Message(Message<'a>),
    /// More came than the queue could hold, and some of it was dropped.
    Overrun,
}

/// A socket that is a member of multicast groups. Never blocks.
pub(crate) struct Subscription {
    socket: Socket,
    membership: Arc<Membership>,
    incoming: Box<[u8]>,
}

impl Subscription {
    /// Joins these groups, given as numbers from 1 to 32, in the network namespace of the calling
    /// thread.
    pub fn open(protocol: isize, groups: &[u32]) -> Result<Self, NetlinkError> {
        Self::open_with_queue(protocol, groups, SOCKET_BUFFER_BYTES)
    }

    /// Like [`open`](Self::open), with a queue of this size.
    pub fn open_with_queue(
        protocol: isize,
        groups: &[u32],
        queue_bytes: usize,
    ) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(|error| socket_error("socket", &error))?;
        let port = bind(&mut socket, queue_bytes)?;
        let file = socket.as_fd().try_clone_to_owned();
        let file = file.map_err(|error| socket_error("dup", &error))?;
        let groups = groups.iter().fold(0, |groups, group| groups | 1 << (group - 1));
        let membership = Arc::new(Membership { file, port, groups });
        membership.join()?;
        Ok(Self { socket, membership, incoming: buffer() })
    }

    pub fn membership(&self) -> Weak<Membership> {
        Arc::downgrade(&self.membership)
    }

    /// Sends a request and reads its ack. What comes before that is dropped.
    ///
    /// # Errors
    /// The kernel refuses it, the socket failed, or an answer is malformed.
    pub fn request(&mut self, kind: u16, body: &[u8]) -> Result<(), NetlinkError> {
        const SEQUENCE: u32 = 1;
        let mut request = Vec::new();
        put_message(&mut request, kind, NLM_F_REQUEST | NLM_F_ACK, SEQUENCE, |out| {
            out.extend_from_slice(body);
        });
        let sent = self.socket.send_to(&request, &SocketAddr::new(0, 0), 0);
        sent.map_err(|error| socket_error("send", &error))?;
        loop {
            // The kernel has answered when `send` returns.
            let len = receive(&self.socket, &mut self.incoming, MsgFlags::MSG_DONTWAIT)?;
            for message in messages(&self.incoming[..len]) {
                let message = message?;
                if message.kind == NLMSG_ERROR && message.sequence == SEQUENCE {
                    return message.ack()?;
                }
            }
        }
    }

    /// Reads one datagram. `false`: nothing has come.
    ///
    /// # Errors
    /// The socket failed, a message is malformed, or `on` refuses one; the rest of that datagram is
    /// dropped.
    pub fn read(
        &mut self,
        mut on: impl FnMut(&Announcement<'_>) -> Result<(), NetlinkError>,
    ) -> Result<bool, NetlinkError> {
        match receive(&self.socket, &mut self.incoming, MsgFlags::MSG_DONTWAIT) {
            Ok(len) => messages(&self.incoming[..len])
                .try_for_each(|message| on(&Announcement::Message(message?)))?,
            Err(NetlinkError::Socket { errno: Errno::ENOBUFS, .. }) => on(&Announcement::Overrun)?,
            Err(NetlinkError::Socket { errno: Errno::EAGAIN, .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

impl AsRawFd for Subscription {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A subscription that async code can wait for.
pub(crate) struct AsyncSubscription(AsyncFd<Subscription>);

impl AsyncSubscription {
    /// Like [`Subscription::open`]. Needs a tokio runtime with I/O.
    pub fn open(protocol: isize, groups: &[u32]) -> Result<Self, NetlinkError> {
        Self::of(Subscription::open(protocol, groups)?)
    }

    /// Needs a tokio runtime with I/O.
    pub fn of(subscription: Subscription) -> Result<Self, NetlinkError> {
        #[expect(deprecated, reason = "its successor is unsafe; a subscription keeps its socket")]
        let registered = AsyncFd::new(subscription);
        registered.map(Self).map_err(|error| socket_error("epoll_ctl", &error))
    }

    pub fn membership(&self) -> Weak<Membership> {
        self.0.get_ref().membership()
    }

    /// Waits for a datagram and reads it. When dropped while it waits, it loses none.
    ///
    /// # Errors
    /// The errors of [`Subscription::read`].
    pub async fn read(
        &mut self,
        mut on: impl FnMut(&Announcement<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        loop {
            let ready = self.0.readable_mut().await;
            let mut ready = ready.map_err(|error| socket_error("epoll_wait", &error))?;
            if ready.get_inner_mut().read(&mut on)? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// A subscription's membership in its groups, which can be suspended.
pub struct Membership {
    file: OwnedFd,
    port: u32,
    /// One bit for each group.
    groups: u32,
}

impl Membership {
    /// Receives from now on.
    pub(crate) fn join(&self) -> Result<(), NetlinkError> {
        self.bind(self.groups)
    }

    /// Receives nothing from now on.
    pub(crate) fn leave(&self) -> Result<(), NetlinkError> {
        self.bind(0)
    }

    /// Replaces the groups of a socket that is bound already (`netlink_bind` in the kernel's
    /// net/netlink/af_netlink.c).
    fn bind(&self, groups: u32) -> Result<(), NetlinkError> {
        let address = NetlinkAddr::new(self.port, groups);
        nix::sys::socket::bind(self.file.as_raw_fd(), &address)
            .map_err(|errno| NetlinkError::Socket { call: "bind", errno })
    }
}
