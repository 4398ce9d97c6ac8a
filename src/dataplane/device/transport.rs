//! Where the packets of a userspace device come from and go to.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use defguard_boringtun::device::Error as TunError;
use defguard_boringtun::device::tun::TunSocket;
use gotatun::device::Error;
use gotatun::packet::{Ip, Packet, PacketBufPool};
use gotatun::tun::{IpRecv, IpSend, MtuWatcher};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpTransportFactory, UdpTransportFactoryParams};
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::in_flight::InFlight;
use super::outgoing::Outgoing;

/// Packets that are read at once.
const BATCH: usize = 64;

/// How the engine sends and receives.
pub(super) type Transports = (Ports, Tun, Tun);

/// The TUN device. It is gone with its last clone.
#[derive(Clone)]
pub(super) struct Tun {
    socket: Arc<AsyncFd<TunSocket>>,
    mtu: MtuWatcher,
    outgoing: Outgoing,
}

impl Tun {
    /// Makes a link of this name, which no link may have. `mtu` gives the MTU in bytes.
    ///
    /// # Errors
    /// No `/dev/net/tun`, or no right to make a link.
    pub fn create(name: &str, mtu: watch::Receiver<u16>) -> io::Result<Self> {
        let socket = TunSocket::new(name).and_then(TunSocket::set_non_blocking).map_err(cause)?;
        #[expect(
            deprecated,
            reason = "a TunSocket owns its descriptor, but lends it only as a number"
        )]
        let socket = AsyncFd::new(socket)?;
        let (socket, mtu) = (Arc::new(socket), mtu.into());
        Ok(Self { socket, mtu, outgoing: Outgoing::default() })
    }

    /// The packets that are read from it and have no peer yet.
    pub fn outgoing(&self) -> Outgoing {
        self.outgoing.clone()
    }

    /// Reads a batch without waiting. Returns whether it found the queue empty.
    async fn read_batch(
        &self,
        pool: &PacketBufPool,
        packets: &mut Vec<Packet<Ip>>,
    ) -> io::Result<bool> {
        while packets.len() < BATCH {
            let mut packet = pool.get();
            match self.socket.get_ref().read(&mut packet).map(|read| read.len()).map_err(cause) {
                Ok(len) => {
                    packet.truncate(len);
                    packets.extend(packet.try_into_ip());
                }
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(_) => {
                    pause().await;
                    break;
                }
            }
        }
        Ok(false)
    }
}

impl IpSend for Tun {
    /// A packet that the kernel does not take, because the link is down, say, is lost as on any link.
    async fn send(&mut self, packet: Packet<Ip>) -> io::Result<()> {
        let bytes = packet.into_bytes();
        let write = |tun: &AsyncFd<TunSocket>| match tun.get_ref().write4(&bytes) {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        // A link that is down is not writable: to wait for it would hold up all who wait for the packet.
        let mut written = write(&self.socket);
        loop {
            match written {
                Err(error) if is_gone(&error) => return Err(error),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Ok(()),
            }
            written = match self.socket.writable().await?.try_io(write) {
                Ok(written) => written,
                Err(_would_block) => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
    }
}

impl IpRecv for Tun {
    async fn recv<'a>(
        &'a mut self,
        pool: &mut PacketBufPool,
    ) -> io::Result<impl Iterator<Item = Packet<Ip>> + Send + 'a> {
        let mut packets = Vec::new();
        loop {
            let ready = tokio::select! {
                ready = self.socket.readable() => Some(ready?),
                () = self.outgoing.asked() => None,
            };
            let question = self.outgoing.question();
            let is_empty = self.read_batch(pool, &mut packets).await?;
            if let Some(mut ready) = ready.filter(|_| is_empty) {
                ready.clear_ready();
            }
            let read = packets.len();
            let marker = question.and_then(|it| self.outgoing.read(it, read, is_empty));
            packets.extend(marker);
            if !packets.is_empty() {
                return Ok(packets.into_iter());
            }
        }
    }

    fn mtu(&self) -> MtuWatcher {
        self.mtu.clone()
    }
}

/// The link was deleted: `tun_chr_read_iter` in drivers/net/tun.c.
fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBADFD as i32)
}

fn cause(error: TunError) -> io::Error {
    match error {
        TunError::IoError(error)
        | TunError::Socket(error)
        | TunError::FCntl(error)
        | TunError::IOCtl(error)
        | TunError::IfaceRead(error) => error,
        other => io::Error::other(other),
    }
}

/// What waits in the kernel while the host is too busy to run this process. The kernel's default has room for
/// some 270 small packets, which come in a tenth of a second. `net.core.rmem_max` limits it, without an error.
const RECEIVE_BUFFER_BYTES: usize = 7 << 20;

/// Opens the device's UDP socket: one for both families, or for IPv4 where there is no IPv6.
pub(super) struct Ports {
    factory: UdpSocketFactory,
    in_flight: InFlight,
}

impl Ports {
    /// Notes in `in_flight` the packets that its sockets receive.
    pub fn new(in_flight: InFlight) -> Self {
        let recv_buffer_size = Some(RECEIVE_BUFFER_BYTES);
        let factory = UdpSocketFactory { recv_buffer_size, ..UdpSocketFactory::default() };
        Self { factory, in_flight }
    }
}

impl UdpTransportFactory for Ports {
    type Send = UdpSocket;
    type Recv = Receiver;

    /// The engine opens the next socket while the tasks that hold the last one are being stopped, so a
    /// port that is taken may be its own for a moment.
    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(UdpSocket, Receiver)> {
        const ATTEMPTS: u32 = 50;
        let mut bound = self.factory.bind(params).await;
        for _ in 1..ATTEMPTS {
            match &bound {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => pause().await,
                _ => break,
            }
            bound = self.factory.bind(params).await;
        }
        let (send, socket) = bound?;
        Ok((send, Receiver { socket, in_flight: self.in_flight.clone() }))
    }
}

/// Receives datagrams. The engine would never receive again after an error, such as a moment without
/// memory.
pub(super) struct Receiver {
    socket: UdpSocket,
    in_flight: InFlight,
}

impl UdpRecv for Receiver {
    type RecvManyBuf = <UdpSocket as UdpRecv>::RecvManyBuf;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        loop {
            match self.socket.recv_from(pool).await {
                Err(_) => pause().await,
                Ok(received) => {
                    let mut received = [received];
                    self.in_flight.note(&mut received);
                    let [received] = received;
                    return Ok(received);
                }
            }
        }
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        loop {
            let noted = packets.len();
            match self.socket.recv_many_from(buffer, pool, packets).await {
                Err(_) => pause().await,
                Ok(()) => {
                    self.in_flight.note(&mut packets[noted..]);
                    return Ok(());
                }
            }
        }
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// An error of the engine as the kernel would name it.
pub(super) fn errno(error: Error) -> Errno {
    match error {
        Error::IoError(error) | Error::Bind(error, _) => {
            error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
        }
        _ => Errno::EIO,
    }
}
