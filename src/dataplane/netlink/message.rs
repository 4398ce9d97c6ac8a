//! Netlink messages: read in place, and written. Pure.

use nix::errno::Errno;

use super::attribute::Attributes;
use super::error::{Defect, NetlinkError, Place};

const HEADER: usize = 16;
const ERROR_CODE_BYTES: usize = 4;
/// `NLMSGERR_ATTR_MSG`: the kernel's explanation (include/uapi/linux/netlink.h).
const ERROR_ATTRIBUTE_MESSAGE: u16 = 1;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;

/// One message without its header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// The port of the socket that caused it.
    pub port: u32,
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The fixed header of a message of this family, and the attributes behind it. `name` is the
    /// message's name in the kernel's headers, for errors.
    pub fn split<const N: usize>(
        &self,
        name: &'static str,
    ) -> Result<(&'a [u8; N], Attributes<'a>), NetlinkError> {
        let left = self.payload.len();
        let (header, body) = self
            .payload
            .split_first_chunk()
            .ok_or_else(|| malformed(name, Defect::TruncatedHeader { left }))?;
        Ok((header, Attributes::new(body, Place::of(name))))
    }

    /// Whether this ends an answer: an ack, a refusal, or the end of a dump.
    pub(in crate::dataplane) const fn is_end(&self) -> bool {
        matches!(self.kind, NLMSG_ERROR | NLMSG_DONE)
    }

    /// What such an end says. The outer error: it is malformed.
    pub(in crate::dataplane) fn ack(&self) -> Result<Result<(), NetlinkError>, NetlinkError> {
        let is_dump = self.kind == NLMSG_DONE;
        if is_dump && self.payload.is_empty() {
            return Ok(Ok(())); // kernels before 4.6
        }
        let name = if is_dump { "NLMSG_DONE" } else { "NLMSG_ERROR" };
        let left = self.payload.len();
        let code = self.payload.first_chunk::<ERROR_CODE_BYTES>();
        let code = code.ok_or_else(|| malformed(name, Defect::TruncatedHeader { left }))?;
        let errno = Errno::from_raw(i32::from_ne_bytes(*code).saturating_neg());
        Ok(match (*code, is_dump) {
            ([0, 0, 0, 0], _) => Ok(()),
            (_, true) => Err(NetlinkError::Incomplete { errno }),
            (_, false) => Err(NetlinkError::Refused { errno, message: self.explanation()? }),
        })
    }

    fn explanation(&self) -> Result<String, NetlinkError> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return Ok(String::new());
        }
        let echoed = match self.payload.get(ERROR_CODE_BYTES..).and_then(<[u8]>::first_chunk) {
            Some(len) if self.flags & NLM_F_CAPPED == 0 => u32::from_ne_bytes(*len) as usize,
            _ => HEADER,
        };
        let start = ERROR_CODE_BYTES + echoed.next_multiple_of(4);
        let attributes = self.payload.get(start..).unwrap_or_default();
        let text = Attributes::new(attributes, Place::of("NLMSG_ERROR"));
        let text = text.find(ERROR_ATTRIBUTE_MESSAGE)?;
        Ok(text.map(|text| text.text()).transpose()?.unwrap_or_default().to_owned())
    }
}

/// The messages of a datagram. Ends after a malformed one.
pub(crate) fn messages(datagram: &[u8]) -> impl Iterator<Item = Result<Message<'_>, NetlinkError>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut rest);
        Some(split_first(whole).map(|(message, others)| {
            rest = others;
            message
        }))
    })
}

fn split_first(datagram: &[u8]) -> Result<(Message<'_>, &[u8]), NetlinkError> {
    let left = datagram.len();
    let Some(header) = datagram.first_chunk::<HEADER>() else {
        return Err(malformed("nlmsghdr", Defect::TruncatedHeader { left }));
    };
    let word = |at: usize| {
        u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    let len = word(0) as usize;
    if len < HEADER {
        return Err(malformed("nlmsghdr", Defect::ShortLength { len }));
    }
    let payload = datagram.get(HEADER..len);
    let payload = payload.ok_or_else(|| malformed("nlmsghdr", Defect::PastEnd { len, left }))?;
    let message =
        Message { kind: half(4), flags: half(6), sequence: word(8), port: word(12), payload };
    Ok((message, datagram.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// Appends a message with the payload that `fill` appends.
pub(crate) fn put_message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    fill(out);
    // Far from 4 GiB, as attributes are from 64 KiB; the kernel refuses a length of 0.
    let len = u32::try_from(out.len() - start).unwrap_or_default();
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    out.resize(out.len().next_multiple_of(4), 0);
}

const fn malformed(message: &'static str, defect: Defect) -> NetlinkError {
    NetlinkError::Malformed { place: Place::of(message), defect }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Message<'_> {
        Message { kind, flags, sequence: 1, port: 0, payload }
    }

    #[test]
    fn messages_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 7, 3, 41, |out| out.extend_from_slice(&[1, 2, 3, 4, 5]));
        put_message(&mut bytes, 8, 4, 42, |_| {});
        let found: Vec<_> = messages(&bytes).map(Result::unwrap).collect();
        let fields = |message: &Message| (message.kind, message.flags, message.sequence);
        assert_eq!(found.iter().map(fields).collect::<Vec<_>>(), [(7, 3, 41), (8, 4, 42)]);
        assert_eq!(found[0].payload, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn malformed_messages_are_errors_and_not_the_end() {
        let mut bytes = Vec::new();
        put_message(&mut bytes, 7, 3, 41, |_| {});
        put_message(&mut bytes, 8, 3, 42, |out| out.extend_from_slice(&[1, 2, 3, 4]));
        let errors = |bytes: &[u8]| -> Vec<String> {
            messages(bytes).filter_map(Result::err).map(|error| error.to_string()).collect()
        };
        assert_eq!(
            errors(&bytes[..35]),
            ["the kernel sent a malformed nlmsghdr: its length of 20 bytes goes past the end: 19 \
              are left"]
        );
        assert_eq!(
            errors(&bytes[..20]),
            ["the kernel sent a malformed nlmsghdr: 4 bytes are left, too few for a header"]
        );
        bytes[0] = 15;
        assert_eq!(
            errors(&bytes),
            ["the kernel sent a malformed nlmsghdr: its length of 15 bytes is below that of its \
              header"]
        );
    }

    #[test]
    fn payload_shorter_than_its_header_is_an_error() {
        let error = message(16, 0, &[0; 3]).split::<16>("RTM_NEWLINK").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the kernel sent a malformed RTM_NEWLINK: 3 bytes are left, too few for a header"
        );
    }

    #[test]
    fn the_kernels_explanation_is_part_of_the_error() {
        let mut payload = (-17i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        payload.extend([9, 0, 1, 0, b't', b'a', b'k', b'n', 0, 0, 0, 0]);
        let flags = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let error = message(NLMSG_ERROR, flags, &payload).ack().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the kernel says EEXIST: File exists: takn");
        assert_eq!(error.refusal(), Some(Errno::EEXIST));
    }

    #[test]
    fn ack_without_a_code_is_an_error() {
        assert!(message(NLMSG_ERROR, 0, &[0; 3]).ack().is_err());
        assert!(message(NLMSG_ERROR, 0, &[]).ack().is_err());
        assert_eq!(message(NLMSG_DONE, 0, &[]).ack(), Ok(Ok(())), "kernels before 4.6");
    }
}
