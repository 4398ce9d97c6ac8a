//! Why a userspace device could not be run, started or stopped.

use std::io;

use nix::errno::Errno;

use crate::dataplane::netlink::NetlinkError;
use crate::dataplane::wireguard::UserspaceError;
use crate::model::InterfaceName;

/// The line that says that the device answers.
pub(super) const READY: &str = "ready";
/// The time within which a device that was started must answer.
pub(super) const READY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Why a userspace device could not be run or started.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "{0} is a number, and the userspace device would take it for an open file: give the \
         interface a name with a letter in it"
    )]
    NumericName(InterfaceName),
    #[error("a userspace device {0} is running already: stop that one first")]
    Running(InterfaceName),
    #[error(
        "a link {0} exists already: `ip -d link show {0}` says what it is; rename it, or give the \
         interface another name"
    )]
    Taken(InterfaceName),
    #[error("the userspace device {name} cannot be made (it needs /dev/net/tun and CAP_NET_ADMIN)")]
    Create { name: InterfaceName, source: io::Error },
    #[error("the userspace device {name} cannot read its link")]
    Link { name: InterfaceName, source: NetlinkError },
    #[error("the engine of the userspace device {name} cannot be started")]
    Engine { name: InterfaceName, source: Box<dyn std::error::Error + Send + Sync> },
    #[error(
        "the link of the userspace device {0} was deleted or left this network namespace, which \
         ended every session through it"
    )]
    LinkGone(InterfaceName),
    #[error("the userspace device {name} cannot listen on {address}")]
    Listen { name: InterfaceName, address: String, source: io::Error },
    #[error("cannot start `{exe} device {name}`")]
    Start { exe: String, name: InterfaceName, source: io::Error },
    #[error(
        "`{exe} device {name}` ended with {status} before it was ready: run it by hand to see why"
    )]
    Died { exe: String, name: InterfaceName, status: String },
    #[error("`{exe} device {name}` was not ready after {} s", READY_TIMEOUT.as_secs())]
    Late { exe: String, name: InterfaceName },
    #[error("cannot stop process {pid} of the userspace device {name}: {errno}")]
    Stop { name: InterfaceName, pid: i32, errno: Errno },
    #[error("process {pid} of the userspace device {name} does not end")]
    StillThere { name: InterfaceName, pid: i32 },
    #[error(transparent)]
    Socket(#[from] UserspaceError),
}

/// What opens the TUN device takes a name that parses as a number for an open file.
pub(super) fn check_name(name: &InterfaceName) -> Result<(), DeviceError> {
    match name.as_str().parse::<i32>() {
        Ok(_) => Err(DeviceError::NumericName(name.clone())),
        Err(_) => Ok(()),
    }
}
