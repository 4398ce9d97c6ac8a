//! `gatepost device`: the userspace WireGuard device, in a process of its own.

use gatepost::model::InterfaceName;

use crate::exit::{CommandError, Exit};
use crate::wiring;

/// Runs the device until SIGTERM or SIGINT.
///
/// # Errors
/// No TUN device, no rights, a name that is taken.
pub fn device(name: &InterfaceName) -> Result<Exit, CommandError> {
    wiring::run_device(name)?;
    Ok(Exit::Success)
}
