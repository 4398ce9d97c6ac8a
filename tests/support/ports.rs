//! Ports for the servers of tests.

use std::net::{TcpListener, UdpSocket};

/// A port of 127.0.0.1 that no other test gets until this process ends, and that the kernel gives to no socket
/// that asks for none. UDP, which no server here uses, tells the tests of each other.
pub fn free_port() -> u16 {
    let claims = |port: &u16| {
        let Ok(claim) = UdpSocket::bind(("127.0.0.1", *port)) else { return false };
        let is_free = TcpListener::bind(("127.0.0.1", *port)).is_ok();
        std::mem::forget(claim);
        is_free
    };
    (10_000..32_000).find(claims).expect("a port is free")
}
