//! The netlink socket: sends a batch and collects its answers, dumps, and reads the generation.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::attr::{Attr, find_be32};
use super::batch::{Finished, frame, message_type};
use super::error::NftError;
use super::sys::{
    NETLINK_NETFILTER, NFPROTO_INET, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, generation, msg,
};

/// The kernel fills at most 32 KiB of a dump at a time.
const RECEIVE_BYTES: usize = 64 * 1024;

/// A message's header is `struct nlmsghdr` and `struct nfgenmsg`.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 4;

/// One socket to nf_tables of the network namespace it was opened in.
pub struct NftSocket {
    socket: Socket,
    port: u32,
    sequence: u32,
    buffer: Vec<u8>,
}

impl NftSocket {
    pub fn open() -> Result<Self, NftError> {
        /// A refused change can name each of its requests.
        const RECEIVE_QUEUE_BYTES: usize = 4 << 20;
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(NftError::Open)?;
        let address = socket.bind_auto().map_err(NftError::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NftError::Open)?;
        socket.set_cap_ack(true).map_err(NftError::Open)?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_QUEUE_BYTES)
            .map_err(|errno| NftError::Open(errno.into()))?;
        let port = address.port_number();
        Ok(Self { socket, port, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// The socket's number, which the events of our own changes carry.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Sends a batch, which the kernel obeys or refuses as a whole before this returns.
    pub fn commit(&mut self, batch: &Finished) -> Result<(), NftError> {
        let bytes = batch.bytes().len();
        // Each message is counted with its overhead; what is too little shows as EMSGSIZE.
        setsockopt(&self.socket, sockopt::SndBufForce, &(bytes + 64 * 1024))
            .map_err(|errno| NftError::Send { bytes, source: errno.into() })?;
        self.socket.send(batch.bytes(), 0).map_err(|source| match source.raw_os_error() {
            Some(libc::EMSGSIZE | libc::ENOMEM | libc::ENOBUFS) => {
                NftError::TooLarge { bytes, source }
            }
            _ => NftError::Send { bytes, source },
        })?;
        self.verdict_on(batch)
    }

    /// The kernel has queued every answer by the time `send` returns.
    fn verdict_on(&mut self, batch: &Finished) -> Result<(), NftError> {
        let mut acknowledged = false;
        let mut refused: Option<(u32, i32)> = None;
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => {}
                // Some answers did not fit the queue; those that did still come.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(NftError::Receive(error)),
            }
            for message in Messages(&self.buffer).filter(|found| found.kind == NLMSG_ERROR) {
                match message.error() {
                    0 => acknowledged = true,
                    errno => _ = refused.get_or_insert((message.sequence, errno)),
                }
            }
        }
        match refused {
            Some((sequence, errno)) => Err(NftError::Refused {
                request: batch.describe(sequence),
                source: io::Error::from_raw_os_error(errno),
            }),
            None if acknowledged => Ok(()),
            None => Err(NftError::NoAnswer),
        }
    }

    /// Dumps objects of one kind. `take` gets each one's attributes.
    ///
    /// A set, chain or table that is not there has nothing to dump. When the ruleset changes under
    /// the dump it is [`NftError::Changed`]: whoever reads several things at one generation must
    /// begin with all of them again.
    pub fn dump<T: Default>(
        &mut self,
        kind: u8,
        attrs: &[Attr],
        take: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, NftError> {
        self.dump_of(NFPROTO_INET, kind, attrs, take)
    }

    /// The same of another family, `NFPROTO_*`.
    pub fn dump_of<T: Default>(
        &mut self,
        family: u8,
        kind: u8,
        attrs: &[Attr],
        mut take: impl FnMut(&mut T, &[u8]),
    ) -> Result<T, NftError> {
        let sequence = self.request(family, kind, NLM_F_DUMP, attrs)?;
        let mut found = T::default();
        let mut whole = true;
        loop {
            self.receive(0).map_err(NftError::Receive)?;
            for message in Messages(&self.buffer).filter(|found| found.sequence == sequence) {
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                if message.kind != NLMSG_DONE && message.kind != NLMSG_ERROR {
                    take(&mut found, message.body);
                    continue;
                }
                return match message.end_of_dump() {
                    Ok(()) if whole => Ok(found),
                    Ok(()) => Err(NftError::Changed),
                    Err(error) => Err(error),
                };
            }
        }
    }

    /// The attributes of one object; `None`: it is not there.
    pub fn get(&mut self, kind: u8, attrs: &[Attr]) -> Result<Option<Vec<u8>>, NftError> {
        let sequence = self.request(NFPROTO_INET, kind, 0, attrs)?;
        loop {
            self.receive(0).map_err(NftError::Receive)?;
            let answer = Messages(&self.buffer).find(|found| found.sequence == sequence);
            match answer {
                Some(message) if message.kind == NLMSG_ERROR => match message.error() {
                    libc::ENOENT => return Ok(None),
                    errno => return Err(NftError::Receive(io::Error::from_raw_os_error(errno))),
                },
                Some(message) => return Ok(Some(message.body.to_vec())),
                None => {}
            }
        }
    }

    /// The number that every change of any ruleset of this namespace raises.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        let body = self.get(msg::GETGEN, &[])?.unwrap_or_default();
        find_be32(&body, generation::ID).ok_or(NftError::NoAnswer)
    }

    fn request(
        &mut self,
        family: u8,
        kind: u8,
        flags: u16,
        attrs: &[Attr],
    ) -> Result<u32, NftError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let flags = NLM_F_REQUEST | flags;
        frame(&mut bytes, message_type(kind), flags, self.sequence, family, 0, |out| {
            attrs.iter().for_each(|attr| attr.encode(out));
        });
        let sent = self.socket.send(&bytes, 0);
        sent.map_err(|source| NftError::Send { bytes: bytes.len(), source })?;
        Ok(self.sequence)
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, flags) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|_| ()),
            }
        }
    }
}

/// One netlink message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The socket that caused it.
    pub port: u32,
    /// The attributes after the nfnetlink header; of an error, what follows its number.
    pub body: &'a [u8],
    head: &'a [u8],
}

impl Message<'_> {
    /// Which kind of nf_tables object it is about.
    pub const fn object(&self) -> u8 {
        self.kind as u8
    }

    /// `NFPROTO_*`; meaningless in an error.
    pub fn family(&self) -> u8 {
        self.head.first().copied().unwrap_or_default()
    }

    /// Whether a dump that ends with this message gave everything. One of what is not there is
    /// refused at once, and gave all there is; one of what goes away meanwhile fails at its end.
    fn end_of_dump(&self) -> Result<(), NftError> {
        match (self.kind, self.error()) {
            (NLMSG_DONE, _) if self.head.is_empty() => Ok(()), // kernels before 4.6
            (_, 0) | (NLMSG_ERROR, libc::ENOENT) => Ok(()),
            (_, libc::ENOENT | libc::EINTR | libc::EAGAIN) => Err(NftError::Changed),
            (_, errno) => Err(NftError::Receive(io::Error::from_raw_os_error(errno))),
        }
    }

    /// An error's number, positive; 0: an acknowledgement.
    fn error(&self) -> i32 {
        let number = self.head.first_chunk::<4>().copied().map(i32::from_ne_bytes);
        number.map_or(libc::EBADMSG, |number| number.saturating_neg())
    }
}

/// Walks over the messages of a buffer. Stops at the first malformed one.
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.first_chunk::<NETLINK_HEADER>()?;
        let word = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let len = usize::try_from(word(0)).ok()?;
        let whole = self.0.get(..len)?;
        let message = Message {
            kind: half(4),
            flags: half(6),
            sequence: word(8),
            port: word(12),
            body: whole.get(HEADERS..).unwrap_or_default(),
            head: whole.get(NETLINK_HEADER..)?,
        };
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_that_fails_at_its_end_is_not_whole() {
        let end = |kind, errno: i32| {
            let head = (-errno).to_ne_bytes();
            Message { kind, flags: 0, sequence: 1, port: 0, body: &[], head: &head }.end_of_dump()
        };
        assert!(end(NLMSG_DONE, 0).is_ok() && end(NLMSG_ERROR, libc::ENOENT).is_ok());
        for errno in [libc::ENOENT, libc::EINTR, libc::EAGAIN] {
            assert!(matches!(end(NLMSG_DONE, errno), Err(NftError::Changed)), "{errno}");
        }
        assert!(matches!(end(NLMSG_DONE, libc::ENOMEM), Err(NftError::Receive(_))));
        assert!(matches!(end(NLMSG_ERROR, libc::EPERM), Err(NftError::Receive(_))));
    }

    #[test]
    fn messages_are_read_until_one_is_cut() {
        let mut bytes = Vec::new();
        frame(&mut bytes, message_type(msg::NEWTABLE), 3, 41, 1, 0, |out| {
            Attr::text(1, "gatepost").encode(out);
        });
        frame(&mut bytes, message_type(msg::NEWCHAIN), 3, 42, 1, 0, |_| {});
        let found: Vec<(u8, u32)> =
            Messages(&bytes).map(|found| (found.object(), found.sequence)).collect();
        assert_eq!(found, [(msg::NEWTABLE, 41), (msg::NEWCHAIN, 42)]);
        assert_eq!(Messages(&bytes[..bytes.len() - 1]).count(), 1);
        assert_eq!(Messages(&[255; 7]).count(), 0);
    }
}
