//! Log, metrics and health of the running agent.

mod http;
mod log;
mod metrics;
mod newest;
mod peers;
mod process;
mod text;

pub use self::http::{MetricsServer, Pages, Response, health, target};
pub use self::log::{Audience, set_filter, start_log};
#[cfg(test)]
pub use self::metrics::{Scraped, render as metrics};
pub use self::newest::{Entry, newest};
