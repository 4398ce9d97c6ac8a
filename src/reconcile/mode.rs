//! How the agent learns about changes.

use std::fmt;

/// How the agent learns about changes. Its words stand in `gatepost status --json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Writers notify; a slow poll finds what a lost notification hid.
    Listen,
    /// The bell gives hints; a slow poll finds what a lost hint hid.
    Hints,
    /// The agent asks at a steady interval, which grows with the number of gateways.
    Poll,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen => "listen",
            Self::Hints => "hints",
            Self::Poll => "poll",
        })
    }
}
