//! WireGuard devices: in the kernel, or in a process of their own.

mod codec;
mod dump;
mod endpoints;
mod error;
mod kernel;
mod socket;
mod sys;
mod taking;
mod uapi;
mod userspace;

use std::collections::BTreeMap;

use crate::model::{Peer, PublicKey, Traffic};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use dump::DeviceDump;
pub use error::UserspaceError;
pub(crate) use kernel::Kernel;
pub(crate) use socket::{
    abstract_name, answers, is_there, is_trusted, listens, open, process_id, socket_path,
};
pub use uapi::UapiError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use uapi::parse;
pub(crate) use uapi::{NO_PEERS, OPEN_SESSION, hex, unhex};
pub(crate) use userspace::Userspace;

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
