//! WireGuard in a process of its own, driven over its unix socket.
//!
//! Every peer has a request of its own, so that one bad peer costs only itself. Small scale: a host
//! with thousands of peers wants the kernel's module.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use zeroize::Zeroizing;

use super::DeviceReading;
use super::endpoints::Endpoints;
use super::error::{MAX_MTU_BYTES, UserspaceError};
use super::socket::{Connection, Generation, open};
use super::uapi::{self, UapiError};
use crate::model::{InterfaceName, Peer, PrivateKey};
use crate::plan::Step;

/// The userspace device of one name in this network namespace, whichever process that is.
pub(crate) struct Userspace {
    name: InterfaceName,
    endpoints: Endpoints,
}

impl Userspace {
    pub fn new(name: InterfaceName) -> Self {
        Self { name, endpoints: Endpoints::default() }
    }

    /// From now on it is the device of this name.
    pub fn follow(&mut self, name: InterfaceName) {
        self.name = name;
    }

    /// Reads the device with all its peers.
    pub fn read(&mut self) -> Result<DeviceReading, UserspaceError> {
        let reading = self.get(uapi::GET)?;
        self.endpoints.note(&reading.traffic, SystemTime::now(), Instant::now());
        Ok(reading)
    }

    /// Reads the device, without its peers if it can leave them out.
    pub fn read_but_peers(&self) -> Result<DeviceReading, UserspaceError> {
        self.get(uapi::GET_BUT_PEERS)
    }

    /// Sets the private key.
    pub fn set_private_key(&self, key: &PrivateKey) -> Result<(), UserspaceError> {
        self.set(&uapi::private_key(key))
    }

    /// Sets the UDP port.
    pub fn set_listen_port(&self, port: u16) -> Result<(), UserspaceError> {
        let connection = open(&self.name)?;
        if connection.generation == Generation::Former {
            try_port(port)?;
        }
        let taken = Errno::EADDRINUSE as i32;
        match self.set_through(connection, &format!("listen_port={port}\n")) {
            Err(UserspaceError::Refused { source: UapiError::Refused(errno), .. })
                if errno.abs() == taken =>
            {
                Err(UserspaceError::Port { port, source: io::Error::from_raw_os_error(taken) })
            }
            set => set,
        }
    }

    /// Sets the mark on encrypted packets.
    pub fn set_fwmark(&self, fwmark: u32) -> Result<(), UserspaceError> {
        self.set(&format!("fwmark={fwmark}\n"))
    }

    /// Refuses an MTU with which packets would be lost.
    pub const fn check_mtu(bytes: u32) -> Result<(), UserspaceError> {
        if bytes > MAX_MTU_BYTES { Err(UserspaceError::Mtu { bytes }) } else { Ok(()) }
    }

    /// Applies peer steps one by one, and returns what became of each. A device that did not answer is
    /// not asked again, or each step would wait as long.
    pub fn write_peers(&self, steps: &[Step]) -> Vec<Result<(), UserspaceError>> {
        let mut known = None;
        let mut silent: Option<io::ErrorKind> = None;
        let write = |step: &Step| {
            let verdict = match silent {
                Some(kind) => {
                    Err(UserspaceError::Silent { name: self.name.clone(), source: kind.into() })
                }
                None => self.write_peer(step, &mut known),
            };
            if let Err(UserspaceError::Silent { source, .. }) = &verdict {
                silent = Some(source.kind());
            }
            verdict
        };
        steps.iter().map(write).collect()
    }

    fn write_peer(
        &self,
        step: &Step,
        known: &mut Option<DeviceReading>,
    ) -> Result<(), UserspaceError> {
        if let Step::RemovePeer { key } = step {
            if let Some(known) = known {
                known.peers.remove(key);
            }
            return self.set(&uapi::removal(key));
        }
        let connection = open(&self.name)?;
        if connection.generation == Generation::Former {
            // It answers one connection at a time.
            drop(connection);
            return self.write_peer_whole(step, known);
        }
        // Without a reading, which grows with the peers, and which a device refuses while packets from
        // before a change are on their way.
        let lines = match step {
            Step::AddPeer { key, peer } => uapi::addition(key, peer, self.endpoints.of(key), true),
            Step::NarrowPeer { key, allowed_ips } => uapi::narrowing(key, allowed_ips),
            Step::WidenPeer { key, allowed_ips } => uapi::widening(key, allowed_ips),
            Step::SetPresharedKey { key, preshared_key } => {
                uapi::preshared_key(key, preshared_key.as_ref())
            }
            Step::SetKeepalive { key, keepalive_secs } => uapi::keepalive(key, *keepalive_secs),
            _ => return Err(UserspaceError::NoPeerStep(step.to_string())),
        };
        self.set_through(connection, &lines)
    }

    /// Changes a peer of a device of the last version, which panics if a part of a peer that is there is
    /// changed: so it is made anew.
    fn write_peer_whole(
        &self,
        step: &Step,
        known: &mut Option<DeviceReading>,
    ) -> Result<(), UserspaceError> {
        let known = match known {
            Some(known) => known,
            None => known.insert(self.get(uapi::GET)?),
        };
        let has = |key| known.peers.get(key).cloned();
        let (key, peer) = match step {
            Step::AddPeer { key, peer } => (key, Some(peer.clone())),
            Step::NarrowPeer { key, allowed_ips } => {
                (key, has(key).map(|peer| Peer { allowed_ips: allowed_ips.clone(), ..peer }))
            }
            Step::WidenPeer { key, allowed_ips: more } => {
                let all = |peer: &Peer| peer.allowed_ips.iter().chain(more.iter()).collect();
                (key, has(key).map(|peer| Peer { allowed_ips: all(&peer), ..peer }))
            }
            Step::SetPresharedKey { key, preshared_key } => {
                (key, has(key).map(|peer| Peer { preshared_key: preshared_key.clone(), ..peer }))
            }
            Step::SetKeepalive { key, keepalive_secs } => {
                (key, has(key).map(|peer| Peer { keepalive_secs: *keepalive_secs, ..peer }))
            }
            _ => return Err(UserspaceError::NoPeerStep(step.to_string())),
        };
        // An unknown peer stays unknown, as with the kernel's UPDATE_ONLY.
        let Some(peer) = peer else { return Ok(()) };
        if known.public_key.is_none() {
            return Err(UserspaceError::NoPrivateKey { name: self.name.clone() });
        }
        let endpoint = known.traffic.get(key).and_then(|traffic| traffic.endpoint);
        if known.peers.contains_key(key) {
            self.set(&uapi::removal(key))?;
        }
        self.set(&uapi::addition(key, &peer, endpoint, false))?;
        known.peers.insert(*key, peer);
        Ok(())
    }

    fn get(&self, request: &str) -> Result<DeviceReading, UserspaceError> {
        let answer = self.exchange(open(&self.name)?, request)?;
        self.parse(&answer, SystemTime::now())
    }

    fn set(&self, lines: &str) -> Result<(), UserspaceError> {
        self.set_through(open(&self.name)?, lines)
    }

    /// One connection carries one request: a device of the last version closes it after that.
    fn set_through(&self, connection: Connection, lines: &str) -> Result<(), UserspaceError> {
        // In one piece: a text that grows leaves its former copies behind.
        let request = Zeroizing::new(["set=1\n", lines, "\n"].concat());
        let answer = self.exchange(connection, &request)?;
        self.parse(&answer, SystemTime::UNIX_EPOCH).map(drop)
    }

    fn parse(&self, answer: &str, now: SystemTime) -> Result<DeviceReading, UserspaceError> {
        const UNSETTLED: UapiError = UapiError::Refused(-(Errno::ETIMEDOUT as i32));
        const NO_KEY: UapiError = UapiError::Refused(-(Errno::ENOKEY as i32));
        uapi::parse(answer, now).map_err(|source| match source {
            UNSETTLED => UserspaceError::Unsettled { name: self.name.clone() },
            NO_KEY => UserspaceError::NoPrivateKey { name: self.name.clone() },
            source => UserspaceError::Refused { name: self.name.clone(), source },
        })
    }

    fn exchange(
        &self,
        connection: Connection,
        request: &str,
    ) -> Result<Zeroizing<String>, UserspaceError> {
        converse(connection.stream, request)
            .map_err(|source| UserspaceError::Silent { name: self.name.clone(), source })
    }
}

/// A device of the last version closes its sockets before it tries the new ones, and shares a port with
/// any other that allows it: so the port is tried here first.
fn try_port(port: u16) -> Result<(), UserspaceError> {
    for address in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
        let address: std::net::IpAddr = address;
        match UdpSocket::bind((address, port)) {
            Err(source) if source.raw_os_error() == Some(Errno::EADDRINUSE as i32) => {
                return Err(UserspaceError::Port { port, source });
            }
            // Whatever else hinders this attempt (no IPv6, say) need not hinder the device.
            _ => {}
        }
    }
    Ok(())
}

fn converse(mut stream: UnixStream, request: &str) -> io::Result<Zeroizing<String>> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Zeroizing::new(Vec::with_capacity(64 * 1024));
    let mut chunk = Zeroizing::new([0; 16 * 1024]);
    loop {
        match stream.read(&mut *chunk)? {
            0 => break,
            len => answer.extend_from_slice(&chunk[..len]),
        }
        if is_complete(&answer) {
            break;
        }
    }
    if !is_complete(&answer) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let text = std::str::from_utf8(&answer)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "the answer is no text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// An answer ends with a line `errno=` and an empty one. Nothing read before that is believed.
fn is_complete(answer: &[u8]) -> bool {
    let tail = &answer[answer.len().saturating_sub(32)..];
    let start = tail.windows(6).rposition(|window| window == b"errno=");
    start.is_some_and(|start| tail[start..].ends_with(b"\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_complete_only_with_its_last_line() {
        assert!(is_complete(b"errno=0\n\n"));
        assert!(is_complete(b"listen_port=1\nerrno=98\n\n"));
        assert!(!is_complete(b"listen_port=1\n\n"));
        assert!(!is_complete(b"errno=0\n"));
        assert!(!is_complete(b""));
    }
}
