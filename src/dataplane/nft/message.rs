//! Messages of nf_tables: netlink's header, nfnetlink's, and attributes.

use std::io;

use nix::libc;

use super::error::NftError;
use super::sys::{NFNL_SUBSYS_NFTABLES, NLMSG_DONE, NLMSG_ERROR};

const NETLINK_HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const HEADERS: usize = NETLINK_HEADER + FAMILY_HEADER;

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
    pub fn end_of_dump(&self) -> Result<(), NftError> {
        match (self.kind, self.error()) {
            (NLMSG_DONE, _) if self.head.is_empty() => Ok(()), // kernels before 4.6
            (_, 0) | (NLMSG_ERROR, libc::ENOENT) => Ok(()),
            (_, libc::ENOENT | libc::EINTR | libc::EAGAIN) => Err(NftError::Changed),
            (_, errno) => Err(NftError::Receive(io::Error::from_raw_os_error(errno))),
        }
    }

    /// An error's number, positive; 0: an acknowledgement.
    pub fn error(&self) -> i32 {
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

/// A message's type: the subsystem and the object.
pub const fn message_type(kind: u8) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind as u16
}

/// Appends one netlink message with the nfnetlink header.
pub fn frame(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_ne_bytes());
    debug_assert_eq!(out.len(), start + HEADERS);
    fill(out);
    // Far from 4 GiB, as attributes are from 64 KiB; the kernel takes no message of length 0.
    let len = u32::try_from(out.len() - start).unwrap_or_default();
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::nft::attr::Attr;
    use crate::dataplane::nft::sys::msg;

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
