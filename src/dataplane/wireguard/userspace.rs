//! WireGuard in a process of its own, driven over its unix socket.
//!
//! The embedded device cannot change a peer: it must be removed and added, which ends that peer's
//! session (the client makes a new one with its next packet). Nor does it keep two peers of one
//! message apart: a preshared key of the first is given to the second. So every peer has a request
//! of its own. Small scale: a host with thousands of peers wants the kernel's module.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, UnixAddr, getsockopt, socket, sockopt::PeerCredentials,
};
use zeroize::Zeroizing;

use super::DeviceReading;
use super::uapi::{self, UapiError};
use crate::model::{InterfaceName, Peer, PrivateKey};
use crate::plan::Step;

/// Why a userspace device did not apply a request.
#[derive(Debug, thiserror::Error)]
pub enum UserspaceError {
    #[error(
        "the userspace device {name} does not answer on {}; restart it (systemctl restart \
         gatepost-device@{name}, or end its process: the agent starts it again)",
        socket_path(.name).display()
    )]
    Silent { name: InterfaceName, source: io::Error },
    #[error("the userspace device {name} refused a request")]
    Refused { name: InterfaceName, source: UapiError },
    #[error(
        "another socket has UDP port {port}: `ss -ulpn sport = :{port}` says which; stop it, or change `gateways.listen_port`"
    )]
    Port { port: u16, source: io::Error },
    #[error("the userspace device {name} has no private key yet, and would lose the peer")]
    NoPrivateKey { name: InterfaceName },
    #[error("not done: `{0}` changes no peer")]
    NoPeerStep(String),
}

const SOCKET_DIRECTORY: &str = "/var/run/wireguard";
/// A working device answers in milliseconds; one whose lock is poisoned never does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the device listens.
pub(crate) fn socket_path(name: &InterfaceName) -> PathBuf {
    PathBuf::from(SOCKET_DIRECTORY).join(format!("{name}.sock"))
}

/// Whether a process listens on the socket. A killed device leaves its socket behind without one. The
/// queue of a device that hangs is full at some time, which counts as listening.
pub(crate) fn answers(name: &InterfaceName) -> bool {
    match connect(&socket_path(name)) {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}

/// The number of the process that listens on the socket.
pub(crate) fn process_id(name: &InterfaceName) -> Option<i32> {
    let stream = connect(&socket_path(name)).ok()?;
    let pid = getsockopt(&stream, PeerCredentials).ok()?.pid();
    // Zero is one that this process cannot see, and to a signal the whole of our own group.
    (pid > 0).then_some(pid)
}

/// Reads the device with all its peers.
pub(crate) fn read(name: &InterfaceName) -> Result<DeviceReading, UserspaceError> {
    let answer = exchange(name, "get=1\n\n")?;
    uapi::parse(&answer, SystemTime::now())
        .map_err(|source| UserspaceError::Refused { name: name.clone(), source })
}

/// Sets the private key.
pub(crate) fn set_private_key(
    name: &InterfaceName,
    key: &PrivateKey,
) -> Result<(), UserspaceError> {
    set(name, &uapi::private_key(key))
}

/// Sets the UDP port. The device closes its old sockets before it tries the new ones, and shares a
/// port with any other that allows it: so the port is tried here first.
pub(crate) fn set_listen_port(name: &InterfaceName, port: u16) -> Result<(), UserspaceError> {
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
    set(name, &format!("listen_port={port}\n"))
}

/// Sets the mark on encrypted packets.
pub(crate) fn set_fwmark(name: &InterfaceName, fwmark: u32) -> Result<(), UserspaceError> {
    set(name, &format!("fwmark={fwmark}\n"))
}

/// Applies peer steps one by one, and returns what became of each. A device that did not answer is not
/// asked again, or each step would wait as long.
pub(crate) fn write_peers(name: &InterfaceName, steps: &[Step]) -> Vec<Result<(), UserspaceError>> {
    let mut known = None;
    let mut silent: Option<io::ErrorKind> = None;
    let write = |step: &Step| {
        let verdict = match silent {
            Some(kind) => Err(UserspaceError::Silent { name: name.clone(), source: kind.into() }),
            None => write_peer(name, step, &mut known),
        };
        if let Err(UserspaceError::Silent { source, .. }) = &verdict {
            silent = Some(source.kind());
        }
        verdict
    };
    steps.iter().map(write).collect()
}

fn write_peer(
    name: &InterfaceName,
    step: &Step,
    known: &mut Option<DeviceReading>,
) -> Result<(), UserspaceError> {
    let known = match known {
        Some(known) => known,
        None => known.insert(read(name)?),
    };
    let has = |key| known.peers.get(key).cloned();
    let (key, peer) = match step {
        Step::RemovePeer { key } => {
            known.peers.remove(key);
            return set(name, &uapi::removal(key));
        }
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
        return Err(UserspaceError::NoPrivateKey { name: name.clone() });
    }
    if known.peers.remove(key).is_some() {
        set(name, &uapi::removal(key))?;
    }
    set(name, &uapi::addition(key, &peer, known.traffic.get(key)))?;
    known.peers.insert(*key, peer);
    Ok(())
}

fn set(name: &InterfaceName, lines: &str) -> Result<(), UserspaceError> {
    // In one piece: a text that grows leaves its former copies behind.
    let request = Zeroizing::new(["set=1\n", lines, "\n"].concat());
    let answer = exchange(name, &request)?;
    uapi::parse(&answer, SystemTime::UNIX_EPOCH)
        .map(drop)
        .map_err(|source| UserspaceError::Refused { name: name.clone(), source })
}

fn exchange(name: &InterfaceName, request: &str) -> Result<Zeroizing<String>, UserspaceError> {
    converse(name, request).map_err(|source| UserspaceError::Silent { name: name.clone(), source })
}

/// Connects within the time that an answer may take: a process that hangs accepts no connection, and
/// when its queue is full, connecting would block for ever.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let stream = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, flags, None)?);
    // It counts for connecting, too: `unix_stream_connect` in net/unix/af_unix.c.
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    socket::connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

/// Makes one connection for each request: the embedded device closes it after one.
fn converse(name: &InterfaceName, request: &str) -> io::Result<Zeroizing<String>> {
    let mut stream = connect(&socket_path(name))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
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
    use nix::sys::socket::Backlog;

    use super::*;

    #[test]
    fn an_answer_is_complete_only_with_its_last_line() {
        assert!(is_complete(b"errno=0\n\n"));
        assert!(is_complete(b"listen_port=1\nerrno=98\n\n"));
        assert!(!is_complete(b"listen_port=1\n\n"));
        assert!(!is_complete(b"errno=0\n"));
        assert!(!is_complete(b""));
    }

    #[test]
    fn connecting_to_a_device_that_hangs_fails_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wg.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let waiting = connect(&path).unwrap();
        let asked = std::time::Instant::now();
        assert_eq!(connect(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(asked.elapsed() < 2 * ANSWER_TIMEOUT);
        drop(waiting);
    }
}
