//! WireGuard keys: 32 bytes, written as 44 characters of base64.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Why a text is not a key. Never repeats the text: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("is not base64: a key is 44 characters that end in '='")]
    NotBase64,
    #[error("is {0} bytes of base64, not 32")]
    WrongLength(usize),
    #[error("is all zero")]
    AllZero,
}

fn decode(text: &str) -> Result<[u8; 32], KeyError> {
    let mut bytes = [0u8; 48];
    let len = STANDARD.decode_slice(text, &mut bytes).map_err(|error| match error {
        base64::DecodeSliceError::OutputSliceTooSmall => KeyError::WrongLength(text.len() / 4 * 3),
        base64::DecodeSliceError::DecodeError(_) => KeyError::NotBase64,
    })?;
    let key: [u8; 32] = bytes[..len].try_into().map_err(|_| KeyError::WrongLength(len))?;
    bytes.zeroize();
    if key == [0; 32] { Err(KeyError::AllZero) } else { Ok(key) }
}

/// A peer's or a gateway's public key; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes 32 raw bytes.
    ///
    /// # Errors
    /// [`KeyError::AllZero`]: the kernel would take such a peer for no peer at all.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        if bytes == [0; 32] { Err(KeyError::AllZero) } else { Ok(Self(bytes)) }
    }

    /// The 32 raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

macro_rules! secret {
    ($(#[$doc:meta])+ $name:ident) => {
        $(#[$doc])+
        ///
        /// In one place however often it is cloned, and overwritten there when the last clone is
        /// dropped; none takes a pointer's place.
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(Arc<Zeroizing<[u8; 32]>>);

        impl $name {
            /// Takes 32 raw bytes.
            ///
            /// # Errors
            /// [`KeyError::AllZero`]: to WireGuard that means "no key".
            pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
                Self::copied_from(&bytes)
            }

            /// Like [`from_bytes`](Self::from_bytes), and leaves no copy on the stack.
            ///
            /// # Errors
            /// [`KeyError::AllZero`].
            pub fn copied_from(bytes: &[u8; 32]) -> Result<Self, KeyError> {
                if *bytes == [0; 32] { Err(KeyError::AllZero) } else { Ok(Self::of(bytes)) }
            }

            fn of(bytes: &[u8; 32]) -> Self {
                let mut place = Arc::new(Zeroizing::new([0; 32]));
                Arc::make_mut(&mut place).copy_from_slice(bytes);
                Self(place)
            }

            /// The 32 raw bytes. The caller keeps them from logs and errors.
            #[must_use]
            pub fn expose_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The base64 text, for the one file or command that must hold it.
            #[must_use]
            pub fn expose_text(&self) -> String {
                STANDARD.encode(self.expose_bytes())
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                decode(text).map(|bytes| Self::of(&Zeroizing::new(bytes)))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(secret)"))
            }
        }
    };
}

secret! {
    /// The gateway's private key. Has no `Display`; `Debug` prints no part of it.
    PrivateKey
}
secret! {
    /// A symmetric key that one peer and the gateway share. Has no `Display`; `Debug` prints no
    /// part of it.
    PresharedKey
}

impl PrivateKey {
    /// Makes a key of 32 random bytes, clamped as Curve25519 wants it (RFC 7748, section 5), so
    /// that the kernel stores exactly these bytes.
    #[must_use]
    pub fn from_random(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0xf8;
        bytes[31] = (bytes[31] & 0x7f) | 0x40;
        Self::of(&bytes)
    }

    /// The public key that peers know this gateway by.
    #[must_use]
    pub fn public_key(&self) -> PublicKey {
        let secret = x25519_dalek::StaticSecret::from(*self.expose_bytes());
        PublicKey(x25519_dalek::PublicKey::from(&secret).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_32_bytes_round_trips() {
        let text = "4V5ShwAxMwr1PyLW4mZs0CjWBpSMLMDJiyDdLCT3XnE=";
        assert_eq!(text.parse::<PublicKey>().unwrap().to_string(), text);
    }

    #[test]
    fn each_wrong_text_says_what_is_wrong() {
        let parse = |text: &str| text.parse::<PublicKey>().unwrap_err();
        assert_eq!(parse("not a key"), KeyError::NotBase64);
        assert_eq!(parse(""), KeyError::WrongLength(0));
        assert_eq!(parse("AAAA"), KeyError::WrongLength(3));
        assert_eq!(parse(&"AAAA".repeat(40)), KeyError::WrongLength(120));
        assert_eq!(parse("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), KeyError::AllZero);
        // 32 bytes, but with bits set that no encoder writes: two texts would mean one key.
        assert_eq!(parse("4V5ShwAxMwr1PyLW4mZs0CjWBpSMLMDJiyDdLCT3XnF="), KeyError::NotBase64);
    }

    #[test]
    fn a_private_key_gives_the_public_key_wg_gives() {
        // `echo SECRET | wg pubkey`, RFC 7748 section 6.1 (Alice).
        let secret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse::<PrivateKey>().unwrap();
        assert_eq!(secret.public_key().to_string(), "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }

    #[test]
    fn clones_of_a_secret_are_in_one_place() {
        let secret = PrivateKey::from_random([7; 32]);
        assert!(std::ptr::eq(secret.expose_bytes(), secret.clone().expose_bytes()));
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=".parse::<PrivateKey>().unwrap();
        assert_eq!(format!("{secret:?}"), "PrivateKey(secret)");
    }
}
