//! A peer: its own WireGuard, spoken from here over a real socket.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use defguard_boringtun::noise::errors::WireGuardError;
use defguard_boringtun::noise::{Tunn, TunnResult};
use defguard_boringtun::x25519::{PublicKey, StaticSecret};
use gatepost::model::PrivateKey;

use crate::packet::MAX_BYTES;

/// A datagram is longer than its packet by less than this, and a handshake is no longer.
const OVERHEAD_BYTES: usize = 256;

/// One peer's end of its tunnel to the gateway. The first packet begins the handshake.
pub struct Tunnel {
    tunn: Box<Tunn>,
    socket: UdpSocket,
}

impl Tunnel {
    /// Opens it in the network namespace of the calling thread.
    pub fn open(key: &PrivateKey, gateway: &PrivateKey, endpoint: SocketAddr, index: u32) -> Self {
        let key = StaticSecret::from(*key.expose_bytes());
        let gateway = PublicKey::from(&StaticSecret::from(*gateway.expose_bytes()));
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(endpoint).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self { tunn: Box::new(Tunn::new(key, gateway, None, None, index, None)), socket }
    }

    pub fn send(&mut self, packet: &[u8]) {
        let mut buffer = [0; MAX_BYTES + OVERHEAD_BYTES];
        match self.tunn.encapsulate(packet, &mut buffer) {
            TunnResult::WriteToNetwork(datagram) => drop(self.socket.send(datagram).unwrap()),
            // It waits for the handshake.
            TunnResult::Done => {}
            other => panic!("{other:?}"),
        }
    }

    /// The next packet that came through; `None`: no more for now.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut buffer = [0; MAX_BYTES + OVERHEAD_BYTES];
        loop {
            let mut datagram = [0; MAX_BYTES + OVERHEAD_BYTES];
            let len = match self.socket.recv(&mut datagram) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{error}"),
            };
            match self.tunn.decapsulate(None, &datagram[..len], &mut buffer) {
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    return Some(packet.to_vec());
                }
                TunnResult::WriteToNetwork(answer) => {
                    self.socket.send(answer).unwrap();
                    self.send_waiting();
                }
                TunnResult::Done => {}
                // Of a session that the gateway has ended.
                TunnResult::Err(error) => eprintln!("a peer cannot read a datagram: {error:?}"),
            }
        }
    }

    /// Renews the session when it is time.
    pub fn keep(&mut self) {
        let mut buffer = [0; MAX_BYTES + OVERHEAD_BYTES];
        match self.tunn.update_timers(&mut buffer) {
            TunnResult::WriteToNetwork(datagram) => drop(self.socket.send(datagram).unwrap()),
            TunnResult::Done | TunnResult::Err(WireGuardError::ConnectionExpired) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Packets that waited for the handshake.
    fn send_waiting(&mut self) {
        let mut buffer = [0; MAX_BYTES + OVERHEAD_BYTES];
        while let TunnResult::WriteToNetwork(datagram) =
            self.tunn.decapsulate(None, &[], &mut buffer)
        {
            self.socket.send(datagram).unwrap();
        }
    }
}

impl AsFd for Tunnel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
