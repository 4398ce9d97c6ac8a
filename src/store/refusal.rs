//! Why reports wait.

use std::time::SystemTime;

/// A table of the control plane that refuses this gateway's reports, which wait until it does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Names the table's trigger, its error, and the GRANT that mends it.
    pub why: String,
    /// By the database's clock.
    pub since: SystemTime,
}
