//! The socket to nf_tables: commits a batch, dumps and gets objects, and reads the generation.

use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;

use super::attr::{Attr, encode_all};
use super::batch::{Batch, Finished};
use super::error::NftError;
use super::message::{ObjectMessage, header, message_type};
use super::sys::{NFPROTO_INET, generation, msg};
use crate::dataplane::netlink::{Attributes, Channel, Encoded, NetlinkError};

/// One socket to nf_tables of the network namespace it was opened in.
pub struct NftSocket(Channel);

impl NftSocket {
    pub fn open() -> Result<Self, NftError> {
        Channel::open(NETLINK_NETFILTER).map(Self).map_err(NftError::Open)
    }

    /// The socket's port, which the events of our own changes carry.
    pub const fn port(&self) -> u32 {
        self.0.port()
    }

    /// Begins a batch, which must be committed before anything else is asked.
    pub fn begin(&self, expected: Option<u32>) -> Batch {
        Batch::new(self.0.next_sequence(), expected)
    }

    /// Sends a batch, which the kernel has applied or refused as a whole when this returns.
    pub fn commit(&mut self, batch: &Finished) -> Result<(), NftError> {
        let bytes = batch.bytes().len();
        let sent = self.0.send_batch(batch.bytes(), batch.first(), batch.last());
        let acks = sent.map_err(|error| match error {
            NetlinkError::Socket {
                call: "send",
                errno: errno @ (Errno::EMSGSIZE | Errno::ENOMEM | Errno::ENOBUFS),
            } => NftError::TooLarge { bytes, errno },
            source => NftError::Send { bytes, source },
        })?;
        match acks.refused {
            Some((sequence, errno)) => {
                Err(NftError::Refused { request: batch.describe(sequence), errno })
            }
            None if acks.acknowledged => Ok(()),
            None => Err(NftError::NoAnswer),
        }
    }

    /// Dumps objects of one kind. `read` gets the attributes of each.
    ///
    /// A set, chain or table that is not there has nothing to dump. When the ruleset changes during
    /// the dump this is [`NftError::Changed`]: a caller that reads several things of one generation
    /// must read all of them again.
    pub fn dump<T: Default>(
        &mut self,
        kind: u8,
        attrs: &[Attr],
        read: impl FnMut(&mut T, Attributes<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NftError> {
        self.dump_of(NFPROTO_INET, kind, attrs, read)
    }

    /// Dumps objects of one kind of any family, `NFPROTO_*`.
    pub fn dump_of<T: Default>(
        &mut self,
        family: u8,
        kind: u8,
        attrs: &[Attr],
        mut read: impl FnMut(&mut T, Attributes<'_>) -> Result<(), NetlinkError>,
    ) -> Result<T, NftError> {
        let body = body(family, attrs);
        let request = Encoded { kind: message_type(kind), body: &body };
        let dumped = self.0.dump_once(&request, |found, message| {
            read(found, ObjectMessage::read(message)?.attributes)
        });
        dumped.or_else(end_of_dump)
    }

    /// Reads one object; `None`: it is not there.
    pub fn get<T>(
        &mut self,
        kind: u8,
        attrs: &[Attr],
        mut read: impl FnMut(Attributes<'_>) -> Result<T, NetlinkError>,
    ) -> Result<Option<T>, NftError> {
        let body = body(NFPROTO_INET, attrs);
        let request = Encoded { kind: message_type(kind), body: &body };
        let found = self.0.get(&request, |found, message| {
            *found = Some(read(ObjectMessage::read(message)?.attributes)?);
            Ok(())
        });
        match found {
            Ok(None) => Err(NftError::NoAnswer),
            Ok(found) => Ok(found),
            Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The number that every change of any ruleset of this namespace raises.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        let id =
            self.get(msg::GETGEN, &[], |attributes| attributes.require(generation::ID)?.be32());
        id?.ok_or(NftError::NoAnswer)
    }
}

fn body(family: u8, attrs: &[Attr]) -> Vec<u8> {
    let mut body = header(family, 0).to_vec();
    encode_all(attrs, &mut body);
    body
}

/// What a dump gave that did not end well. The kernel refuses to dump what is not there, which gives
/// all there is; what goes away meanwhile ends the dump early.
fn end_of_dump<T: Default>(error: NetlinkError) -> Result<T, NftError> {
    match error {
        NetlinkError::Refused { errno: Errno::ENOENT, .. } => Ok(T::default()),
        NetlinkError::Interrupted { .. }
        | NetlinkError::Incomplete { errno: Errno::ENOENT | Errno::EINTR | Errno::EAGAIN } => {
            Err(NftError::Changed)
        }
        error => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_that_fails_at_its_end_is_not_whole() {
        let refused = |errno| NetlinkError::Refused { errno, message: String::new() };
        assert!(matches!(end_of_dump::<u8>(refused(Errno::ENOENT)), Ok(0)));
        for errno in [Errno::ENOENT, Errno::EINTR, Errno::EAGAIN] {
            let ended = end_of_dump::<u8>(NetlinkError::Incomplete { errno });
            assert!(matches!(ended, Err(NftError::Changed)), "{errno}");
        }
        let interrupted = NetlinkError::Interrupted { tries: 1 };
        assert!(matches!(end_of_dump::<u8>(interrupted), Err(NftError::Changed)));
        let ended = end_of_dump::<u8>(NetlinkError::Incomplete { errno: Errno::ENOMEM });
        assert!(matches!(ended, Err(NftError::Read(_))));
        assert!(matches!(end_of_dump::<u8>(refused(Errno::EINVAL)), Err(NftError::Read(_))));
        assert!(matches!(end_of_dump::<u8>(refused(Errno::EPERM)), Err(NftError::Open(_))));
    }
}
