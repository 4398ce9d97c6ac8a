//! The decoders of what this host keeps: the last good rows, the block list, keys and envelopes.

use std::path::PathBuf;

use uuid::Uuid;

use super::block_file;
use super::cache::Cache;
use crate::decoder::{Decoder, Outcome};
use crate::model::psk::PskKeys;
use crate::model::{GatewayId, PrivateKey, PublicKey};
use crate::reconcile::history::Withdrawals;

pub const DECODERS: [Decoder; 5] = [
    Decoder::new("last-good", last_good),
    Decoder::new("block-list", |bytes| block_file::parse(bytes).into()),
    Decoder::new("sealing-keys", |bytes| Outcome::of_text(bytes, str::parse::<PskKeys>)),
    Decoder::new("withdrawals", |bytes| serde_json::from_slice::<Withdrawals>(bytes).into()),
    Decoder::new("envelope", envelope),
];

fn last_good(bytes: &[u8]) -> Outcome {
    let Ok(key) = PrivateKey::from_bytes([1; 32]) else { return Outcome::Refused };
    Cache::new(PathBuf::new(), &key).check(bytes).into()
}

/// Envelopes of the first example in docs/psk-envelope.md.
fn envelope(bytes: &[u8]) -> Outcome {
    const KEYS: &str = "k 85REkkjtAj7S9Wj3M0SKDQIQkMpL+1AsLf3hHxa+eXs=";
    const GATEWAY: Uuid = Uuid::from_u128(0x9490_4120_074a_4a94_9ca5_68cf_cb24_1932);
    const PEER: &str = "ajRS7oOf+C+wSjYipWvvLGvCHxb56Khbnjd4yZMSZSw=";
    let (Ok(keys), Ok(peer)) = (KEYS.parse::<PskKeys>(), PEER.parse::<PublicKey>()) else {
        return Outcome::Refused;
    };
    Outcome::of_text(bytes, |text| keys.open(text, GatewayId(GATEWAY), peer))
}
