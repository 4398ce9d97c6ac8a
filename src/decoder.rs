//! A decoder, as the fuzzer calls it: a function of bytes that come from outside.

/// A decoder under a name, which is also the name of its folder in `tests/fuzz/corpus`.
#[derive(Debug, Clone, Copy)]
pub struct Decoder {
    pub name: &'static str,
    decode: fn(&[u8]) -> Outcome,
}

/// The result of a decoder. Anything else, such as a panic, is a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Read,
    Refused,
}

impl Decoder {
    pub(crate) const fn new(name: &'static str, decode: fn(&[u8]) -> Outcome) -> Self {
        Self { name, decode }
    }

    /// Decodes bytes and drops what they say.
    #[must_use]
    pub fn decode(&self, bytes: &[u8]) -> Outcome {
        (self.decode)(bytes)
    }
}

impl Outcome {
    /// For decoders of text: what is no UTF-8 is refused before it reaches them.
    pub(crate) fn of_text<T, E>(bytes: &[u8], decode: impl FnOnce(&str) -> Result<T, E>) -> Self {
        std::str::from_utf8(bytes).map_or(Self::Refused, |text| decode(text).into())
    }
}

impl<T, E> From<Result<T, E>> for Outcome {
    fn from(result: Result<T, E>) -> Self {
        if result.is_ok() { Self::Read } else { Self::Refused }
    }
}
