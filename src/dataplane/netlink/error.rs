//! Why a netlink request fails, and what is wrong with a malformed message. Pure.

use std::fmt;

use nix::errno::Errno;

/// Why a netlink request did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    #[error("{call} on a netlink socket failed: {errno}")]
    Socket { call: &'static str, errno: Errno },
    /// The kernel's ack carries an error; `message` is the kernel's own explanation, if any.
    #[error("the kernel says {errno}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused { errno: Errno, message: String },
    /// A dump began and failed before its end.
    #[error("the kernel ended a dump early: {errno}")]
    Incomplete { errno: Errno },
    /// The parts that were read belong to different states, so an object may be missing from them.
    #[error("the kernel's tables changed during each of {tries} dumps: try again later")]
    Interrupted { tries: u32 },
    #[error("not sent to the kernel: {0}")]
    Unsuited(&'static str),
    /// The kernel sent bytes that break the format. Nothing of the answer is used.
    #[error("the kernel sent a malformed {place}: {defect}")]
    Malformed { place: Place, defect: Defect },
}

impl NetlinkError {
    /// The error number with which the kernel answered, if it answered.
    #[must_use]
    pub const fn refusal(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Incomplete { errno } => Some(*errno),
            _ => None,
        }
    }
}

/// Treats the removal of something that does not exist as done.
pub(crate) fn gone_is_done(ack: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match ack.as_ref().map_err(NetlinkError::refusal) {
        Err(Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV | Errno::EADDRNOTAVAIL)) => Ok(()),
        _ => ack,
    }
}

/// Where in a message something was read: the message's name in the kernel's headers, and the types
/// of the attributes from the outermost to the innermost, of which the last four are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    message: &'static str,
    /// Four types of 16 bits, each with [`Self::PRESENT`]; the innermost is lowest.
    path: u64,
}

impl Place {
    /// A bit that no attribute's type has.
    const PRESENT: u64 = 0x8000;

    pub(crate) const fn of(message: &'static str) -> Self {
        Self { message, path: 0 }
    }

    pub(super) fn within(self, kind: u16) -> Self {
        Self { path: self.path << 16 | Self::PRESENT | u64::from(kind), ..self }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message)?;
        let levels = [48, 32, 16, 0].map(|shift| self.path >> shift & 0xffff);
        let mut separator = ", attribute ";
        for level in levels.into_iter().filter(|level| level & Self::PRESENT != 0) {
            write!(f, "{separator}{}", level & !Self::PRESENT)?;
            separator = "/";
        }
        Ok(())
    }
}

/// The flaw of a message or an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Defect {
    #[error("{left} bytes are left, too few for a header")]
    TruncatedHeader { left: usize },
    #[error("its length of {len} bytes is below that of its header")]
    ShortLength { len: usize },
    #[error("its length of {len} bytes goes past the end: {left} are left")]
    PastEnd { len: usize, left: usize },
    #[error("its value has {found} bytes instead of {expected}")]
    Size { found: usize, expected: usize },
    #[error("it lacks attribute {0}")]
    Missing(u16),
    #[error("it is not {0}")]
    Not(&'static str),
}
