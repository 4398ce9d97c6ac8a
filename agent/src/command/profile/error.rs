//! Why no profile is issued.

use gatepost::model::PublicKey;
use gatepost::model::psk::PskError;
use gatepost::reconcile::did_you_mean;

/// Why no profile is issued.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("{0:?} is not USER/DEVICE, such as alice/laptop")]
    Who(String),
    #[error("no user has a device {who}{}: add it (docs/first-user.md)", did_you_mean(.candidates))]
    NoDevice { who: String, candidates: Vec<String> },
    #[error("{0} has no peer on any gateway: add a row to wireguard_peers (docs/first-user.md)")]
    Unknown(String),
    #[error("{who} has no peer on gateway {gateway}, but on {}", others.join(", "))]
    NotThere { who: String, gateway: String, others: Vec<String> },
    #[error("{who} has a peer on each of {}: name one with --gateway", gateways.join(", "))]
    Several { who: String, gateways: Vec<String> },
    #[error("{what} {text:?} has characters that a configuration cannot hold: correct the row")]
    Text { what: &'static str, text: String },
    #[error("the public key of {who} is not a key: write another with --new-key")]
    BadKey { who: String },
    #[error(
        "the private key is that of {found}, but the row of {who} has {wanted}: name the device's \
         own key, or write another with --new-key"
    )]
    OtherKey { who: String, found: PublicKey, wanted: PublicKey },
    #[error(
        "{who} has a preshared key, and there are no sealing keys to open it: name them with --keys, \
         or run this on the gateway"
    )]
    Sealed { who: String },
    #[error("the preshared key of {who} {source}")]
    Envelope {
        who: String,
        #[source]
        source: PskError,
    },
    #[error("the profile is too long for a QR code: {0}")]
    QrCode(qrcode::types::QrError),
}
