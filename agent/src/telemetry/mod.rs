//! What the outside sees of the agent while it runs: its log, its metrics, its health.

mod http;
mod log;
mod metrics;

pub use self::http::MetricsServer;
pub use self::log::{Audience, start_log};
#[cfg(test)]
pub use self::metrics::render as metrics;
