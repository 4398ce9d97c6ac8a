//! Whether this gateway may hear hints from the broker.

use gatepost::model::GatewayId;

use super::finding::Finding;
use crate::config::{Config, ConfigError};
use crate::hints::{Broker, BrokerError, try_to_hear};
use crate::runtime;

/// Why no hints could be heard.
#[derive(Debug, thiserror::Error)]
pub enum HintsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("cannot ask: {0}")]
    Runtime(#[from] std::io::Error),
}

/// Subscribes as the agent of this gateway does, and leaves again. `None`: there is no `[hints]`.
pub fn heard(config: &Config, gateway: GatewayId) -> Option<Result<(), HintsError>> {
    let broker = Broker::of(config).transpose()?;
    let hear = |broker: Broker| {
        Ok(runtime::on_this_thread()?.block_on(try_to_hear(&broker, "gatepost check", gateway))?)
    };
    Some(broker.map_err(HintsError::from).and_then(hear))
}

pub fn finding(heard: &Result<(), HintsError>) -> Finding {
    match heard {
        Ok(()) => Finding::ok("hints", "this gateway may hear them"),
        Err(HintsError::Config(error)) => Finding::config_error("hints", error),
        Err(error) => Finding::failure("hints", error.to_string()),
    }
}
