//! Another program flushes the ruleset while peers and the LAN send what no policy allows.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::lab::{
    Backend, Client, LAN_OTHER, LAN_SERVER, LAN_SERVER6, Lab, Space, eventually, policy_rows,
};

const PORT: u16 = 7005;
const SPACING: Duration = Duration::from_millis(1);
/// More would keep an emulated processor from everything else.
const SPACING_EMULATED: Duration = Duration::from_millis(20);
const FLUSHES: usize = 5;
/// How many datagrams are sent on each way around a flush.
const EACH: usize = 20;

/// Datagrams that one host sends to another without a pause, and those that came.
struct Way {
    name: String,
    sent: Arc<AtomicUsize>,
    ear: UdpSocket,
    ended: Arc<AtomicBool>,
    sender: Option<JoinHandle<()>>,
}

impl Way {
    fn begin(spacing: Duration, from: &Space, (to, address): (&Space, &str)) -> Self {
        let to_address = SocketAddr::new(address.parse().unwrap(), PORT);
        let ear = to.within(|| UdpSocket::bind(to_address).unwrap());
        ear.set_nonblocking(true).unwrap();
        let any: IpAddr = if to_address.is_ipv4() { [0u8; 4].into() } else { [0u16; 8].into() };
        let socket = from.within(|| UdpSocket::bind((any, 0)).unwrap());
        let (sent, ended): (Arc<AtomicUsize>, Arc<AtomicBool>) = Default::default();
        let (counter, end) = (Arc::clone(&sent), Arc::clone(&ended));
        let sender = thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                // What is denied may be answered with an error.
                let _ = socket.send_to(b"denied", to_address);
                counter.fetch_add(1, Ordering::SeqCst);
                thread::sleep(spacing);
            }
        });
        let name = format!("{} to {address}", from.name());
        Self { name, sent, ear, ended, sender: Some(sender) }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    /// How many have come since this was last asked.
    fn came(&self) -> usize {
        let mut came = 0;
        loop {
            match self.ear.recv(&mut [0; 16]) {
                Ok(_) => came += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return came,
                Err(_) => {}
            }
        }
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = self.sender.take().map(JoinHandle::join);
    }
}

/// Peers to the LAN, the LAN to a peer, and peers to each other, in both families.
fn every_way(lab: &Lab, alice: &Client, bob: &Client) -> Vec<Way> {
    let spacing = match lab.backend {
        Backend::Kernel => SPACING_EMULATED,
        Backend::Userspace => SPACING,
    };
    let ways = [
        (&alice.space, &lab.lan, LAN_SERVER),
        (&alice.space, &lab.lan, LAN_SERVER6),
        (&lab.lan, &alice.space, &alice.address),
        (&lab.lan, &alice.space, &alice.address6),
        (&alice.space, &bob.space, &bob.address),
        (&alice.space, &bob.space, &bob.address6),
    ];
    ways.map(|(from, to, address)| Way::begin(spacing, from, (to, address))).into()
}

/// Waits until so many more were sent on each way.
fn await_sent(ways: &[Way], more: usize) {
    let wanted: Vec<usize> = ways.iter().map(|way| way.sent() + more).collect();
    eventually("datagrams are sent", || {
        ways.iter().zip(&wanted).all(|(way, wanted)| way.sent() >= *wanted)
    });
}

fn sent(ways: &[Way]) -> usize {
    ways.iter().map(Way::sent).sum()
}

#[track_caller]
fn nothing_came(ways: &[Way], when: &str) {
    let came: Vec<_> = ways.iter().map(|way| (&way.name, way.came())).collect();
    assert!(came.iter().all(|(_, count)| *count == 0), "{when}: {came:?}");
}

/// Two peers with addresses of both families, of which one may reach one host.
fn lab() -> (Lab, Client, Client) {
    let lab = Lab::open();
    lab.write_config_with_heartbeat("10m", "[firewall]\nown_table = false");
    lab.configure_interface("addresses = [\"10.99.0.1/16\", \"fd99::1/64\"]\n");
    lab.lan.ip(&["route add 10.99.0.0/16 via 10.20.0.1", "route add fd99::/64 via fd20::1"]);
    lab.gateway.run("sysctl", &["-qw", "net.ipv4.conf.all.src_valid_mark=1"]);
    let clients = ["alice", "bob"].map(|name| lab.client(name));
    for client in &clients {
        lab.database.exec(&client.rows());
        lab.database.exec(&client.announcement(&client.address6));
    }
    lab.database.exec(&policy_rows("office", "alice", &format!("{LAN_OTHER}/32")));
    let [alice, bob] = clients;
    (lab, alice, bob)
}

/// Where other programs may change the table, the gate keeps what peers and others send from being forwarded
/// until the agent has put the table back, and without an agent for good.
#[test]
fn no_denied_packet_is_forwarded_whoever_flushes_the_table_however_often() {
    let (lab, alice, bob) = lab();
    let agent = lab.start();
    alice.connect();
    bob.connect();
    assert_eq!(lab.status()["firewall"]["gate"], true, "{}", lab.status()["firewall"]);
    let flush = || _ = lab.gateway.run("nft", &["flush", "ruleset"]);
    let rp_filter = |value: u8| {
        lab.gateway.run("sysctl", &["-qw", &format!("net.ipv4.conf.all.rp_filter={value}")]);
    };
    let repaired = || lab.status()["sync"]["drift_repaired"].as_u64().unwrap();
    let ways = every_way(&lab, &alice, &bob);
    let (mut unguarded, begun) = (0, sent(&ways));
    for value in [0, 1, 2] {
        rp_filter(value);
        for _ in 0..FLUSHES {
            await_sent(&ways, EACH / 2);
            let (before, sent_before, flushed) = (repaired(), sent(&ways), Instant::now());
            flush();
            eventually("the table is put back", || repaired() > before);
            unguarded += sent(&ways) - sent_before;
            await_sent(&ways, EACH / 2);
            println!("rp_filter {value}: back within {:?}", flushed.elapsed());
            alice.must_reach(LAN_OTHER, "a policy allows it");
            nothing_came(&ways, &format!("rp_filter {value}, the agent runs"));
        }
        assert_eq!(lab.status()["firewall"]["gate"], true, "{}", lab.status()["firewall"]);
    }
    println!("{} were sent, {unguarded} of them until the table was back", sent(&ways) - begun);
    agent.end(Signal::SIGKILL);
    for value in [0, 1, 2] {
        rp_filter(value);
        flush();
        await_sent(&ways, EACH);
        nothing_came(&ways, &format!("rp_filter {value}, no agent runs"));
    }
    // They would have been heard.
    for family in ["-4", "-6"] {
        lab.gateway.run("ip", &[family, "rule", "flush", "protocol", "71"]);
    }
    for way in &ways {
        eventually(&format!("without table and gate it comes: {}", way.name), || way.came() > 0);
    }
}
