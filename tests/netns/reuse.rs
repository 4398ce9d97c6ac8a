//! An address changes hands: its new holder receives no packet of the old holder's flows.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::socket::{
    self as net, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::lab::{Agent, Client, GATEWAY_TUNNEL, LAN_SERVER, Lab, eventually, policy_rows};

const TUNNEL6: &str = "fd99::1";
const SERVER_PORT: u16 = 7002;
const CAROLS_PORT: u16 = 7003;
/// A port of services of the gateway.
const SERVICE: u16 = 7004;
/// How long a socket waits for an answer.
const LOOK: Duration = Duration::from_millis(5);
/// How many datagrams of the old flow are sent, and must not arrive, after the address has moved.
const TRIED_IN_VAIN: u64 = 200;

#[test]
fn new_holder_of_an_address_receives_no_packet_of_old_flows() {
    for masquerade in ["all", "none"] {
        for restarted in [false, true] {
            println!("masquerade {masquerade}, the agent restarted meanwhile: {restarted}");
            address_moves(masquerade, restarted);
        }
    }
}

/// Carol vanishes while a session and a stream of services of the gateway have something to send to her, and
/// both of her addresses go to Dave, who may reach the same services.
#[test]
fn new_holder_of_an_address_receives_nothing_that_services_of_the_gateway_send_to_the_former() {
    for restarted in [false, true] {
        println!("the agent restarted meanwhile: {restarted}");
        services_go_on(restarted);
    }
}

fn services_go_on(restarted: bool) {
    let lab = Lab::open();
    lab.write_config("");
    lab.configure_interface(&format!("addresses = [\"{GATEWAY_TUNNEL}/16\", \"{TUNNEL6}/64\"]\n"));
    let (carol, dave) = (lab.client("carol"), lab.client("dave"));
    for client in [&carol, &dave] {
        lab.database.exec(&client.rows());
        for gateway in [format!("{GATEWAY_TUNNEL}/32"), format!("{TUNNEL6}/128")] {
            let name = format!("{} {gateway}", client.name);
            lab.database.exec(&policy_rows(&name, &client.name, &gateway));
        }
    }
    lab.database.exec("delete from ip_allocations");
    lab.database.exec(&carol.announcement(&carol.address6));
    dave.hold(&[&carol.address, &carol.address6]);
    let agent = lab.start();
    carol.connect();
    let mut services: Vec<_> = [(GATEWAY_TUNNEL, &carol.address), (TUNNEL6, &carol.address6)]
        .map(|(gateway, holder)| Services::begin(&lab, &carol, gateway, holder))
        .into();
    // From now on she acknowledges nothing.
    carol.space.run("ip", &["link", "set", "eth0", "down"]);
    services.iter_mut().for_each(|it| it.session.write_all(b"for carol").unwrap());
    let heard = Heard::begin(&dave, &services);
    let moves = format!(
        "{};
         update wireguard_peers set assigned_ip = '{}', allowed_ips = array['{}'::cidr]
             where public_key = '{}'",
        carol.revocation(),
        carol.address,
        carol.address6,
        dave.key
    );
    let _agent = exec(&lab, agent, &moves, restarted);
    for Services { gateway, holder, session, stream, caller, .. } in &mut services {
        eventually(&format!("{holder}: Dave is served"), || {
            dave.dial();
            speaks(&dave, holder, gateway)
        });
        eventually(&format!("{holder}: the session is closed"), || {
            session.write_all(b"for carol").is_err()
        });
        for _ in 0..TRIED_IN_VAIN {
            // Our own firewall lets a sender know at once.
            let _ = stream.send_to(b"for carol", *caller);
        }
        // Behind what came before it.
        assert!(speaks(&dave, holder, gateway));
    }
    assert_eq!(heard.packets(), [0; 4], "packets for Carol reached Dave");
    for (at, Services { gateway, holder, stream, caller, .. }) in services.iter().enumerate() {
        let own = dave.space.within(|| UdpSocket::bind((*holder, CAROLS_PORT)).unwrap());
        eventually(&format!("{holder}: what answers him on the same ports is heard"), || {
            own.send_to(b"dave", (*gateway, SERVICE)).unwrap();
            let _ = stream.send_to(b"for dave", *caller);
            heard.packets()[2 * at + 1] > 0
        });
    }
}

/// Writes rows while the agent runs, or else is away.
fn exec(lab: &Lab, agent: Agent, rows: &str, restarted: bool) -> Agent {
    if restarted {
        agent.end(Signal::SIGKILL);
        lab.database.exec(rows);
        lab.start()
    } else {
        lab.database.exec(rows);
        agent
    }
}

/// Whether a client can open a session with a service from this address.
fn speaks(client: &Client, from: &str, to: &str) -> bool {
    let [from, to] = [(from, 0), (to, SERVICE)]
        .map(|(address, port)| SocketAddr::new(address.parse().unwrap(), port));
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    client.space.within(|| {
        let caller = net::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        net::bind(caller.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
        setsockopt(&caller, sockopt::SendTimeout, &TimeVal::seconds(1)).unwrap();
        net::connect(caller.as_raw_fd(), &SockaddrStorage::from(to)).is_ok()
    })
}

/// Counts packets that a client receives of sessions and streams that are another's.
struct Heard<'a>(&'a Client);

impl<'a> Heard<'a> {
    fn begin(client: &'a Client, services: &[Services<'_>]) -> Self {
        let rules = services.iter().flat_map(|it| {
            let port = it.client.local_addr().unwrap().port();
            [("tcp", port), ("udp", CAROLS_PORT)].map(|(protocol, port)| {
                format!(
                    "add rule inet heard it {protocol} sport {SERVICE} {protocol} dport {port} \
                     meta nfproto ipv{} counter\n",
                    if it.gateway.contains(':') { 6 } else { 4 }
                )
            })
        });
        let rules: String = rules.collect();
        let chain = "add table inet heard\nadd chain inet heard it { type filter hook prerouting priority -300; }\n";
        client.space.run("nft", &[&format!("{chain}{rules}")]);
        Self(client)
    }

    /// Of each service those of the session and those of the stream.
    fn packets(&self) -> [u64; 4] {
        let listing = self.0.space.run("nft", &["list", "chain", "inet", "heard", "it"]);
        let counted = listing.lines().filter_map(|line| {
            let (_, counter) = line.split_once("counter packets ")?;
            counter.split_whitespace().next()?.parse().ok()
        });
        counted.collect::<Vec<_>>().try_into().unwrap()
    }
}

/// A session and a stream between a client and services of the gateway.
struct Services<'a> {
    gateway: &'static str,
    /// The client's address.
    holder: &'a str,
    /// Both ends of the session.
    session: TcpStream,
    client: TcpStream,
    stream: UdpSocket,
    caller: SocketAddr,
}

impl<'a> Services<'a> {
    fn begin(lab: &Lab, client: &Client, gateway: &'static str, holder: &'a str) -> Self {
        let (listener, stream) = lab.gateway.within(|| {
            let address = (gateway, SERVICE);
            (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())
        });
        let call = || {
            client.space.within(|| {
                let stream = UdpSocket::bind((holder, CAROLS_PORT)).unwrap();
                stream.send_to(b"carol", (gateway, SERVICE)).unwrap();
                let to = SocketAddr::new(gateway.parse().unwrap(), SERVICE);
                TcpStream::connect_timeout(&to, Duration::from_secs(10)).unwrap()
            })
        };
        let client = call();
        let session = listener.accept().unwrap().0;
        let caller = stream.recv_from(&mut [0; 16]).unwrap().1;
        // Until the test ends.
        thread::spawn(move || listener.incoming().for_each(drop));
        Self { gateway, holder, session, client, stream, caller }
    }
}

/// Carol's address moves to Dave, who may reach the same server, while that goes on sending to her.
fn address_moves(masquerade: &str, restarted: bool) {
    let lab = Lab::open();
    lab.write_config(&format!("[firewall]\nmasquerade = \"{masquerade}\"\n"));
    lab.lan.run("ip", &["route", "add", "10.99.0.0/16", "via", "10.20.0.1"]);
    let (carol, dave) = (lab.client("carol"), lab.client("dave"));
    for client in [&carol, &dave] {
        lab.database.exec(&client.rows());
        lab.database.exec(&policy_rows(&client.name, &client.name, &format!("{LAN_SERVER}/32")));
    }
    lab.database.exec("delete from ip_allocations");
    dave.hold(&[&carol.address]);
    let ear = socket(&dave, &carol.address, CAROLS_PORT);
    let agent = lab.start();
    let server = Server::default();
    let socket_of_server = lab.lan.within(|| UdpSocket::bind((LAN_SERVER, SERVER_PORT)).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| server.run(&socket_of_server));
        let _ended = EndOnDrop(&server.ended);
        let old = socket(&carol, &carol.address, CAROLS_PORT);
        eventually("the server answers Carol", || {
            carol.dial();
            old.send(b"carol").is_ok() && hears(&old, "old flow")
        });
        let moves = format!(
            "{};
             update wireguard_peers set assigned_ip = '{}' where public_key = '{}'",
            carol.revocation(),
            carol.address,
            dave.key
        );
        let _agent = exec(&lab, agent, &moves, restarted);
        let new = socket(&dave, &carol.address, 0);
        eventually("the server answers Dave", || {
            dave.dial();
            new.send(b"dave").is_ok() && hears(&new, "answer")
        });
        let before = server.sent.load(Ordering::SeqCst);
        eventually("the server goes on", || {
            server.sent.load(Ordering::SeqCst) > before + TRIED_IN_VAIN
        });
        assert!(!hears(&ear, "old flow"), "a datagram of Carol's flow reached Dave");
        // It would have been heard.
        eventually("Dave's own flow from that port passes", || {
            ear.send(b"dave").is_ok() && hears(&ear, "answer")
        });
    });
}

fn socket(client: &Client, address: &str, port: u16) -> UdpSocket {
    let server: SocketAddr = format!("{LAN_SERVER}:{SERVER_PORT}").parse().unwrap();
    client.space.within(|| {
        let socket = UdpSocket::bind((address, port)).unwrap();
        socket.set_read_timeout(Some(LOOK)).unwrap();
        socket.connect(server).unwrap();
        socket
    })
}

/// Whether what comes next says this.
fn hears(socket: &UdpSocket, text: &str) -> bool {
    let mut buffer = [0; 16];
    socket.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == text.as_bytes())
}

/// Sends to where Carol was heard from without a pause, and answers Dave.
#[derive(Default)]
struct Server {
    sent: AtomicU64,
    ended: AtomicBool,
}

impl Server {
    fn run(&self, socket: &UdpSocket) {
        socket.set_read_timeout(Some(LOOK)).unwrap();
        let mut carol = None;
        while !self.ended.load(Ordering::SeqCst) {
            let mut buffer = [0; 16];
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                if &buffer[..length] == b"carol" {
                    carol = Some(from);
                } else {
                    let _ = socket.send_to(b"answer", from);
                }
            }
            if let Some(carol) = carol {
                let _ = socket.send_to(b"old flow", carol);
                self.sent.fetch_add(1, Ordering::SeqCst);
            }
        }
    }
}

struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
