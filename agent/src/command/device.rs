//! `gatepost device`: the userspace WireGuard device.

use gatepost::model::InterfaceName;

use crate::error::CommandError;
use crate::exit::Exit;
use crate::wiring;

/// Runs the device in this process until SIGTERM or SIGINT.
///
/// # Errors
/// No TUN device, no rights, a name that is taken; the link was deleted.
pub fn serve(name: &InterfaceName) -> Result<Exit, CommandError> {
    wiring::serve_device(name)?;
    Ok(Exit::Success)
}
