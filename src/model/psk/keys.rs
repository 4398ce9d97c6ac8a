//! The keys that seal, and the file that lists them.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::model::policy::Quoted;
use crate::model::{KeyError, PresharedKey};

/// A key of XChaCha20-Poly1305.
pub(super) const KEY_BYTES: usize = 32;

/// Why a text is no key id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not 1 to 32 of a-z 0-9 _ -: {}", Quoted(.0))]
pub struct KeyIdError(Box<str>);

/// Which line of `psk_keys` is wrong, and why. Repeats no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("psk_keys, line {line}: {why}")]
pub struct PskKeysError {
    /// Counted from 1.
    pub line: usize,
    pub why: PskLineError,
}

/// Why a line of `psk_keys` is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PskLineError {
    #[error("is not \"key-id base64\"")]
    NotTwoWords,
    /// Does not repeat the word: with the words swapped it is the key.
    #[error("the first word is no key id: use 1 to 32 of a-z 0-9 _ -")]
    BadKeyId,
    #[error("the key of {key_id} {why}")]
    BadKey { key_id: KeyId, why: KeyError },
    #[error("key id {0} stands on an earlier line already")]
    Twice(KeyId),
}

/// Names a sealing key in every envelope made with it: 1 to 32 of `[a-z0-9_-]`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyId(Box<str>);

impl KeyId {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-');
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err(KeyIdError(text.into()))
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// The keys that envelopes are sealed with: the first seals, all open. None is a valid set: it
/// opens nothing.
#[derive(Debug, Default)]
pub struct PskKeys(pub(super) Vec<(KeyId, SealingKey)>);

#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct SealingKey(pub(super) [u8; KEY_BYTES]);

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(secret)")
    }
}

/// One `key-id base64` per line; blank lines and lines that begin with `#` do not count.
impl FromStr for PskKeys {
    type Err = PskKeysError;

    fn from_str(text: &str) -> Result<Self, PskKeysError> {
        let mut keys = Self::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if !line.is_empty() && !line.starts_with('#') {
                keys.add(line).map_err(|why| PskKeysError { line: index + 1, why })?;
            }
        }
        Ok(keys)
    }
}

impl PskKeys {
    /// The ids of the keys, the sealing one first.
    pub fn key_ids(&self) -> impl Iterator<Item = &KeyId> {
        self.0.iter().map(|(id, _)| id)
    }

    /// Nothing opens, nothing seals.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, line: &str) -> Result<(), PskLineError> {
        let mut words = line.split_whitespace();
        let (Some(key_id), Some(key), None) = (words.next(), words.next(), words.next()) else {
            return Err(PskLineError::NotTwoWords);
        };
        let key_id: KeyId = key_id.parse().map_err(|_| PskLineError::BadKeyId)?;
        if self.key_ids().any(|known| *known == key_id) {
            return Err(PskLineError::Twice(key_id));
        }
        // A sealing key is written like a WireGuard key and must not be all zero either.
        let key: PresharedKey =
            key.parse().map_err(|why| PskLineError::BadKey { key_id: key_id.clone(), why })?;
        self.0.push((key_id, SealingKey(*key.expose_bytes())));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "new gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=";

    #[test]
    fn a_wrong_line_is_named_and_no_key_is_repeated() {
        let error = |text: &str| text.parse::<PskKeys>().unwrap_err().to_string();
        assert_eq!(error("\nnew"), "psk_keys, line 2: is not \"key-id base64\"");
        assert_eq!(
            error(&[NEW, NEW].join("\n")),
            "psk_keys, line 2: key id new stands on an earlier line already"
        );
        assert_eq!(
            error("new c2VjcmV0"),
            "psk_keys, line 1: the key of new is 6 bytes of base64, not 32"
        );
        assert_eq!(
            error("gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE= new"),
            "psk_keys, line 1: the first word is no key id: use 1 to 32 of a-z 0-9 _ -"
        );
        assert!(!format!("{:?}", NEW.parse::<PskKeys>().unwrap()).contains("gIYD"));
    }
}
