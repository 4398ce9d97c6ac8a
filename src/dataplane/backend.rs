//! The implementation of WireGuard: the kernel, or a process of ours.

use std::fmt;

/// `interface.backend`: who does WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// The kernel where it can, else a userspace device. A device that is there is kept.
    #[default]
    Auto,
    Kernel,
    Userspace,
}

/// The implementation of WireGuard behind a link that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendInUse {
    Kernel,
    Userspace,
}

impl fmt::Display for BackendInUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        })
    }
}
