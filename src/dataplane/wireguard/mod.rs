//! WireGuard devices: in the kernel, or in a process of their own.

mod codec;
mod dump;
mod kernel;
mod sys;
mod uapi;
mod userspace;

use std::collections::BTreeMap;

use crate::model::{Peer, PublicKey, Traffic};

pub(crate) use kernel::Kernel;
pub use uapi::UapiError;
pub use userspace::UserspaceError;
pub(crate) use userspace::{
    answers, process_id, read, set_fwmark, set_listen_port, set_private_key, socket_path,
    write_peers,
};

/// Everything a device says of itself, of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DeviceReading {
    /// `None`: no private key is set.
    pub public_key: Option<PublicKey>,
    pub listen_port: u16,
    pub fwmark: u32,
    pub peers: BTreeMap<PublicKey, Peer>,
    pub traffic: BTreeMap<PublicKey, Traffic>,
}
