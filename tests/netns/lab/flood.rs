//! Datagrams from every client to every destination, and which of them arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Client, Space, eventually};

const PORT: u16 = 7001;
const SPACING: Duration = Duration::from_millis(40);

/// Who reaches what: `alice 10.99.0.11 10.20.0.10` is Alice, from which address, to which.
pub type Ways = BTreeSet<String>;

/// One way, as a datagram tells it.
pub fn way(client: &str, source: &str, destination: &str) -> String {
    format!("{client} {source} {destination}")
}

/// Hears datagrams on every address of some hosts. What was sent in which flood is kept apart: a
/// datagram of an earlier one may arrive late.
#[derive(Default)]
pub struct Ears {
    arrived: Arc<Mutex<BTreeMap<usize, Ways>>>,
    floods: AtomicUsize,
}

impl Ears {
    pub fn open(hosts: &[&Space]) -> Self {
        let ears = Self::default();
        for host in hosts {
            let socket = host.within(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
            let arrived = Arc::clone(&ears.arrived);
            thread::spawn(move || hear(&socket, &arrived));
        }
        ears
    }

    /// Sends from each client's addresses to all destinations, again and again, until dropped. Every
    /// flood has ports of its own, so that its flows are new, and keeps them, so that they live.
    pub fn flood(&self, clients: &[(&Client, &[&str])], destinations: &[&str]) -> Flood {
        let number = self.floods.fetch_add(1, Ordering::SeqCst);
        let stop = Arc::new(AtomicBool::new(false));
        let start = |&(client, sources): &(&Client, &[&str])| {
            let rounds = Arc::new(AtomicUsize::new(0));
            let (stop, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
            let datagrams = datagrams(number, client, sources, destinations);
            let thread = thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    for (socket, to, text) in &datagrams {
                        // Nobody there, no session: that is what is tried.
                        let _ = socket.send_to(text.as_bytes(), to);
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(SPACING);
                }
            });
            (rounds, thread)
        };
        let senders = clients.iter().map(start).collect();
        Flood { number, stop, senders, arrived: Arc::clone(&self.arrived) }
    }
}

type Datagram = (Arc<UdpSocket>, SocketAddr, String);

fn datagrams(
    flood: usize,
    client: &Client,
    sources: &[&str],
    destinations: &[&str],
) -> Vec<Datagram> {
    let mut datagrams = Vec::new();
    for source in sources {
        let socket = client.space.within(|| Arc::new(UdpSocket::bind((*source, 0)).unwrap()));
        for destination in destinations {
            let to = format!("{destination}:{PORT}").parse().unwrap();
            let text = format!("{flood} {}", way(&client.name, source, destination));
            datagrams.push((Arc::clone(&socket), to, text));
        }
    }
    datagrams
}

fn hear(socket: &UdpSocket, arrived: &Mutex<BTreeMap<usize, Ways>>) {
    let mut buffer = [0; 256];
    while let Ok(length) = socket.recv(&mut buffer) {
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        let (flood, way) = text.split_once(' ').unwrap();
        let mut arrived = arrived.lock().unwrap();
        arrived.entry(flood.parse().unwrap()).or_default().insert(way.to_owned());
    }
}

/// A running flood.
pub struct Flood {
    number: usize,
    stop: Arc<AtomicBool>,
    senders: Vec<(Arc<AtomicUsize>, JoinHandle<()>)>,
    arrived: Arc<Mutex<BTreeMap<usize, Ways>>>,
}

impl Flood {
    /// What has arrived of it.
    pub fn arrived(&self) -> Ways {
        self.arrived.lock().unwrap().get(&self.number).cloned().unwrap_or_default()
    }

    /// Waits until every client has sent everything so many times more.
    #[track_caller]
    pub fn await_rounds(&self, more: usize) {
        let rounds = || self.senders.iter().map(|(rounds, _)| rounds.load(Ordering::SeqCst));
        let wanted: Vec<_> = rounds().map(|round| round + more).collect();
        eventually("datagrams are sent", || rounds().zip(&wanted).all(|(has, want)| has >= *want));
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for (_, thread) in self.senders.drain(..) {
            let _ = thread.join();
        }
    }
}
