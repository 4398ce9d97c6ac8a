//! An address changes hands: its new holder receives no packet of the old holder's flows.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::{Client, LAN_SERVER, Lab, eventually, policy_rows};

const SERVER_PORT: u16 = 7002;
const CAROLS_PORT: u16 = 7003;
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
        let _agent = if restarted {
            agent.end(Signal::SIGKILL);
            lab.database.exec(&moves);
            lab.start()
        } else {
            lab.database.exec(&moves);
            agent
        };
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
