//! Netlink attributes: read in place, and written. Pure.
//!
//! A length that does not fit, a value of the wrong size and a missing attribute are errors: taken for
//! the end of a list, they would hide the rest of it.

use super::error::{Defect, NetlinkError, Place};

const HEADER: usize = 4;
pub(crate) const NLA_F_NESTED: u16 = 0x8000;
/// Masks the flags out of an attribute's type.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The attributes of a message, or those inside an attribute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    bytes: &'a [u8],
    place: Place,
}

impl<'a> Attributes<'a> {
    pub const fn new(bytes: &'a [u8], place: Place) -> Self {
        Self { bytes, place }
    }

    /// The first attribute of this type.
    pub fn find(mut self, kind: u16) -> Result<Option<Attribute<'a>>, NetlinkError> {
        self.find_map(|attribute| match attribute {
            Ok(attribute) if attribute.kind != kind => None,
            found => Some(found),
        })
        .transpose()
    }

    /// The first attribute of this type, which the kernel always sends.
    pub fn require(self, kind: u16) -> Result<Attribute<'a>, NetlinkError> {
        let place = self.place;
        let missing = || NetlinkError::Malformed { place, defect: Defect::Missing(kind) };
        self.find(kind)?.ok_or_else(missing)
    }

    /// The attribute at the end of a path of nested attributes.
    pub fn find_in(self, path: &[u16]) -> Result<Option<Attribute<'a>>, NetlinkError> {
        let Some((kind, rest)) = path.split_first() else { return Ok(None) };
        match self.find(*kind)? {
            Some(found) if !rest.is_empty() => found.nested().find_in(rest),
            found => Ok(found),
        }
    }

    /// The whole is not what it must be, for example "a prefix".
    pub const fn malformed(&self, wanted: &'static str) -> NetlinkError {
        NetlinkError::Malformed { place: self.place, defect: Defect::Not(wanted) }
    }

    /// After an error nothing is left.
    fn broken(&mut self, place: Place, defect: Defect) -> NetlinkError {
        self.bytes = &[];
        NetlinkError::Malformed { place, defect }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, NetlinkError>;

    /// The last attribute of a list may lack its padding, as for the kernel (`nla_next`).
    fn next(&mut self) -> Option<Self::Item> {
        let left = self.bytes.len();
        if left == 0 {
            return None;
        }
        let Some((header, _)) = self.bytes.split_first_chunk::<HEADER>() else {
            return Some(Err(self.broken(self.place, Defect::TruncatedHeader { left })));
        };
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let place = self.place.within(kind);
        if len < HEADER {
            return Some(Err(self.broken(place, Defect::ShortLength { len })));
        }
        let Some(value) = self.bytes.get(HEADER..len) else {
            return Some(Err(self.broken(place, Defect::PastEnd { len, left })));
        };
        self.bytes = self.bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(Attribute { kind, value, place }))
    }
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attribute<'a> {
    /// The type without its flag bits.
    pub kind: u16,
    pub value: &'a [u8],
    place: Place,
}

impl<'a> Attribute<'a> {
    pub const fn nested(self) -> Attributes<'a> {
        Attributes::new(self.value, self.place)
    }

    /// The value, of exactly this many bytes.
    pub fn fixed<const N: usize>(&self) -> Result<[u8; N], NetlinkError> {
        self.array().copied()
    }

    /// The value, of exactly this many bytes, where it is.
    pub fn array<const N: usize>(&self) -> Result<&'a [u8; N], NetlinkError> {
        let size = Defect::Size { found: self.value.len(), expected: N };
        self.value.try_into().map_err(|_| self.malformed(size))
    }

    pub fn u8(&self) -> Result<u8, NetlinkError> {
        self.fixed().map(u8::from_ne_bytes)
    }

    pub fn u16(&self) -> Result<u16, NetlinkError> {
        self.fixed().map(u16::from_ne_bytes)
    }

    pub fn u32(&self) -> Result<u32, NetlinkError> {
        self.fixed().map(u32::from_ne_bytes)
    }

    pub fn u64(&self) -> Result<u64, NetlinkError> {
        self.fixed().map(u64::from_ne_bytes)
    }

    /// A number in network byte order.
    pub fn be32(&self) -> Result<u32, NetlinkError> {
        self.fixed().map(u32::from_be_bytes)
    }

    /// A number in network byte order.
    pub fn be64(&self) -> Result<u64, NetlinkError> {
        self.fixed().map(u64::from_be_bytes)
    }

    /// A text without the zero byte that ends it.
    pub fn text(&self) -> Result<&'a str, NetlinkError> {
        let text = self.value.strip_suffix(&[0]).unwrap_or(self.value);
        std::str::from_utf8(text).map_err(|_| self.malformed(Defect::Not("UTF-8")))
    }

    /// A text that may hold anything; what is not UTF-8 is replaced.
    pub fn text_lossy(&self) -> String {
        String::from_utf8_lossy(self.value).trim_end_matches('\0').to_owned()
    }

    pub const fn malformed(&self, defect: Defect) -> NetlinkError {
        NetlinkError::Malformed { place: self.place, defect }
    }
}

/// Appends an attribute, padded to four bytes.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&length(value.len() + HEADER).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Appends an attribute that holds those which `fill` appends.
pub(crate) fn put_nested(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    fill(out);
    let len = length(out.len() - start);
    out[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

/// The length field has 16 bits. Every list of ours is split long before it is full, and the kernel
/// refuses a length of 0.
fn length(len: usize) -> u16 {
    u16::try_from(len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Attributes<'_> {
        Attributes::new(bytes, Place::of("TEST"))
    }

    /// The defects of a list, in words.
    fn defect(bytes: &[u8]) -> String {
        read(bytes).find_map(Result::err).map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, b"wg0\0");
        put_nested(&mut bytes, 4, |out| {
            put(out, 1, &7u32.to_be_bytes());
            put(out, 2, &(1u64 << 40).to_be_bytes());
        });
        assert_eq!(bytes.len() % 4, 0);
        let attributes = read(&bytes);
        assert_eq!(attributes.require(1).unwrap().text(), Ok("wg0"));
        let inner = attributes.require(4).unwrap().nested();
        assert_eq!(inner.require(1).unwrap().be32(), Ok(7));
        assert_eq!(inner.require(2).unwrap().be64(), Ok(1 << 40));
        assert_eq!(attributes.find_in(&[4, 1]).unwrap().unwrap().value, [0, 0, 0, 7]);
        assert!(attributes.find(9).unwrap().is_none());
    }

    #[test]
    fn odd_lengths_are_padded_and_the_last_padding_may_be_missing() {
        let bytes = [5, 0, 1, 0x80, 9, 0, 0, 0, 7, 0, 2, 0, 1, 2, 3];
        let found: Vec<_> =
            read(&bytes).map(Result::unwrap).map(|found| (found.kind, found.value)).collect();
        assert_eq!(found, [(1, &[9][..]), (2, &[1, 2, 3][..])]);
        assert_eq!(
            defect(&[5, 0, 1, 0, 9, 0, 0]),
            "",
            "padding that is cut short ends the list, as in the kernel"
        );
    }

    #[test]
    fn truncated_header_is_an_error() {
        let error = "the kernel sent a malformed TEST: 3 bytes are left, too few for a header";
        assert_eq!(defect(&[5, 0, 1]), error);
        assert_eq!(defect(&[4, 0, 1, 0, 8, 0, 2]), error, "after a whole attribute");
    }

    #[test]
    fn attribute_length_below_its_header_is_an_error() {
        for len in 0..4 {
            let error = format!(
                "the kernel sent a malformed TEST, attribute 1: its length of {len} bytes is below \
                 that of its header"
            );
            assert_eq!(defect(&[len, 0, 1, 0]), error);
        }
    }

    #[test]
    fn attribute_length_past_the_end_is_an_error() {
        assert_eq!(
            defect(&[9, 0, 7, 0, 1, 2, 3, 4]),
            "the kernel sent a malformed TEST, attribute 7: its length of 9 bytes goes past the \
             end: 8 are left"
        );
    }

    #[test]
    fn wrong_value_size_is_an_error_that_names_the_path() {
        let mut bytes = Vec::new();
        put_nested(&mut bytes, 8, |out| put_nested(out, 0, |out| put(out, 6, &[0; 3])));
        let found = read(&bytes).find_in(&[8, 0, 6]).unwrap().unwrap();
        assert_eq!(
            found.u32().unwrap_err().to_string(),
            "the kernel sent a malformed TEST, attribute 8/0/6: its value has 3 bytes instead of 4"
        );
        assert!(found.u16().is_err() && found.u64().is_err() && found.fixed::<3>().is_ok());
    }

    #[test]
    fn missing_attribute_is_an_error() {
        let mut bytes = Vec::new();
        put_nested(&mut bytes, 8, |_| {});
        let inner = read(&bytes).require(8).unwrap().nested();
        assert_eq!(
            inner.require(3).unwrap_err().to_string(),
            "the kernel sent a malformed TEST, attribute 8: it lacks attribute 3"
        );
    }

    #[test]
    fn a_list_ends_after_its_first_error() {
        assert_eq!(read(&[200, 0, 1, 0, 1, 2, 3, 4]).count(), 1);
    }
}
