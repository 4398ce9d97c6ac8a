//! The netlink socket: sends a batch and collects its answers, dumps, and reads the generation.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::attr::{Attr, find_be32};
use super::batch::Finished;
use super::error::NftError;
use super::message::{Messages, frame, message_type};
use super::sys::{
    NETLINK_NETFILTER, NFPROTO_INET, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE,
    NLMSG_ERROR, generation, msg,
};

/// The kernel fills at most 32 KiB of a dump at a time.
const RECEIVE_BYTES: usize = 64 * 1024;

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
