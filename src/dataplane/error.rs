//! Failures between the plan and the kernel.

use std::sync::Arc;

use ipnet::IpNet;
use nix::errno::Errno;

use super::device::DeviceError;
use super::netlink::NetlinkError;
use super::nft::NftError;
use super::wireguard::UserspaceError;
use crate::model::InterfaceName;
use crate::plan::{Step, Unacknowledged};

/// Why the host could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// A netlink request failed; `action` is what it was for.
    #[error("{action}")]
    Netlink { action: String, source: NetlinkError },
    /// The kernel refused a step; `remedy` is what to do about it, where that is known.
    #[error("{source}{}", remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default())]
    Refused { source: NetlinkError, remedy: Option<String> },
    #[error(transparent)]
    Userspace(#[from] UserspaceError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Firewall(#[from] NftError),
    /// WireGuard acknowledges a peer with the device's own key, and ignores it.
    #[error(
        "its public key is the gateway's own, and WireGuard would ignore the peer: give the \
         device a key of its own"
    )]
    OwnKey,
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
    /// A step came to a part of the data plane that does not apply steps of its kind.
    #[error("not done: `{0}` is no setting of the interface")]
    NoInterfaceStep(String),
    #[error("the data plane's thread cannot be started")]
    Thread(#[source] std::io::Error),
    #[error("the data plane's thread is gone: it panicked; see the log before this line")]
    ThreadGone,
}

impl DataplaneError {
    /// Whether another attempt may succeed although neither the database, the configuration nor the
    /// host has been put right in the meantime.
    ///
    /// The loop tries again in either case; this tells whether an operator has something to do.
    #[must_use]
    pub fn can_retry(&self) -> bool {
        match self {
            Self::Netlink { source, .. } | Self::Refused { source, .. } => {
                netlink_can_retry(source)
            }
            Self::Firewall(error) => match error {
                NftError::NoAnswer
                | NftError::SetsLeft(_)
                | NftError::UnknownProfile(_)
                | NftError::EditedProfile(_)
                | NftError::Changed
                | NftError::Unstable { .. } => true,
                NftError::Read(source) | NftError::Send { source, .. } => netlink_can_retry(source),
                NftError::Refused { errno, .. } => is_temporary(*errno),
                NftError::Open(_) | NftError::TooLarge { .. } | NftError::OtherOwner { .. } => {
                    false
                }
            },
            // The link was removed after it was read: the next reading shows what is there.
            Self::NoLink(_) => true,
            Self::Device(DeviceError::Late { .. })
            | Self::Userspace(UserspaceError::Unsettled { .. }) => true,
            Self::Userspace(_)
            | Self::Device(_)
            | Self::OwnKey
            | Self::ForeignLink { .. }
            | Self::NotOurs(_)
            | Self::NoInterfaceStep(_)
            | Self::Thread(_)
            | Self::ThreadGone => false,
        }
    }

    /// Whether the step that failed so was a change of the firewall that left the table as it was.
    #[must_use]
    pub const fn table_is_as_before(&self) -> bool {
        matches!(self, Self::Firewall(error) if error.table_is_as_before())
    }

    /// The error number with which the kernel answered a netlink request.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::Netlink { source, .. } | Self::Refused { source, .. } => source.refusal(),
            _ => None,
        }
    }

    /// For `map_err`: names what was being done.
    pub(super) fn during<A: Into<String>>(action: A) -> impl FnOnce(NetlinkError) -> Self {
        move |source| Self::Netlink { action: action.into(), source }
    }
}

const fn netlink_can_retry(error: &NetlinkError) -> bool {
    match error {
        NetlinkError::Interrupted { .. } => true,
        NetlinkError::Socket { errno, .. }
        | NetlinkError::Refused { errno, .. }
        | NetlinkError::Incomplete { errno } => is_temporary(*errno),
        NetlinkError::Unsuited(_) | NetlinkError::Malformed { .. } => false,
    }
}

/// Lack of memory, or another program in the way at this moment.
const fn is_temporary(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOMEM
            | Errno::ENOBUFS
            | Errno::EAGAIN
            | Errno::EBUSY
            | Errno::EINTR
            | Errno::ENODEV
            | Errno::ETIMEDOUT
    )
}

/// A step that was not acknowledged, and why.
#[derive(Debug, Clone)]
pub struct RefusedStep {
    pub step: Step,
    /// Shared with the other steps of the same request where that failed as a whole.
    pub error: Arc<DataplaneError>,
}

impl RefusedStep {
    /// The known effect of the step.
    #[must_use]
    pub fn fate(&self) -> Unacknowledged {
        if self.error.table_is_as_before() {
            Unacknowledged::NotDone
        } else {
            Unacknowledged::Unsure
        }
    }

    /// A step with the reason why it was not acknowledged.
    pub fn new(step: Step, error: impl Into<Arc<DataplaneError>>) -> Self {
        Self { step, error: error.into() }
    }

    /// The prefix of a route that was not added because another program's route to it exists.
    #[must_use]
    pub fn foreign_route(&self) -> Option<IpNet> {
        match (&self.step, self.error.errno()) {
            (Step::AddRoute { prefix }, Some(Errno::EEXIST)) => Some(*prefix),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(errno: Errno) -> DataplaneError {
        let source = NetlinkError::Refused { errno, message: String::new() };
        DataplaneError::Refused { source, remedy: None }
    }

    #[test]
    fn only_what_passes_by_itself_can_be_retried() {
        assert!(refused(Errno::ENOBUFS).can_retry());
        assert!(!refused(Errno::EPERM).can_retry());
        let nft = |errno: Errno| {
            DataplaneError::Firewall(NftError::Refused { request: "add a chain".into(), errno })
        };
        assert!(nft(Errno::ENOMEM).can_retry());
        assert!(!nft(Errno::EOPNOTSUPP).can_retry());
        assert!(!DataplaneError::OwnKey.can_retry());
        let name = "wg0".parse().unwrap();
        assert!(DataplaneError::from(UserspaceError::Unsettled { name }).can_retry());
    }

    #[test]
    fn only_a_firewall_change_that_the_kernel_answered_certainly_changed_nothing() {
        let left = |error: NftError| DataplaneError::Firewall(error).table_is_as_before();
        assert!(left(NftError::Refused { request: "add a chain".into(), errno: Errno::EPERM }));
        assert!(left(NftError::Unstable { attempts: 8 }));
        let lost = || NetlinkError::Socket { call: "recv", errno: Errno::EIO };
        assert!(!left(NftError::NoAnswer));
        assert!(!left(NftError::SetsLeft(Box::new(NftError::Unstable { attempts: 8 }))));
        assert!(!left(NftError::Send { bytes: 1, source: lost() }));
        // The generation is asked for after a change.
        assert!(!left(NftError::Read(lost())));
        assert!(!refused(Errno::EPERM).table_is_as_before(), "some other step");
    }

    #[test]
    fn a_route_of_another_program_is_recognised() {
        let prefix = "10.20.0.0/24".parse().unwrap();
        let route = |errno| RefusedStep::new(Step::AddRoute { prefix }, refused(errno));
        assert_eq!(route(Errno::EEXIST).foreign_route(), Some(prefix));
        assert_eq!(route(Errno::ENETDOWN).foreign_route(), None);
    }
}
