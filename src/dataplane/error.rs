//! What can go wrong between the plan and the kernel.

use super::device::DeviceError;
use super::netlink::NetlinkError;
use super::wireguard::UserspaceError;
use crate::model::InterfaceName;

/// Why the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// What was tried, in words, and why it failed.
    #[error("{action}")]
    Netlink { action: String, source: NetlinkError },
    #[error(transparent)]
    Userspace(#[from] UserspaceError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel's refusal of one step, with the way out.
    #[error("{0}")]
    Refused(String),
    #[error("our nftables table")]
    Firewall(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("there is no link {0} any more, or another has its name now")]
    NoLink(Box<str>),
    #[error(
        "the link {name} is of type {kind}, not WireGuard, and is left alone: rename it, or give \
         the gateway another `interface.name`"
    )]
    ForeignLink { name: Box<str>, kind: String },
    #[error(
        "the link {0} does not carry the mark of this gateway and is left alone: remove it \
         (`ip link del {0}`), or give the gateway another `interface.name`"
    )]
    NotOurs(InterfaceName),
    #[error("the data plane's thread cannot be started")]
    Thread(#[source] std::io::Error),
    #[error("the data plane's thread is gone: it panicked; see the log before this line")]
    ThreadGone,
}

impl DataplaneError {
    /// For `map_err`: names what was being done.
    pub(super) fn during<A: Into<String>>(action: A) -> impl FnOnce(NetlinkError) -> Self {
        move |source| Self::Netlink { action: action.into(), source }
    }
}
