//! The parts of the firewall that remain whatever other programs do, or when the agent ends.

use serde::{Deserialize, Serialize};

/// How the table is guarded itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FirewallStatus {
    /// No other program can change the table.
    pub table_owned: bool,
    /// Forwarded packets of peers are dropped while the table is gone.
    pub gate: bool,
    /// Why not, or what the gate may disturb.
    pub gate_why: Option<String>,
}
