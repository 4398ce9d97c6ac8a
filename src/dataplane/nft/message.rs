//! Messages of nf_tables: nfnetlink's header and attributes in a netlink message.

use super::sys::NFNL_SUBSYS_NFTABLES;
use crate::dataplane::netlink::{Attributes, Message, NetlinkError, put_message};

/// The message types by number, as the kernel's headers name them.
const NAMES: [&str; 17] = [
    "NFT_MSG_NEWTABLE",
    "NFT_MSG_GETTABLE",
    "NFT_MSG_DELTABLE",
    "NFT_MSG_NEWCHAIN",
    "NFT_MSG_GETCHAIN",
    "NFT_MSG_DELCHAIN",
    "NFT_MSG_NEWRULE",
    "NFT_MSG_GETRULE",
    "NFT_MSG_DELRULE",
    "NFT_MSG_NEWSET",
    "NFT_MSG_GETSET",
    "NFT_MSG_DELSET",
    "NFT_MSG_NEWSETELEM",
    "NFT_MSG_GETSETELEM",
    "NFT_MSG_DELSETELEM",
    "NFT_MSG_NEWGEN",
    "NFT_MSG_GETGEN",
];

/// A message about an object.
pub struct ObjectMessage<'a> {
    /// What is said about which kind of object: a number of [`msg`](super::sys::msg).
    pub kind: u8,
    /// `NFPROTO_*`
    pub family: u8,
    pub attributes: Attributes<'a>,
}

impl<'a> ObjectMessage<'a> {
    pub fn read(message: &Message<'a>) -> Result<Self, NetlinkError> {
        let kind = message.kind as u8;
        let name = NAMES.get(usize::from(kind)).copied().unwrap_or("message of nf_tables");
        let ([family, ..], attributes) = message.split::<4>(name)?;
        Ok(Self { kind, family: *family, attributes })
    }
}

/// A message's type: the subsystem and the object.
pub const fn message_type(kind: u8) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | kind as u16
}

/// Appends a message.
pub fn put_object(
    out: &mut Vec<u8>,
    (kind, flags, sequence): (u16, u16, u32),
    (family, resource): (u8, u16),
    fill: impl FnOnce(&mut Vec<u8>),
) {
    put_message(out, kind, flags, sequence, |out| {
        out.extend_from_slice(&header(family, resource));
        fill(out);
    });
}

/// `struct nfgenmsg`
pub const fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::messages;
    use crate::dataplane::nft::sys::msg;

    #[test]
    fn an_error_names_the_message() {
        let read = |kind: u8, payload: &[u8]| {
            let kind = message_type(kind);
            let message = Message { kind, flags: 0, sequence: 1, port: 0, payload };
            ObjectMessage::read(&message).map(|object| object.attributes.count())
        };
        assert_eq!(read(msg::NEWGEN, &[0; 4]), Ok(0));
        assert_eq!(
            read(msg::NEWSETELEM, &[1, 0]).unwrap_err().to_string(),
            "the kernel sent a malformed NFT_MSG_NEWSETELEM: 2 bytes are left, too few for a header"
        );
    }

    #[test]
    fn messages_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        put_object(&mut bytes, (message_type(msg::NEWCHAIN), 3, 42), (1, 10), |_| {});
        let message = messages(&bytes).next().unwrap().unwrap();
        assert_eq!(message.payload, [1, 0, 0, 10], "the resource is in network byte order");
        let object = ObjectMessage::read(&message).unwrap();
        assert_eq!((object.kind, object.family, message.sequence), (msg::NEWCHAIN, 1, 42));
    }
}
