//! The far end of the LAN's cable: packets put onto it, and those that the gateway forwards to it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt,
};

use crate::packet::MAX_BYTES;

const HEADER_BYTES: usize = 14;
const RECEIVE_BUFFER_BYTES: usize = 32 << 20;

/// An Ethernet card without a stack behind it: no address, route or socket has a say in what it
/// sends and sees. It sees its own packets, too.
pub struct Tap {
    file: File,
    from: [u8; 6],
    to: [u8; 6],
}

impl Tap {
    /// Opens it in the network namespace of the calling thread.
    pub fn open(interface: &str, from: [u8; 6], to: [u8; 6]) -> Self {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket =
            socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).unwrap();
        let mut addresses = getifaddrs().unwrap().filter(|at| at.interface_name == interface);
        let link = addresses.find_map(|at| at.address?.as_link_addr().copied());
        bind(socket.as_raw_fd(), &link.unwrap()).unwrap();
        Self { file: File::from(socket), from, to }
    }

    pub fn send(&self, packet: &[u8]) {
        const IPV4: [u8; 2] = [0x08, 0x00];
        const IPV6: [u8; 2] = [0x86, 0xdd];
        let kind = if packet[0] >> 4 == 4 { IPV4 } else { IPV6 };
        let frame = [&self.to[..], &self.from, &kind, packet].concat();
        (&self.file).write_all(&frame).unwrap();
    }

    /// The next packet that was seen; `None`: no more for now.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut frame = [0; HEADER_BYTES + MAX_BYTES];
        match (&self.file).read(&mut frame) {
            Ok(len) => Some(frame[HEADER_BYTES.min(len)..len].to_vec()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Waits until one of these has something to read, or the time is over.
pub fn await_any<'a>(ends: impl Iterator<Item = BorrowedFd<'a>>, at_most: Duration) {
    let mut ends: Vec<_> = ends.map(|end| PollFd::new(end, PollFlags::POLLIN)).collect();
    poll(&mut ends, PollTimeout::try_from(at_most).unwrap()).unwrap();
}
