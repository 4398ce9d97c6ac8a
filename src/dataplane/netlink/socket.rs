//! The common part of every netlink socket: its port, its buffers, and how it is read.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::RcvBufForce};

use super::error::NetlinkError;

/// Room for the largest message the kernel makes for a dump (32 KiB, `netlink_recvmsg` in
/// net/netlink/af_netlink.c) and for any ack. The kernel remembers the largest buffer a socket was
/// ever read with and fills as much later, so every read uses this one size.
const RECEIVE_BYTES: usize = 64 * 1024;

/// The buffer for [`receive`].
pub(super) fn buffer() -> Box<[u8]> {
    vec![0; RECEIVE_BYTES].into_boxed_slice()
}

/// Gives a socket its port, which is returned, and a receive queue of this size. Without privilege
/// the queue stays small, and the socket is only quicker to say that messages were lost.
pub(super) fn bind(socket: &mut Socket, queue_bytes: usize) -> Result<u32, NetlinkError> {
    let address = socket.bind_auto().map_err(|error| socket_error("bind", &error))?;
    let _ = setsockopt(&socket.as_fd(), RcvBufForce, &queue_bytes);
    Ok(address.port_number())
}

/// Reads one datagram and returns its length.
pub(super) fn receive(
    socket: &Socket,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> Result<usize, NetlinkError> {
    loop {
        match recv(socket.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
            Ok(len) if len <= buffer.len() => return Ok(len),
            Ok(_) => return Err(NetlinkError::Socket { call: "recv", errno: Errno::EMSGSIZE }),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(NetlinkError::Socket { call: "recv", errno }),
        }
    }
}

pub(super) fn socket_error(call: &'static str, error: &io::Error) -> NetlinkError {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    NetlinkError::Socket { call, errno }
}
