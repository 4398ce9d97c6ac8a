//! Whether a port is free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::errno::Errno;

/// The engine closes its socket before it opens another, so the port is tried here first.
pub(super) fn check_port(port: u16) -> Result<(), Errno> {
    let addresses = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    for address in addresses {
        match UdpSocket::bind((address, port)).map_err(|error| error.raw_os_error()) {
            Err(Some(errno)) if errno == Errno::EADDRINUSE as i32 => return Err(Errno::EADDRINUSE),
            // Whatever else hinders this attempt (no IPv6, say) need not hinder the engine.
            _ => {}
        }
    }
    Ok(())
}
