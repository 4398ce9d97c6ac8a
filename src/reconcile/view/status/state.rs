//! How the gateway is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether the kernel is proven to hold what the database wants.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// No pass has ended yet.
    #[default]
    Starting,
    /// The kernel was proven equal to the last good desired state.
    Ready,
    /// Ready, but the database is unreachable or does not announce all changes.
    Degraded { why: String },
    /// The kernel is not proven equal, or this gateway must not serve.
    NotReady { why: String },
}

impl State {
    /// Peers are served and the kernel was proven equal.
    #[must_use]
    pub const fn is_ready(&self) -> bool {
        matches!(self, Self::Ready | Self::Degraded { .. })
    }

    /// The word, without the reason.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Degraded { .. } => "degraded",
            Self::NotReady { .. } => "not ready",
        }
    }

    /// The reason, where there is one.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Starting | Self::Ready => None,
            Self::Degraded { why } | Self::NotReady { why } => Some(why),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        self.why().map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}
