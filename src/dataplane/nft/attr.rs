//! Netlink attributes as a tree: what is sent, and what was read back to be compared with it.

use crate::dataplane::netlink::{Attribute, put, put_nested};

/// One attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    kind: u16,
    value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Bytes(Vec<u8>),
    Nest(Vec<Attr>),
}

impl Attr {
    pub fn bytes(kind: u16, bytes: impl Into<Vec<u8>>) -> Self {
        Self { kind, value: Value::Bytes(bytes.into()) }
    }

    /// A number in network byte order, as nf_tables wants nearly all of them.
    pub fn be32(kind: u16, number: u32) -> Self {
        Self::bytes(kind, number.to_be_bytes())
    }

    pub fn be64(kind: u16, number: u64) -> Self {
        Self::bytes(kind, number.to_be_bytes())
    }

    /// A text with the zero byte that ends it.
    pub fn text(kind: u16, text: &str) -> Self {
        Self::bytes(kind, [text.as_bytes(), &[0]].concat())
    }

    pub fn nest(kind: u16, inner: Vec<Self>) -> Self {
        Self { kind, value: Value::Nest(inner) }
    }

    /// One that was read and holds no other attributes.
    pub fn leaf(read: &Attribute<'_>) -> Self {
        Self::bytes(read.kind, read.value)
    }

    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// Appends the attribute, padded to four bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.value {
            Value::Bytes(bytes) => put(out, self.kind, bytes),
            Value::Nest(inner) => put_nested(out, self.kind, |out| encode_all(inner, out)),
        }
    }

    /// Whether the value of an attribute that was read is exactly what this one encodes.
    pub fn is_encoded_as(&self, value: &[u8]) -> bool {
        match &self.value {
            Value::Bytes(bytes) => bytes == value,
            Value::Nest(inner) => {
                let mut encoded = Vec::new();
                encode_all(inner, &mut encoded);
                encoded == value
            }
        }
    }

    /// Whether `found`, read back from the kernel, means the same.
    fn means(&self, found: &Self) -> bool {
        match (&self.value, &found.value) {
            (Value::Bytes(sent), Value::Bytes(found)) => sent == found,
            (Value::Nest(sent), Value::Nest(found)) => same(sent, found),
            _ => false,
        }
    }

    /// The kernel's default for everything that we leave out.
    fn is_zero(&self) -> bool {
        matches!(&self.value, Value::Bytes(bytes) if bytes.iter().all(|byte| *byte == 0))
    }
}

/// Appends attributes.
pub fn encode_all(attrs: &[Attr], out: &mut Vec<u8>) {
    attrs.iter().for_each(|attr| attr.encode(out));
}

/// Whether what was read back means what was sent: every attribute that we sent is there and equal,
/// and every other one is zero.
pub fn same(sent: &[Attr], found: &[Attr]) -> bool {
    let by_kind = |attrs: &[Attr], kind| attrs.iter().position(|attr| attr.kind == kind);
    sent.iter().all(|attr| by_kind(found, attr.kind).is_some_and(|at| attr.means(&found[at])))
        && found.iter().all(|attr| by_kind(sent, attr.kind).is_some() || attr.is_zero())
}

/// The bytes at the end of a path of nested attributes.
pub fn find<'a>(attrs: &'a [Attr], path: &[u16]) -> Option<&'a [u8]> {
    let (kind, rest) = path.split_first()?;
    match &attrs.iter().find(|attr| attr.kind == *kind)?.value {
        Value::Bytes(bytes) => rest.is_empty().then_some(bytes),
        Value::Nest(inner) => find(inner, rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_path() {
        let attrs = [Attr::text(1, "gatepost"), Attr::nest(4, vec![Attr::be32(1, 7)])];
        assert_eq!(find(&attrs, &[1]), Some(&b"gatepost\0"[..]));
        assert_eq!(find(&attrs, &[4, 1]), Some(&[0, 0, 0, 7][..]));
        assert_eq!([find(&attrs, &[4]), find(&attrs, &[1, 1]), find(&attrs, &[9])], [None; 3]);
    }

    #[test]
    fn a_difference_in_any_place_is_seen() {
        let sent = [Attr::be32(1, 7), Attr::nest(2, vec![Attr::be32(1, 8)])];
        let found = |more: &[Attr]| [&sent[..], more].concat();
        assert!(same(&sent, &found(&[])));
        assert!(same(&sent, &found(&[Attr::be32(3, 0)])), "defaults may be added");
        assert!(!same(&sent, &found(&[Attr::be32(3, 1)])), "another value was added");
        assert!(!same(&sent, &sent[..1]), "an attribute is missing");
        let other = [Attr::be32(1, 7), Attr::nest(2, vec![Attr::be32(1, 9)])];
        assert!(!same(&sent, &other), "a nested value is different");
        assert!(!same(&sent, &[Attr::be32(1, 7), Attr::be32(2, 8)]), "it is not nested");
    }

    #[test]
    fn an_encoded_value_is_compared_byte_by_byte() {
        let attr = Attr::nest(2, vec![Attr::be32(1, 8)]);
        let mut encoded = Vec::new();
        attr.encode(&mut encoded);
        assert!(attr.is_encoded_as(&encoded[4..]) && !attr.is_encoded_as(&encoded[8..]));
    }
}
