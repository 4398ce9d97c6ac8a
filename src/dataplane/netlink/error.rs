//! What the kernel answers when it does not obey. Pure.

use nix::errno::Errno;

/// Why a netlink request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    #[error("{call} on a netlink socket failed: {errno}")]
    Socket { call: &'static str, errno: Errno },
    /// The kernel's answer; the text is its own explanation, where it gives one.
    #[error("the kernel says {errno}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused { errno: Errno, message: String },
    /// What was read is of different moments, so that something not in it may yet exist.
    #[error("the kernel's tables changed under each of {tries} readings: try again later")]
    Interrupted { tries: u32 },
    #[error("not asked of the kernel: {0}")]
    Unsuited(&'static str),
    #[error("the kernel sent a message that cannot be read: {0}")]
    Malformed(&'static str),
}

impl NetlinkError {
    /// The kernel's answer to the request, if it was heard at all.
    #[must_use]
    pub const fn refusal(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// Removing what is not there has done what was asked.
pub(crate) fn gone_is_done(verdict: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match verdict.as_ref().map_err(NetlinkError::refusal) {
        Err(Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL)) => Ok(()),
        _ => verdict,
    }
}
