//! Options of the loop from the configuration. SIGHUP makes the agent read it again.

use std::time::Duration;

use gatepost::reconcile::{StaleOptions, Timing};

use crate::config::Config;

/// `[sync]` and `[report]`: the loop's intervals.
pub fn timing(config: &Config) -> Timing {
    let (sync, heartbeat) = (&config.sync, config.report.heartbeat);
    Timing {
        poll_interval: sync.poll_interval.unwrap_or(Duration::from_secs(1)),
        safety_poll_interval: sync.poll_interval.unwrap_or(Duration::from_secs(10)),
        resync_interval: sync.resync_interval,
        report_interval: config.report.interval,
        heartbeat: heartbeat.unwrap_or(Duration::from_secs(10)),
        heartbeat_among_many: heartbeat.unwrap_or(Duration::from_secs(60)),
        seed: u64::from(std::process::id()),
    }
}

/// `[stale]`
pub fn stale_options(config: &Config) -> StaleOptions {
    StaleOptions { policy: config.stale.policy, after: config.stale.after }
}
