//! Preshared keys as the database holds them: sealed, so that a copy of the database opens no tunnel.
//!
//! An envelope is `gp1.<key-id>.<base64url of nonce, ciphertext and tag>`, XChaCha20-Poly1305 under
//! a key that the control plane and the gateway share. It is bound to the gateway and the peer's
//! public key, so that one moved to another row does not open. `docs/psk-envelope.md` describes it
//! for those who seal, with vectors that the tests here read.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroize;

mod keys;

use keys::KEY_BYTES;
pub use keys::{KeyId, KeyIdError, PskKeys, PskKeysError, PskLineError};

use super::policy::Quoted;
use super::{GatewayId, KeyError, PresharedKey, PublicKey};

const VERSION: &str = "gp1";
const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;

/// Why an envelope does not open, or cannot be made. Holds nothing secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PskError {
    #[error("is not an envelope of the form gp1.<key-id>.<base64url>")]
    NotAnEnvelope,
    #[error("has version {}; this agent opens gp1", Quoted(.0))]
    UnknownVersion(Box<str>),
    #[error("has a key id that {0}")]
    BadKeyId(KeyIdError),
    #[error("is sealed with key {0}, which psk_keys does not list: add its line")]
    UnknownKeyId(KeyId),
    #[error(
        "is sealed with key {0}, and there are no psk_keys here to open it: name their file in \
         gateway.psk_keys_file, or put it beside the configuration as psk.keys"
    )]
    NoneToOpen(KeyId),
    #[error("holds text after the key id that is not base64url without padding")]
    NotBase64,
    #[error("holds {0} bytes, not 72 (nonce 24, ciphertext 32, tag 16)")]
    WrongLength(usize),
    #[error(
        "does not open with key {key_id} for gateway {gateway_id} and peer {peer}: it was sealed \
         with other key bytes, for another gateway or peer, or was altered"
    )]
    NotAuthentic { key_id: KeyId, gateway_id: GatewayId, peer: PublicKey },
    #[error("holds a key that {0}")]
    BadKey(KeyError),
    #[error("cannot be sealed: psk_keys lists no key")]
    NoKeys,
}

impl PskKeys {
    /// Opens an envelope of this gateway's peer.
    ///
    /// # Errors
    /// Anything but an authentic envelope with a key that is not all zero. The peer is then
    /// quarantined: without its preshared key it would be less protected than intended.
    pub fn open(
        &self,
        envelope: &str,
        gateway_id: GatewayId,
        peer: PublicKey,
    ) -> Result<PresharedKey, PskError> {
        let (version, rest) = envelope.split_once('.').ok_or(PskError::NotAnEnvelope)?;
        if version != VERSION {
            return Err(PskError::UnknownVersion(version.into()));
        }
        let (key_id, sealed) = rest.split_once('.').ok_or(PskError::NotAnEnvelope)?;
        let key_id: KeyId = key_id.parse().map_err(PskError::BadKeyId)?;
        let Sealed { nonce, mut bytes, tag } = Sealed::decode(sealed)?;
        let Some((_, key)) = self.0.iter().find(|(id, _)| *id == key_id) else {
            let none = self.is_empty();
            return Err(if none { PskError::NoneToOpen } else { PskError::UnknownKeyId }(key_id));
        };
        let bound_to = associated_data(&key_id, gateway_id, peer);
        XChaCha20Poly1305::new(&key.0.into())
            .decrypt_inout_detached(
                &XNonce::from(nonce),
                &bound_to,
                bytes.as_mut_slice().into(),
                &Tag::from(tag),
            )
            .map_err(|_| PskError::NotAuthentic { key_id, gateway_id, peer })?;
        let key = PresharedKey::copied_from(&bytes).map_err(PskError::BadKey);
        bytes.zeroize();
        key
    }

    /// Seals a preshared key for this gateway's peer with the first key. `nonce` must be random:
    /// two envelopes under one nonce give both keys away.
    ///
    /// # Errors
    /// [`PskError::NoKeys`].
    pub fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        key: &PresharedKey,
        gateway_id: GatewayId,
        peer: PublicKey,
    ) -> Result<String, PskError> {
        let (key_id, sealing_key) = self.0.first().ok_or(PskError::NoKeys)?;
        let bound_to = associated_data(key_id, gateway_id, peer);
        let mut bytes = *key.expose_bytes();
        let tag = XChaCha20Poly1305::new(&sealing_key.0.into())
            .encrypt_inout_detached(&XNonce::from(nonce), &bound_to, bytes.as_mut_slice().into())
            .expect("32 bytes are within the cipher's limit of 256 GiB");
        let sealed = [nonce.as_slice(), &bytes, &tag].concat();
        Ok(format!("{VERSION}.{key_id}.{}", URL_SAFE_NO_PAD.encode(sealed)))
    }
}

/// The part of an envelope after the key id.
struct Sealed {
    nonce: [u8; NONCE_BYTES],
    /// The preshared key, encrypted.
    bytes: [u8; KEY_BYTES],
    tag: [u8; TAG_BYTES],
}

impl Sealed {
    fn decode(text: &str) -> Result<Self, PskError> {
        let all = URL_SAFE_NO_PAD.decode(text).map_err(|_| PskError::NotBase64)?;
        Self::split(&all).ok_or(PskError::WrongLength(all.len()))
    }

    fn split(all: &[u8]) -> Option<Self> {
        let (nonce, rest) = all.split_first_chunk()?;
        let (bytes, tag) = rest.split_first_chunk()?;
        Some(Self { nonce: *nonce, bytes: *bytes, tag: tag.try_into().ok()? })
    }
}

/// Each part after its length as a big-endian u16, so that no two sets of parts read alike.
fn associated_data(key_id: &KeyId, gateway_id: GatewayId, peer: PublicKey) -> Vec<u8> {
    let gateway_id = gateway_id.to_string();
    let parts: [&[u8]; 5] = [
        b"gatepost-psk",
        VERSION.as_bytes(),
        key_id.as_str().as_bytes(),
        gateway_id.as_bytes(),
        peer.as_bytes(),
    ];
    let mut data = Vec::with_capacity(128);
    for part in parts {
        let len = u16::try_from(part.len()).expect("the longest part is a 36-character id");
        data.extend_from_slice(&len.to_be_bytes());
        data.extend_from_slice(part);
    }
    data
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// One of the vectors of the page that describes the envelope.
    #[derive(Deserialize)]
    struct Vector {
        psk_keys_line: String,
        gateway_id: GatewayId,
        peer_public_key: String,
        nonce_hex: String,
        preshared_key: String,
        envelope: String,
    }

    fn vectors() -> Vec<Vector> {
        let page = include_str!("../../docs/psk-envelope.md");
        let (_, after) = page.split_once("```json\n").unwrap();
        let (json, _) = after.split_once("```").unwrap();
        serde_json::from_str(json).unwrap()
    }

    fn nonce(hex: &str) -> [u8; NONCE_BYTES] {
        assert_eq!(hex.len(), 2 * NONCE_BYTES);
        std::array::from_fn(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
    }

    #[test]
    fn the_documented_vectors_seal_and_open() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 5);
        for vector in vectors {
            let keys: PskKeys = vector.psk_keys_line.parse().unwrap();
            let peer = vector.peer_public_key.parse().unwrap();
            let key: PresharedKey = vector.preshared_key.parse().unwrap();
            let sealed = keys.seal(nonce(&vector.nonce_hex), &key, vector.gateway_id, peer);
            assert_eq!(sealed.as_deref(), Ok(vector.envelope.as_str()));
            assert_eq!(keys.open(&vector.envelope, vector.gateway_id, peer), Ok(key));
        }
    }

    const GATEWAY: GatewayId = GatewayId(uuid::Uuid::from_u128(1));
    const NEW: &str = "new gIYDlxSyRg+Iz6PzFVnGxWjSEOhHYjUhcgM+ZHb2jkE=";
    const OLD: &str = "old dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";

    fn keys(lines: &[&str]) -> PskKeys {
        lines.join("\n").parse().unwrap()
    }

    fn peer() -> PublicKey {
        PublicKey::from_bytes([9; 32]).unwrap()
    }

    fn sealed(keys: &PskKeys) -> String {
        let key = PresharedKey::from_bytes([7; 32]).unwrap();
        keys.seal([3; NONCE_BYTES], &key, GATEWAY, peer()).unwrap()
    }

    fn error(keys: &PskKeys, envelope: &str) -> String {
        keys.open(envelope, GATEWAY, peer()).unwrap_err().to_string()
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let both = keys(&["# rotated in May", "", NEW, OLD]);
        assert!(sealed(&both).starts_with("gp1.new."));
        for one in [NEW, OLD] {
            assert!(both.open(&sealed(&keys(&[one])), GATEWAY, peer()).is_ok());
        }
        assert!(keys(&[OLD]).open(&sealed(&both), GATEWAY, peer()).is_err());
    }

    #[test]
    fn every_altered_character_is_noticed() {
        let keys = keys(&[NEW, OLD]);
        let envelope = sealed(&keys);
        for at in 0..envelope.len() {
            let mut altered = envelope.clone().into_bytes();
            altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
            let altered = String::from_utf8(altered).unwrap();
            assert!(keys.open(&altered, GATEWAY, peer()).is_err(), "{altered}");
        }
    }

    #[test]
    fn an_envelope_of_another_gateway_or_peer_does_not_open() {
        let keys = keys(&[NEW]);
        let envelope = sealed(&keys);
        let other = PublicKey::from_bytes([10; 32]).unwrap();
        let elsewhere = GatewayId(uuid::Uuid::from_u128(2));
        assert!(matches!(keys.open(&envelope, GATEWAY, other), Err(PskError::NotAuthentic { .. })));
        assert!(matches!(
            keys.open(&envelope, elsewhere, peer()),
            Err(PskError::NotAuthentic { .. })
        ));
    }

    #[test]
    fn every_wrong_envelope_says_what_is_wrong() {
        let keys = keys(&[NEW]);
        let short = format!("gp1.new.{}", URL_SAFE_NO_PAD.encode([0; 71]));
        let texts = [
            ("", "is not an envelope of the form gp1.<key-id>.<base64url>"),
            ("gp1.new", "is not an envelope of the form gp1.<key-id>.<base64url>"),
            ("gp2.new.AAAA", "has version \"gp2\"; this agent opens gp1"),
            ("gp1.New.AAAA", "has a key id that is not 1 to 32 of a-z 0-9 _ -: \"New\""),
            ("gp1.new.AA==", "holds text after the key id that is not base64url without padding"),
            (&short, "holds 71 bytes, not 72 (nonce 24, ciphertext 32, tag 16)"),
            (
                &sealed(&super::tests::keys(&[OLD])),
                "is sealed with key old, which psk_keys does not list: add its line",
            ),
        ];
        for (envelope, expected) in texts {
            assert_eq!(error(&keys, envelope), expected);
        }
    }

    #[test]
    fn a_sealed_key_of_zeros_is_refused() {
        // `seal` cannot make it; another control plane could.
        let keys = keys(&[NEW]);
        let (key_id, key) = &keys.0[0];
        let mut bytes = [0; KEY_BYTES];
        let tag = XChaCha20Poly1305::new(&key.0.into())
            .encrypt_inout_detached(
                &XNonce::from([3; NONCE_BYTES]),
                &associated_data(key_id, GATEWAY, peer()),
                bytes.as_mut_slice().into(),
            )
            .unwrap();
        let sealed = [[3; NONCE_BYTES].as_slice(), &bytes, &tag].concat();
        let envelope = format!("gp1.new.{}", URL_SAFE_NO_PAD.encode(sealed));
        assert_eq!(error(&keys, &envelope), "holds a key that is all zero");
    }

    #[test]
    fn without_keys_nothing_opens_and_nothing_seals() {
        let none = PskKeys::default();
        let key = PresharedKey::from_bytes([7; 32]).unwrap();
        assert!(error(&none, &sealed(&keys(&[NEW]))).contains("there are no psk_keys here"));
        assert_eq!(none.seal([3; NONCE_BYTES], &key, GATEWAY, peer()), Err(PskError::NoKeys));
    }
}
