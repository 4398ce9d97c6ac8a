//! Netlink attributes: written as a tree, read as an iterator, compared with what was read back.

use super::sys::{NLA_F_NESTED, NLA_TYPE_MASK};

const HEADER: usize = 4;

/// One attribute to send.
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
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        Self::bytes(kind, bytes)
    }

    pub fn nest(kind: u16, inner: Vec<Self>) -> Self {
        Self { kind, value: Value::Nest(inner) }
    }

    /// Appends the attribute, padded to four bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match &self.value {
            Value::Bytes(bytes) => put(out, self.kind, bytes),
            Value::Nest(inner) => {
                nested(out, self.kind, |out| inner.iter().for_each(|attr| attr.encode(out)));
            }
        }
    }

    /// Whether `payload`, read back from the kernel, says the same as this attribute.
    fn says(&self, payload: &[u8]) -> bool {
        match &self.value {
            Value::Bytes(bytes) => bytes == payload,
            Value::Nest(inner) => same(inner, payload),
        }
    }
}

/// Whether what was read back says the same as what was sent: every attribute we sent is there and
/// equal, and every other one is zero, which is the kernel's default for all that we leave out.
pub fn same(sent: &[Attr], dumped: &[u8]) -> bool {
    let all_there =
        sent.iter().all(|attr| find(dumped, attr.kind).is_some_and(|found| attr.says(found)));
    all_there
        && Attrs(dumped).all(|(kind, payload)| {
            sent.iter().any(|attr| attr.kind == kind) || payload.iter().all(|byte| *byte == 0)
        })
}

/// Appends one attribute.
pub fn put(out: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len() + HEADER).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds those which `fill` appends.
pub fn nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    fill(out);
    let len = length(out.len() - start);
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

/// The length field has 16 bits; every list of ours is cut long before. The kernel takes none of 0.
fn length(len: usize) -> u16 {
    u16::try_from(len).unwrap_or_default()
}

/// Walks over attributes as type (without flags) and payload. Stops at the first malformed one.
#[derive(Clone)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (header, _) = self.0.split_first_chunk::<HEADER>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// The payload of the first attribute of this type.
pub fn find(attrs: &[u8], kind: u16) -> Option<&[u8]> {
    Attrs(attrs).find_map(|(found, payload)| (found == kind).then_some(payload))
}

/// The payload at the end of a path of nested attributes.
pub fn find_in<'a>(attrs: &'a [u8], path: &[u16]) -> Option<&'a [u8]> {
    path.iter().try_fold(attrs, |attrs, kind| find(attrs, *kind))
}

/// A text without its ending zero byte.
pub fn find_text(attrs: &[u8], kind: u16) -> Option<&str> {
    let payload = find(attrs, kind)?;
    std::str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(payload)).ok()
}

pub fn find_be32(attrs: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(attrs, kind)?.try_into().ok()?))
}

pub fn find_be64(attrs: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(find(attrs, kind)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(attrs: &[Attr]) -> Vec<u8> {
        let mut out = Vec::new();
        attrs.iter().for_each(|attr| attr.encode(&mut out));
        out
    }

    #[test]
    fn what_is_written_is_read() {
        let attrs = [
            Attr::text(1, "gatepost"),
            Attr::nest(4, vec![Attr::be32(1, 7), Attr::be64(2, 1 << 40)]),
        ];
        let bytes = encoded(&attrs);
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(find_text(&bytes, 1), Some("gatepost"));
        let inner = find(&bytes, 4).unwrap();
        assert_eq!(find_be32(inner, 1), Some(7));
        assert_eq!(find_be64(inner, 2), Some(1 << 40));
        assert_eq!(find_in(&bytes, &[4, 1]), Some(&[0, 0, 0, 7][..]));
        assert!(find(&bytes, 9).is_none());
    }

    #[test]
    fn a_difference_in_any_place_is_seen() {
        let sent = [Attr::be32(1, 7), Attr::nest(2, vec![Attr::be32(1, 8)])];
        let dumped = |more: &[Attr]| encoded(&[&sent[..], more].concat());
        assert!(same(&sent, &dumped(&[])));
        assert!(same(&sent, &dumped(&[Attr::be32(3, 0)])), "defaults may be added");
        assert!(!same(&sent, &dumped(&[Attr::be32(3, 1)])), "something else was added");
        assert!(!same(&sent, &encoded(&sent[..1])), "something is missing");
        let other = [Attr::be32(1, 7), Attr::nest(2, vec![Attr::be32(1, 9)])];
        assert!(!same(&sent, &encoded(&other)), "something deep within is different");
    }

    #[test]
    fn malformed_attributes_end_the_walk() {
        assert_eq!(Attrs(&[200, 0, 1, 0, 1, 2]).count(), 0);
        assert_eq!(Attrs(&[2, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs(&[1]).count(), 0);
    }
}
