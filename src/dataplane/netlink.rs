//! One blocking netlink socket: requests with their acknowledgements, and whole dumps.
//!
//! Blocking on purpose: the kernel answers a netlink request inside the call that sends it, and the
//! data plane has a thread of its own. Several requests go in one datagram, which the kernel works
//! off in one system call: a kill of this process finds all of them done or none begun.

mod error;
mod message;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt::RcvBufForce};
use zeroize::Zeroize;

pub use error::NetlinkError;
pub(crate) use error::gone_is_done;
use message::{NLMSG_DONE, NLMSG_ERROR, messages};
pub(crate) use message::{attributes, fixed};

/// Room for the largest message the kernel makes for a dump (32 KiB, `netlink_recvmsg` in
/// net/netlink/af_netlink.c) and for any acknowledgement. The kernel remembers the largest buffer a
/// socket ever read with, and a smaller one later would be overrun: there is only this one.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Acknowledgements are charged with about a page each; this holds a full window of them.
const SOCKET_BUFFER_BYTES: usize = 8 * 1024 * 1024;
/// Requests in flight before their acknowledgements are read.
const WINDOW: usize = 256;
/// How often a dump is begun anew when the kernel says that it is inconsistent.
const DUMP_TRIES: u32 = 10;

/// One request: what it carries and its flags beyond `NLM_F_REQUEST` and `NLM_F_ACK`.
pub(crate) struct Request<I> {
    pub payload: I,
    pub flags: u16,
}

impl<I> Request<I> {
    pub const fn new(payload: I) -> Self {
        Self { payload, flags: 0 }
    }

    pub const fn with_flags(payload: I, flags: u16) -> Self {
        Self { payload, flags }
    }
}

/// A payload that can be sent again.
pub(crate) struct Borrowed<'a, I>(pub &'a I);

impl<I: NetlinkSerializable> NetlinkSerializable for Borrowed<'_, I> {
    fn message_type(&self) -> u16 {
        self.0.message_type()
    }

    fn buffer_len(&self) -> usize {
        self.0.buffer_len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        self.0.serialize(buffer);
    }
}

/// A netlink socket of one protocol, in the network namespace of the thread that opened it.
pub(crate) struct Channel {
    socket: Socket,
    port: u32,
    sequence: u32,
    outgoing: Vec<u8>,
    incoming: Box<[u8]>,
}

impl Channel {
    /// Opens a socket, for example of [`netlink_sys::protocols::NETLINK_ROUTE`].
    pub fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(protocol).map_err(|error| failed("socket", &error))?;
        let port = socket.bind_auto().map_err(|error| failed("bind", &error))?.port_number();
        socket.connect(&SocketAddr::new(0, 0)).map_err(|error| failed("connect", &error))?;
        // Each of these only makes the socket better: an old kernel or a missing privilege leaves
        // it working, and a privilege that is really needed is missed by the request itself.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        let _ = setsockopt(&socket.as_fd(), RcvBufForce, &SOCKET_BUFFER_BYTES);
        let incoming = vec![0; RECEIVE_BYTES].into_boxed_slice();
        Ok(Self { socket, port, sequence: 0, outgoing: Vec::new(), incoming })
    }

    /// The socket's number, which the events of our own writes carry.
    pub const fn port(&self) -> u32 {
        self.port
    }

    /// Sends requests in windows, each window one datagram, and returns the kernel's verdict on
    /// each, in their order. The kernel tries all of them, whatever becomes of one.
    ///
    /// # Errors
    /// Only when the socket fails; then it is unknown which requests were obeyed.
    pub fn transact<I: NetlinkSerializable>(
        &mut self,
        requests: impl IntoIterator<Item = Request<I>>,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut requests = requests.into_iter();
        let mut verdicts = Vec::new();
        loop {
            let first = self.sequence.wrapping_add(1);
            let mut count = 0;
            for request in requests.by_ref().take(WINDOW) {
                self.push(request.payload, request.flags | NLM_F_ACK);
                count += 1;
            }
            if count == 0 {
                return Ok(verdicts);
            }
            self.send()?;
            verdicts.append(&mut self.verdicts(first, count)?);
        }
    }

    /// Sends one request and waits for its verdict.
    pub fn request<I: NetlinkSerializable>(
        &mut self,
        request: Request<I>,
    ) -> Result<(), NetlinkError> {
        self.transact([request])?.pop().ok_or(NetlinkError::Malformed("no verdict"))?
    }

    /// Asks for one thing and folds the answer, message by message without headers, into a `T`.
    pub fn get<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: I,
        take: impl FnMut(&mut T, u16, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        self.read_once(payload, NLM_F_ACK, take).map(|(taken, _)| taken)
    }

    /// Dumps a table and folds it into a `T`, as often as it takes to read it whole.
    ///
    /// # Errors
    /// [`NetlinkError::Interrupted`] when it changed under every reading: a part is never returned.
    pub fn dump<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: impl Fn() -> I,
        mut take: impl FnMut(&mut T, u16, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        for _ in 0..DUMP_TRIES {
            let (taken, whole) = self.read_once(payload(), NLM_F_DUMP, &mut take)?;
            if whole {
                return Ok(taken);
            }
        }
        Err(NetlinkError::Interrupted { tries: DUMP_TRIES })
    }

    /// Reads the first message of a dump and leaves the rest, after which the socket is of no use.
    pub fn first_of_dump<I: NetlinkSerializable, T: Default>(
        mut self,
        payload: I,
        mut take: impl FnMut(&mut T, u16, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<T, NetlinkError> {
        self.push(payload, NLM_F_DUMP);
        self.send()?;
        let len = self.receive()?;
        let mut taken = T::default();
        for message in messages(&self.incoming[..len]) {
            let message = message?;
            if message.kind == NLMSG_ERROR || message.kind == NLMSG_DONE {
                message.verdict()??;
            } else {
                take(&mut taken, message.kind, message.payload)?;
            }
        }
        // It may have held keys.
        self.incoming.zeroize();
        Ok(taken)
    }

    fn push<I: NetlinkSerializable>(&mut self, payload: I, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
        message.finalize();
        let start = self.outgoing.len();
        let end = start + message.buffer_len().next_multiple_of(4);
        self.outgoing.resize(end, 0);
        message.serialize(&mut self.outgoing[start..start + message.header.length as usize]);
    }

    fn send(&mut self) -> Result<(), NetlinkError> {
        let sent = self.socket.send(&self.outgoing, 0);
        // It may have held keys.
        self.outgoing.zeroize();
        sent.map(drop).map_err(|error| failed("send", &error))
    }

    fn receive(&mut self) -> Result<usize, NetlinkError> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut self.incoming, MsgFlags::MSG_TRUNC) {
                Ok(len) if len > self.incoming.len() => {
                    return Err(NetlinkError::Malformed("longer than the receive buffer"));
                }
                Ok(len) => return Ok(len),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Socket { call: "recv", errno }),
            }
        }
    }

    fn verdicts(
        &mut self,
        first: u32,
        count: usize,
    ) -> Result<Vec<Result<(), NetlinkError>>, NetlinkError> {
        let mut heard = HashMap::with_capacity(count);
        while heard.len() < count {
            let len = self.receive()?;
            for message in messages(&self.incoming[..len]) {
                let message = message?;
                let index = message.sequence.wrapping_sub(first) as usize;
                // One of a request that was given up earlier says nothing about these.
                if message.kind == NLMSG_ERROR && index < count {
                    heard.insert(index, message.verdict()?);
                }
            }
        }
        let verdict = |index| heard.remove(&index);
        let ordered: Option<Vec<_>> = (0..count).map(verdict).collect();
        ordered.ok_or(NetlinkError::Malformed("an acknowledgement of no request"))
    }

    /// Whether what was read is of one moment is the second value.
    fn read_once<I: NetlinkSerializable, T: Default>(
        &mut self,
        payload: I,
        flags: u16,
        mut take: impl FnMut(&mut T, u16, &[u8]) -> Result<(), NetlinkError>,
    ) -> Result<(T, bool), NetlinkError> {
        self.push(payload, flags);
        self.send()?;
        let mut taken = T::default();
        // After an answer that cannot be used the rest is still read, or it would be taken for the
        // answer to the next request.
        let mut outcome = Ok(());
        let mut whole = true;
        loop {
            let len = self.receive()?;
            let mut ended = false;
            for message in messages(&self.incoming[..len]) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= message.flags & NLM_F_DUMP_INTR == 0;
                if message.kind == NLMSG_ERROR || message.kind == NLMSG_DONE {
                    ended = true;
                    outcome = outcome.and(message.verdict()?);
                } else if outcome.is_ok() {
                    outcome = take(&mut taken, message.kind, message.payload);
                }
            }
            if ended {
                // It may have held keys.
                self.incoming.zeroize();
                return outcome.map(|()| (taken, whole));
            }
        }
    }
}

fn failed(call: &'static str, error: &std::io::Error) -> NetlinkError {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    NetlinkError::Socket { call, errno }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that answers each request with the messages of a script, over the protocol that the
    /// kernel keeps for processes to speak with each other. Ends with its script, and returns how
    /// many requests it had.
    fn scripted(
        script: Vec<Vec<(u16, u16, Vec<u8>)>>,
    ) -> (Channel, std::thread::JoinHandle<usize>) {
        let protocol = netlink_sys::protocols::NETLINK_USERSOCK;
        let mut kernel = Socket::new(protocol).unwrap();
        let address = kernel.bind_auto().unwrap();
        let mut socket = Socket::new(protocol).unwrap();
        let port = socket.bind_auto().unwrap().port_number();
        socket.connect(&address).unwrap();
        let incoming = vec![0; RECEIVE_BYTES].into_boxed_slice();
        let channel = Channel { socket, port, sequence: 0, outgoing: Vec::new(), incoming };
        let answer = move || {
            let mut requests = 0;
            for messages in script {
                let (request, from) = kernel.recv_from_full().unwrap();
                requests += 1;
                for (kind, flags, payload) in messages {
                    let mut bytes =
                        u32::try_from(16 + payload.len()).unwrap().to_ne_bytes().to_vec();
                    bytes.extend(kind.to_ne_bytes());
                    bytes.extend(flags.to_ne_bytes());
                    bytes.extend(&request[8..12]);
                    bytes.extend([0; 4]);
                    bytes.extend(payload);
                    kernel.send_to(&bytes, &from, 0).unwrap();
                }
            }
            requests
        };
        (channel, std::thread::spawn(answer))
    }

    fn request() -> netlink_packet_netfilter::NetfilterMessage {
        netlink_packet_netfilter::NetfilterMessage::new(
            netlink_packet_netfilter::NetfilterHeader::new(
                netlink_packet_netfilter::NetfilterProtoFamily::IPv4,
                0,
                0,
            ),
            netlink_packet_netfilter::conntrack::ConntrackMessage::Get(vec![]),
        )
    }

    fn numbers(channel: &mut Channel) -> Result<Vec<u8>, NetlinkError> {
        channel.dump(request, |numbers: &mut Vec<u8>, _, payload| {
            numbers.push(payload[0]);
            Ok(())
        })
    }

    fn number(number: u8, flags: u16) -> (u16, u16, Vec<u8>) {
        (16, flags, vec![number, 0, 0, 0])
    }

    fn done(flags: u16) -> (u16, u16, Vec<u8>) {
        (NLMSG_DONE, flags, vec![0; 4])
    }

    #[test]
    fn an_interrupted_dump_is_thrown_away_and_read_again() {
        let (mut channel, kernel) = scripted(vec![
            vec![number(1, 0), number(2, NLM_F_DUMP_INTR), done(0)],
            vec![number(3, 0), done(NLM_F_DUMP_INTR)],
            vec![number(1, 0), number(2, 0), number(3, 0), done(0)],
        ]);
        assert_eq!(numbers(&mut channel), Ok(vec![1, 2, 3]));
        assert_eq!(kernel.join().unwrap(), 3);
    }

    #[test]
    fn a_dump_that_is_never_whole_is_an_error() {
        let script = vec![vec![number(1, NLM_F_DUMP_INTR), done(0)]; DUMP_TRIES as usize];
        let (mut channel, kernel) = scripted(script);
        let interrupted = Err(NetlinkError::Interrupted { tries: DUMP_TRIES });
        assert_eq!(numbers(&mut channel), interrupted);
        assert_eq!(kernel.join().unwrap(), DUMP_TRIES as usize);
    }

    #[test]
    fn an_acknowledgement_that_comes_late_is_not_taken_for_another() {
        let ack = |code: i32| (NLMSG_ERROR, 0, code.to_ne_bytes().to_vec());
        let (mut channel, kernel) = scripted(vec![vec![ack(-1)], vec![ack(0)]]);
        // Sent, and its answer never read.
        channel.push(request(), 0);
        channel.send().unwrap();
        assert_eq!(channel.request(Request::new(request())), Ok(()));
        kernel.join().unwrap();
    }

    #[test]
    fn a_dump_that_fails_at_its_end_is_an_error() {
        let failed = (NLMSG_DONE, 0, (-12i32).to_ne_bytes().to_vec());
        let (mut channel, kernel) = scripted(vec![vec![number(1, 0), failed]]);
        assert_eq!(numbers(&mut channel).unwrap_err().refusal(), Some(Errno::ENOMEM));
        kernel.join().unwrap();
    }
}
