//! Hints of changes over NATS: empty messages that say *look again*.
//!
//! [`connect`] serves both ends, [`listen`] is the agent's: it subscribes to its gateway's subject,
//! to [`FOR_ALL`] and to [`SIGNS_OF_LIFE`], and publishes nothing.

pub mod connect;
mod credentials;
mod error;
mod listen;

use gatepost::model::GatewayId;

pub use connect::Broker;
pub use credentials::{Login, LoginError};
pub use error::BrokerError;
pub use listen::{listen, try_to_hear};

/// The subject of hints for all gateways.
pub const FOR_ALL: &str = "gatepost.hint.all";
/// The subject on which the bell gives a sign of life each second.
pub const SIGNS_OF_LIFE: &str = "gatepost.alive";

/// The subject of hints for one gateway.
#[must_use]
pub fn subject_of(gateway: GatewayId) -> String {
    format!("gatepost.hint.{gateway}")
}

#[cfg(test)]
mod tests;
