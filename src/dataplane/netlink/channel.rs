//! Requests with their acks, and dumps, over one blocking socket.
//!
//! Blocking on purpose: the kernel answers a netlink request inside the call that sends it, and the
//! data plane has a thread of its own. Several requests go in one datagram, which the kernel works
//! off in one system call: when this process is killed, either all of them are done or none is begun.

use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt::SndBufForce};
use zeroize::Zeroize;

use super::error::NetlinkError;
use super::message::{Message, messages, put_message};
use super::socket::{bind, buffer, receive, socket_error};

/// An ack counts as about a page in the receive buffer; this holds a full window of them.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// How many requests are sent before their acks are read.
const WINDOW: usize = 256;
/// How often a dump is repeated when the kernel says that it is inconsistent.
const DUMP_TRIES: u32 = 10;

/// One request: its payload, and its flags besides `NLM_F_REQUEST` and `NLM_F_ACK`.
pub(crate) struct Request<I> {
    pub payload: I,
    pub flags: u16,
}

impl<I> Request<I> {
    pub const fn new(payload: I) -> Self {
        Self { payload, flags: 0 }
    }

    pub const fn with_flags(payload: I, flags: u16) -> Self {
        Self { payload, flags }
    }
}

/// A payload that is encoded already: the header of its family, and attributes.
#[derive(Clone, Copy)]
pub(crate) struct Encoded<'a> {
    pub kind: u16,
    pub body: &'a [u8],
}

impl NetlinkSerializable for Encoded<'_> {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(self.body);
    }
}

/// The kernel's answers to a batch that it applies as a whole or not at all.
pub(crate) struct BatchAcks {
    /// It acknowledged the last request.
    pub acknowledged: bool,
    /// The first refusal, with the sequence number of what it refused.
    pub refused: Option<(u32, Errno)>,
}

/// A netlink socket of one protocol, in the network namespace of the thread that opened it.
pub(crate) struct Channel {
    socket: Socket,
    port: u32,
    sequence: u32,
    outgoing: Vec<u8>,
    incoming: Box<[u8]>,
    /// How many bytes of `incoming` received datagrams have filled since it was last wiped.
    filled: usize,
}

impl Channel {
    /// Opens a socket, for example of [`netlink_sys::protocols::NETLINK_ROUTE`].
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(|error| socket_error("socket", &error))?;
        let port = bind(&mut socket, SOCKET_BUFFER_BYTES)?;
        let connected = socket.connect(&SocketAddr::new(0, 0));
        connected.map_err(|error| socket_error("connect", &error))?;
        // Each of these only makes the socket better: an old kernel leaves it working.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self { socket, port, sequence: 0, outgoing: Vec::new(), incoming: buffer(), filled: 0 })
    }

    /// The socket's port, which the events of our own writes carry.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Sends requests in windows, each window one datagram, and returns the kernel's ack for each,
    /// in their order. The kernel tries all of them, whatever becomes of one.
    ///
    /// # Errors
    /// The socket failed or an ack is malformed; then it is unknown which requests were applied.
    pub fn transact<I: NetlinkSerializable>(
        &mut self,
        requests: impl IntoIterator<Item = Request<I>>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut requests = requests.into_iter();
        let mut acks = Vec::new();
        loop {
            let first = self.next_sequence();
            let mut count = 0;
            for request in requests.by_ref().take(WINDOW) {
                self.push(&request.payload, request.flags | NLM_F_ACK);
                count += 1;
            }
            if count == 0 {
                return Ok(acks);
            }
            self.send()?;
            acks.append(&mut self.acks(first, count)?);
        }
    }

    /// Sends one request and waits for its ack.
    pub fn request<I: NetlinkSerializable>(
        &mut self,
        request: Request<I>,
    ) -> Result<(), NetlinkError> {
        self.transact([request])?.into_iter().collect()
    }

    /// Asks for one object and reads the answer, message by message, into a `T`.
    pub fn get<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: &I,
        read: impl FnMut(&mut T, &Message<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        self.read_answer(payload, NLM_F_ACK, read).map(|(found, _)| found)
    }

    /// Dumps a table into a `T`, and repeats this until nothing changes during a dump.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`]: it changed during every dump. A part is never returned.
    pub fn dump<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: &I,
        mut read: impl FnMut(&mut T, &Message<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            match self.dump_once(payload, &mut read) {
                Err(NetlinkError::Interrupted { .. }) => {}
                done => return done,
            }
        }
        Err(NetlinkError::Interrupted { tries: DUMP_TRIES })
    }

    /// Dumps a table into a `T`.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`]: it changed during the dump.
    pub fn dump_once<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: &I,
        read: impl FnMut(&mut T, &Message<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        match self.read_answer(payload, NLM_F_DUMP, read)? {
            (found, true) => Ok(found),
            (_, false) => Err(NetlinkError::Interrupted { tries: 1 }),
        }
    }

    /// Reads the first datagram of a dump and leaves the rest, which makes the socket useless.
    pub fn first_of_dump<I: NetlinkSerializable, T: Default>(
        mut self,
        payload: &I,
        mut read: impl FnMut(&mut T, &Message<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        self.push(payload, NLM_F_DUMP);
        self.send()?;
        let len = self.receive()?;
        let mut found = T::default();
        for message in messages(&self.incoming[..len]) {
            let message = message?;
            if message.is_end() {
                message.ack()??;
            } else {
                read(&mut found, &message)?;
            }
        }
        self.wipe();
        Ok(found)
    }

    /// The sequence number of the next message.
    pub const fn next_sequence(&self) -> u32 {
        self.sequence.wrapping_add(1)
    }

    /// Sends encoded messages, numbered from `first`, which was the [next](Self::next_sequence), to
    /// `last`, in one datagram, and reads the acks that the kernel gives.
    ///
    /// # Errors
    /// `send` failed and the kernel saw nothing; or an ack is malformed.
    pub fn send_batch(
        &mut self,
        batch: &[u8],
        first: u32,
        last: u32,
    ) -> Result<BatchAcks, NetlinkError> {
        self.sequence = last;
        // Each message is counted with its overhead; `send` says EMSGSIZE if this is too little.
        setsockopt(&self.socket.as_fd(), SndBufForce, &(batch.len() + 64 * 1024))
            .map_err(|errno| NetlinkError::Socket { call: "setsockopt", errno })?;
        self.socket.send(batch, 0).map_err(|error| socket_error("send", &error))?;
        let mut acks = BatchAcks { acknowledged: false, refused: None };
        // The kernel has queued every ack when `send` returns.
        loop {
            let len = match receive(&self.socket, &mut self.incoming, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => len,
                // Some acks did not fit into the queue; those that did are still there.
                Err(NetlinkError::Socket { errno: Errno::ENOBUFS, .. }) => continue,
                Err(NetlinkError::Socket { errno: Errno::EAGAIN, .. }) => return Ok(acks),
                Err(error) => return Err(error),
            };
            for message in messages(&self.incoming[..len]) {
                let message = message?;
                let is_ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if !is_ours || !message.is_end() {
                    continue;
                }
                match message.ack()?.map_err(|refusal| refusal.refusal()) {
                    Err(Some(errno)) => _ = acks.refused.get_or_insert((message.sequence, errno)),
                    _ => acks.acknowledged = true,
                }
            }
        }
    }

    fn push<I: NetlinkSerializable>(&mut self, payload: &I, flags: u16) {
        self.sequence = self.next_sequence();
        let kind = payload.message_type();
        put_message(&mut self.outgoing, kind, NLM_F_REQUEST | flags, self.sequence, |out| {
            let start = out.len();
            out.resize(start + payload.buffer_len(), 0);
            payload.serialize(&mut out[start..]);
        });
    }

    fn send(&mut self) -> Result<(), NetlinkError> {
        let sent = self.socket.send(&self.outgoing, 0);
        // It may have held keys.
        self.outgoing.zeroize();
        sent.map(drop).map_err(|error| socket_error("send", &error))
    }

    fn receive(&mut self) -> Result<usize, NetlinkError> {
        let received = receive(&self.socket, &mut self.incoming, MsgFlags::empty());
        // Of a datagram that is larger than the buffer, the buffer holds a part.
        let filled = match &received {
            Ok(len) => *len,
            Err(NetlinkError::Socket { errno: Errno::EMSGSIZE, .. }) => self.incoming.len(),
            Err(_) => 0,
        };
        self.filled = self.filled.max(filled);
        received
    }

    /// Erases what was received, because it may have held keys. The rest of the buffer is left
    /// alone: it is large, and answers are small.
    fn wipe(&mut self) {
        self.incoming[..self.filled].zeroize();
        self.filled = 0;
    }

    fn acks(
        &mut self,
        first: u32,
        count: usize,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut acks = vec![None; count];
        let mut missing = count;
        while missing > 0 {
            let len = self.receive()?;
            for message in messages(&self.incoming[..len]) {
                let message = message?;
                // The ack of a request that was given up earlier says nothing about these.
                let index = message.sequence.wrapping_sub(first) as usize;
                if let (true, Some(ack @ None)) = (message.is_end(), acks.get_mut(index)) {
                    *ack = Some(message.ack()?);
                    missing -= 1;
                }
            }
        }
        Ok(acks.into_iter().flatten().collect())
    }

    /// The second value says whether nothing changed during the dump.
    fn read_answer<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: &I,
        flags: u16,
        mut read: impl FnMut(&mut T, &Message<'_>) -> Result<(), NetlinkError>,
    ) -> Result<(T, bool), NetlinkError> {
        self.push(payload, flags);
        self.send()?;
        let mut found = T::default();
        // After an answer that cannot be used the rest is still read, or it would be taken for the
        // answer to the next request.
        let mut outcome = Ok(());
        let mut consistent = true;
        loop {
            let len = self.receive()?;
            let mut ended = false;
            for message in messages(&self.incoming[..len]) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                if message.is_end() {
                    ended = true;
                    outcome = outcome.and(message.ack()?);
                } else if outcome.is_ok() {
                    outcome = read(&mut found, &message);
                }
            }
            if ended {
                self.wipe();
                return outcome.map(|()| (found, consistent));
            }
        }
    }
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
