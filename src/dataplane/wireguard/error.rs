//! Failures of a userspace device.

use std::io;

use super::uapi::UapiError;
use crate::model::InterfaceName;

/// The engine reads a packet from the link into 4,096 bytes (`PacketBufPool` of GotaTun), and would cut off
/// what is longer. Datagrams of other devices may be longer.
pub(super) const MAX_MTU_BYTES: u32 = 4000;

/// Why a userspace device did not apply a request.
#[derive(Debug, thiserror::Error)]
pub enum UserspaceError {
    #[error(
        "the userspace device {name} does not answer on @gatepost/{name}; restart it (systemctl \
         restart gatepost-device@{name}, or end its process: the agent starts it again)"
    )]
    Silent { name: InterfaceName, source: io::Error },
    #[error("this process cannot ask the userspace device {name}: raise its limits (LimitNOFILE=)")]
    Unasked { name: InterfaceName, source: io::Error },
    #[error(
        "process {pid} of user {uid} has the name @gatepost/{name} of the userspace device {name} \
         and gets no key: end it (kill {pid}); only root and the agent's own user may have that name"
    )]
    Stranger { name: InterfaceName, uid: u32, pid: i32 },
    #[error(
        "packets from before a change are still on their way through the userspace device {name}: what \
         takes away is in force, and the rest waits for them"
    )]
    Unsettled { name: InterfaceName },
    #[error("the userspace device {name} refused a request")]
    Refused { name: InterfaceName, source: UapiError },
    #[error(
        "another socket has UDP port {port}: `ss -ulpn sport = :{port}` says which; stop it, or change `gateways.listen_port`"
    )]
    Port { port: u16, source: io::Error },
    #[error(
        "a userspace device carries packets of up to {max} bytes, not {bytes}: lower \
         `interface.mtu_bytes`",
        max = MAX_MTU_BYTES
    )]
    Mtu { bytes: u32 },
    #[error("the userspace device {name} has no private key yet, and would lose the peer")]
    NoPrivateKey { name: InterfaceName },
    #[error("not done: `{0}` changes no peer")]
    NoPeerStep(String),
}
