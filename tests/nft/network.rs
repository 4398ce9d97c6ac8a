//! A gateway, two peers and a LAN, each in a namespace of its own.
//!
//! A bridge stands for the WireGuard interface: packets of both peers come in by it and leave by
//! it, and it needs no keys. Neighbours are fixed, as a tunnel has none to discover.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use gatepost::dataplane::nft::Nft;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use super::netns::Netns;
use super::table::WG;

pub const GATEWAY4: &str = "10.64.0.1";
pub const GATEWAY6: &str = "fd64::1";
pub const LAN4: &str = "172.16.1.2";
pub const LAN6: &str = "fd10::2";
/// Addresses of the host in the LAN that are not special-purpose.
pub const PUBLIC4: &str = "8.8.4.4";
pub const PUBLIC6: &str = "2a00::1";

/// How long an answer is awaited that must come, and one that must not.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(700);
/// Long enough for a SYN that is sent again. Most refusals are answered, and take no time.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

pub struct Network {
    pub gateway: Netns,
    pub alice: Netns,
    pub bob: Netns,
    pub lan: Netns,
    pub nft: Nft,
}

impl Network {
    /// Alice has 10.64.0.2 and fd64::2, Bob 10.64.0.3 and fd64::3. This thread is then in the
    /// gateway's namespace.
    pub fn new() -> Self {
        let [gateway, alice, bob, lan] = std::array::from_fn(|_| Netns::new());
        for netns in [&gateway, &alice, &bob, &lan] {
            // Otherwise IPv6 neighbours cannot be resolved in the first second.
            netns.run("sysctl -qw net.ipv6.conf.default.accept_dad=0");
            // On a veth pair neighbours have to be resolved; in a tunnel there are none.
            netns.run(
                "sysctl -qw net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.default.accept_redirects=0 \
                 net.ipv6.conf.all.accept_redirects=0 net.ipv6.conf.default.accept_redirects=0",
            );
        }
        gateway.run(&format!(
            "ip link add {WG} type bridge mcast_snooping 0
             ip link set {WG} address 02:00:00:00:00:01 mtu 1420 up
             ip addr add {GATEWAY4}/24 dev {WG} && ip addr add {GATEWAY6}/64 dev {WG} nodad
             for name in all default {WG}; do
               sysctl -qw net.ipv4.conf.$name.send_redirects=0 net.ipv4.conf.$name.rp_filter=0
             done
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
        ));
        peer(&gateway, &alice, 2);
        peer(&gateway, &bob, 3);
        gateway.run(&format!(
            "ip link add lan0 type veth peer name lan0 netns {}
             ip addr add 172.16.1.1/24 dev lan0 && ip addr add fd10::1/64 dev lan0 nodad
             ip link set lan0 up
             ip route add {PUBLIC4} via {LAN4} && ip -6 route add {PUBLIC6} via {LAN6}",
            lan.path()
        ));
        lan.run(&format!(
            "ip addr add {LAN4}/24 dev lan0 && ip addr add {LAN6}/64 dev lan0 nodad
             ip addr add {PUBLIC4}/32 dev lan0 && ip addr add {PUBLIC6}/128 dev lan0 nodad
             ip link set lan0 up
             ip route add default via 172.16.1.1 && ip -6 route add default via fd10::1"
        ));
        gateway.receives(GATEWAY6);
        alice.receives("fd64::2");
        bob.receives("fd64::3");
        lan.receives(LAN6);
        lan.receives(PUBLIC6);
        gateway.enter();
        let nft = Nft::open().unwrap();
        Self { gateway, alice, bob, lan, nft }
    }
}

/// Makes the kernel of this namespace forget every tracked flow.
pub fn forget_flows(netns: &Netns) {
    const NLM_F_REQUEST_AND_ACK: u16 = 0x05;
    const IPCTNL_MSG_CT_DELETE: u16 = 0x102;
    let mut request = 20u32.to_ne_bytes().to_vec();
    request.extend(IPCTNL_MSG_CT_DELETE.to_ne_bytes());
    request.extend(NLM_F_REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 12]);
    within(netns, || {
        let netfilter = SockProtocol::NetlinkNetFilter;
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::empty(), netfilter).unwrap();
        send(socket.as_raw_fd(), &request, MsgFlags::empty()).unwrap();
        let mut answer = [0; 64];
        recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
        assert_eq!(answer[16..20], [0; 4], "the kernel refused to forget its flows");
    });
}

fn peer(gateway: &Netns, peer: &Netns, host: u8) {
    let mac = format!("02:00:00:00:00:0{host}");
    gateway.run(&format!(
        "ip link add v{host} type veth peer name v0 netns {} && ip link set v{host} master {WG} up
         bridge link set dev v{host} hairpin on
         ip neigh add 10.64.0.{host} lladdr {mac} nud permanent dev {WG}
         ip neigh add fd64::{host} lladdr {mac} nud permanent dev {WG}",
        peer.path()
    ));
    peer.run(&format!(
        "ip link set v0 address {mac} up
         ip addr add 10.64.0.{host}/32 dev v0 && ip addr add fd64::{host}/128 dev v0 nodad
         ip neigh add {GATEWAY4} lladdr 02:00:00:00:00:01 nud permanent dev v0
         ip neigh add {GATEWAY6} lladdr 02:00:00:00:00:01 nud permanent dev v0
         ip route add default via {GATEWAY4} dev v0 onlink
         ip -6 route add default via {GATEWAY6} dev v0 onlink"
    ));
}

/// Runs a closure on a thread in that namespace.
pub fn within<T: Send>(netns: &Netns, action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let acting = scope.spawn(|| {
            netns.enter();
            action()
        });
        acting.join().unwrap()
    })
}

/// A UDP socket of that host, once its port is free: a program that another test starts holds a
/// copy of each socket that this process had just then, until it runs.
pub fn bind(netns: &Netns, address: &str, port: u16) -> UdpSocket {
    let address: IpAddr = address.parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    within(netns, || {
        loop {
            match UdpSocket::bind((address, port)) {
                Err(taken) if taken.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                    thread::yield_now();
                }
                bound => return bound.unwrap(),
            }
        }
    })
}

/// Serves TCP and UDP on this port of every address of the host until the test ends. A TCP
/// connection first receives its client's address, then an echo; a datagram is answered with it.
pub fn serve(netns: &Netns, port: u16) {
    let any = SocketAddr::from(([0u16; 8], port));
    let (tcp, udp) =
        within(netns, || (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap()));
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let client = stream.peer_addr()?.ip().to_canonical();
                stream.write_all(format!("{client}\n").as_bytes())?;
                let mut writer = stream.try_clone()?;
                io::copy(&mut stream, &mut writer)
            });
        }
    });
    thread::spawn(move || -> io::Result<()> {
        loop {
            let (_, client) = udp.recv_from(&mut [0; 16])?;
            udp.send_to(client.ip().to_canonical().to_string().as_bytes(), client)?;
        }
    });
}

/// A live TCP connection.
pub struct Stream(TcpStream, pub IpAddr);

/// Connects, and returns the address that the server sees.
pub fn connect(from: &Netns, to: &str, port: u16) -> io::Result<Stream> {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    within(from, || {
        let mut stream = TcpStream::connect_timeout(&to, CONNECT_PATIENCE)?;
        stream.set_read_timeout(Some(CONNECT_PATIENCE))?;
        let mut line = Vec::new();
        loop {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            match byte {
                [b'\n'] => break,
                [byte] => line.push(byte),
            }
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        let client = String::from_utf8(line).unwrap().parse().unwrap();
        Ok(Stream(stream, client))
    })
}

impl Stream {
    /// Whether what is sent comes back.
    pub fn echoes(&mut self) -> bool {
        let sent = self.0.write_all(b"x");
        sent.is_ok() && self.hears()
    }

    /// Whether what is sent does not come back.
    pub fn is_silent(&mut self) -> bool {
        self.0.set_read_timeout(Some(SILENCE)).unwrap();
        let is_silent = !self.echoes();
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        is_silent
    }

    /// Whether the echo of something sent earlier comes.
    pub fn hears(&mut self) -> bool {
        self.0.read_exact(&mut [0]).is_ok()
    }

    /// The largest segment that this side sends.
    pub fn max_segment_bytes(&self) -> u32 {
        nix::sys::socket::getsockopt(&self.0, nix::sys::socket::sockopt::TcpMaxSeg).unwrap()
    }
}

/// Whether a datagram is answered.
pub fn asks(from: &Netns, to: &str, port: u16) -> bool {
    is_answered(from, to, port, PATIENCE)
}

/// Whether a datagram is not answered.
pub fn asks_in_vain(from: &Netns, to: &str, port: u16) -> bool {
    !is_answered(from, to, port, SILENCE)
}

fn is_answered(from: &Netns, to: &str, port: u16, patience: Duration) -> bool {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    within(from, || {
        let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.connect(to).is_ok() && socket.send(b"?").is_ok() && socket.recv(&mut [0; 64]).is_ok()
    })
}

/// Whether the host answers that the port is closed.
pub fn is_refused(from: &Netns, to: &str, port: u16) -> bool {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    within(from, || {
        let any: IpAddr = if to.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket.connect(to).unwrap();
        // Another try for an error that was late, or one too many in that second.
        (0..3).any(|_| {
            let answer = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 64]));
            answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        })
    })
}

/// Whether a ping is answered.
pub fn pings(from: &Netns, to: &str) -> bool {
    from.succeeds(&format!("ping -n -c 1 -W 10 {to}"))
}

/// Whether a ping is not answered.
pub fn pings_in_vain(from: &Netns, to: &str) -> bool {
    !from.succeeds(&format!("ping -n -c 1 -W 1 {to}"))
}
