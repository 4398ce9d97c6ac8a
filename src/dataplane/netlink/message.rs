//! Netlink messages and attributes, read where they lie. Pure.

use netlink_packet_core::NetlinkBuffer;
use nix::errno::Errno;

use super::NetlinkError;

const ERROR_CODE_BYTES: usize = 4;
const MESSAGE_HEADER_BYTES: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation (include/uapi/linux/netlink.h).
const ERROR_ATTRIBUTE_MESSAGE: u16 = 1;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// The attributes of a message or of a nested attribute, as type (without its flag bits) and value.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<(u16, &[u8]), NetlinkError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let whole = rest;
        rest = &[];
        let Some((len, kind)) = word(whole, 0).zip(word(whole, 2)) else {
            return Some(Err(NetlinkError::Malformed("half an attribute")));
        };
        let Some(value) = whole.get(4..len.into()) else {
            return Some(Err(NetlinkError::Malformed("an attribute of wrong length")));
        };
        rest = whole.get(usize::from(len).next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok((kind & 0x3fff, value)))
    })
}

/// An attribute's value as bytes of a fixed length.
pub(crate) fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], NetlinkError> {
    let start = value.get(..N).and_then(|start| start.try_into().ok());
    start.ok_or(NetlinkError::Malformed("a value that is too short"))
}

/// A message without its header.
pub(super) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// What an `NLMSG_ERROR` or `NLMSG_DONE` says: zero is success.
    pub fn verdict(&self) -> Result<Result<(), NetlinkError>, NetlinkError> {
        if self.payload.is_empty() {
            return Ok(Ok(())); // `NLMSG_DONE` of kernels before 4.6
        }
        let code = i32::from_ne_bytes(fixed(self.payload)?);
        if code == 0 {
            return Ok(Ok(()));
        }
        let errno = Errno::from_raw(-code);
        Ok(Err(NetlinkError::Refused { errno, message: self.explanation() }))
    }

    fn explanation(&self) -> String {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return String::new();
        }
        let echoed = match self.kind {
            NLMSG_DONE => 0,
            _ if self.flags & NLM_F_CAPPED != 0 => MESSAGE_HEADER_BYTES,
            _ => self
                .payload
                .get(ERROR_CODE_BYTES..)
                .and_then(|echo| fixed(echo).ok())
                .map_or(0, |len| (u32::from_ne_bytes(len) as usize).next_multiple_of(4)),
        };
        let texts = self.payload.get(ERROR_CODE_BYTES + echoed..).unwrap_or(&[]);
        let text = attributes(texts).flatten().find(|(kind, _)| *kind == ERROR_ATTRIBUTE_MESSAGE);
        text.map_or_else(String::new, |(_, text)| {
            String::from_utf8_lossy(text).trim_end_matches('\0').to_owned()
        })
    }
}

/// The messages of a datagram.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, NetlinkError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Ok(buffer) = NetlinkBuffer::new_checked(rest) else {
            rest = &[];
            return Some(Err(NetlinkError::Malformed("half a message")));
        };
        rest = rest.get((buffer.length() as usize).next_multiple_of(4)..).unwrap_or(&[]);
        Some(Ok(Message {
            kind: buffer.message_type(),
            flags: buffer.flags(),
            sequence: buffer.sequence_number(),
            payload: buffer.payload(),
        }))
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_walked_and_a_broken_one_is_an_error() {
        let bytes = [5, 0, 1, 0x80, 9, 0, 0, 0, 8, 0, 2, 0, 1, 2, 3, 4];
        let walked: Vec<_> = attributes(&bytes).map(Result::unwrap).collect();
        assert_eq!(walked, [(1, &[9][..]), (2, &[1, 2, 3, 4][..])]);
        assert!(attributes(&bytes[..3]).next().unwrap().is_err());
        assert!(attributes(&[3, 0, 1, 0]).next().unwrap().is_err());
        assert!(attributes(&[8, 0, 1, 0, 7]).next().unwrap().is_err());
    }

    #[test]
    fn the_kernels_explanation_is_part_of_the_error() {
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend([0; MESSAGE_HEADER_BYTES]);
        payload.extend([9, 0, 1, 0, b't', b'a', b'k', b'n', 0, 0, 0, 0]);
        let flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let message = Message { kind: NLMSG_ERROR, flags, sequence: 1, payload: &payload };
        let error = message.verdict().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the kernel says EEXIST: File exists: takn");
        assert_eq!(error.refusal(), Some(Errno::EEXIST));
    }
}
