//! Datagrams from every client to every destination and back again, and which of them arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Client, Space, eventually};

const PORT: u16 = 7001;
const SPACING: Duration = Duration::from_millis(40);
/// A way counts as silent after this long without a datagram.
const SILENCE: Duration = Duration::from_secs(1);

/// Who reaches what: `alice 10.99.0.11 10.20.0.10` is Alice, from which address, to which. What
/// comes back to her on the same flow is `alice 10.99.0.11 10.20.0.10 back`.
pub type Ways = BTreeSet<String>;

/// One way there and back, as datagrams tell it.
pub fn way(client: &str, source: &str, destination: &str) -> [String; 2] {
    let there = format!("{client} {source} {destination}");
    let back = format!("{there}{BACK}");
    [there, back]
}

const BACK: &str = " back";

/// Hears datagrams on some addresses, and sends to whoever was ever heard for as long as its flood
/// lasts, asked or not. What was sent in which flood is kept apart: a datagram of an earlier one may
/// arrive late.
pub struct Ears {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    floods: Mutex<Vec<Heard>>,
    closed: AtomicBool,
}

/// What was heard of a flood.
#[derive(Default)]
struct Heard {
    allowed: Ways,
    times: BTreeMap<String, usize>,
    over: bool,
}

impl Ears {
    pub fn open(places: &[(&Space, &str)]) -> Self {
        let shared = Arc::new(Shared::default());
        for (host, address) in places {
            let socket = host.within(|| UdpSocket::bind((*address, PORT)).unwrap());
            socket.set_read_timeout(Some(SPACING)).unwrap();
            let shared = Arc::clone(&shared);
            thread::spawn(move || converse(&socket, &shared));
        }
        Self { shared }
    }

    /// Sends from each client's addresses to all destinations, again and again, until dropped. Every
    /// flood has ports of its own, so that its flows are new, and keeps them, so that they live.
    /// Nothing but `allowed` may ever arrive of it, however late.
    pub fn flood(
        &self,
        clients: &[(&Client, &[&str])],
        destinations: &[&str],
        allowed: Ways,
    ) -> Flood {
        let number = self.shared.begin(allowed);
        let stop = Arc::new(AtomicBool::new(false));
        let start = |&(client, sources): &(&Client, &[&str])| {
            let rounds = Arc::new(AtomicUsize::new(0));
            let (stop, counted) = (Arc::clone(&stop), Arc::clone(&rounds));
            let (sockets, datagrams) = datagrams(number, client, sources, destinations);
            let shared = Arc::clone(&self.shared);
            let thread = thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    for (socket, to, text) in &datagrams {
                        // No receiver and no session are among the cases.
                        let _ = socket.send_to(text.as_bytes(), to);
                    }
                    counted.fetch_add(1, Ordering::SeqCst);
                    thread::sleep(SPACING);
                    sockets.iter().for_each(|socket| while hear(socket, &shared).is_some() {});
                }
            });
            (rounds, thread)
        };
        let senders = clients.iter().map(start).collect();
        Flood { number, stop, senders, shared: Arc::clone(&self.shared) }
    }

    /// Everything that arrived without being allowed, with the number of its flood.
    pub fn leaked(&self) -> Vec<(usize, Ways)> {
        let floods = self.shared.floods();
        let leaks = floods.iter().map(Heard::leaked).enumerate();
        leaks.filter(|(_, ways)| !ways.is_empty()).collect()
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn floods(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.floods.lock().unwrap()
    }

    /// The number of a new flood.
    fn begin(&self, allowed: Ways) -> usize {
        let mut floods = self.floods();
        floods.push(Heard { allowed, ..Heard::default() });
        floods.len() - 1
    }

    /// Whether the flood of this datagram lasts.
    fn lasts(&self, datagram: &str) -> bool {
        !self.floods()[parse(datagram).0].over
    }
}

impl Heard {
    fn arrived(&self) -> Ways {
        self.times.keys().cloned().collect()
    }

    fn leaked(&self) -> Ways {
        self.arrived().difference(&self.allowed).cloned().collect()
    }
}

type Datagram = (Arc<UdpSocket>, SocketAddr, String);

fn datagrams(
    flood: usize,
    client: &Client,
    sources: &[&str],
    destinations: &[&str],
) -> (Vec<Arc<UdpSocket>>, Vec<Datagram>) {
    let (mut sockets, mut datagrams) = (Vec::new(), Vec::new());
    for source in sources {
        let from: IpAddr = source.parse().unwrap();
        let socket = client.space.within(|| Arc::new(UdpSocket::bind((from, 0)).unwrap()));
        socket.set_nonblocking(true).unwrap();
        sockets.push(Arc::clone(&socket));
        for destination in destinations {
            let to: IpAddr = destination.parse().unwrap();
            if from.is_ipv4() == to.is_ipv4() {
                let [there, _] = way(&client.name, source, destination);
                let text = format!("{flood} {there}");
                datagrams.push((Arc::clone(&socket), SocketAddr::new(to, PORT), text));
            }
        }
    }
    (sockets, datagrams)
}

/// The number of its flood, and the way that a datagram tells of.
fn parse(datagram: &str) -> (usize, &str) {
    let (flood, way) = datagram.split_once(' ').unwrap();
    (flood.parse().unwrap(), way)
}

/// Takes note of one datagram: what it says, and who sent it.
fn hear(socket: &UdpSocket, shared: &Shared) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 256];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    let text = std::str::from_utf8(&buffer[..length]).unwrap();
    let (flood, way) = parse(text);
    *shared.floods()[flood].times.entry(way.to_owned()).or_default() += 1;
    Some((text.to_owned(), from))
}

fn converse(socket: &UdpSocket, shared: &Shared) {
    let mut callers: BTreeMap<String, SocketAddr> = BTreeMap::new();
    let mut spoke = Instant::now();
    while !shared.closed.load(Ordering::SeqCst) {
        callers.extend(hear(socket, shared));
        if spoke.elapsed() >= SPACING {
            spoke = Instant::now();
            callers.retain(|text, _| shared.lasts(text));
            for (text, caller) in &callers {
                let _ = socket.send_to(format!("{text}{BACK}").as_bytes(), caller);
            }
        }
    }
}

/// A running flood.
pub struct Flood {
    number: usize,
    stop: Arc<AtomicBool>,
    senders: Vec<(Arc<AtomicUsize>, JoinHandle<()>)>,
    shared: Arc<Shared>,
}

impl Flood {
    /// What has arrived of it.
    pub fn arrived(&self) -> Ways {
        self.shared.floods()[self.number].arrived()
    }

    /// What has arrived of it and was not allowed.
    pub fn leaked(&self) -> Ways {
        self.shared.floods()[self.number].leaked()
    }

    /// Waits until every client has sent everything so many times more.
    #[track_caller]
    pub fn await_rounds(&self, more: usize) {
        let rounds = || self.senders.iter().map(|(rounds, _)| rounds.load(Ordering::SeqCst));
        let wanted: Vec<_> = rounds().map(|round| round + more).collect();
        eventually("datagrams are sent", || rounds().zip(&wanted).all(|(has, want)| has >= *want));
    }

    /// Waits until so many more datagrams have come on each of these ways.
    #[track_caller]
    pub fn await_arrivals(&self, ways: &Ways, more: usize) {
        let before = self.times();
        eventually(&format!("datagrams come on {ways:?}"), || {
            let now = self.times();
            let count = |times: &BTreeMap<String, usize>, way| times.get(way).copied();
            ways.iter().all(|way| count(&now, way) >= Some(count(&before, way).unwrap_or(0) + more))
        });
    }

    /// Waits until nothing has come for a second on any of these ways, while everything was sent.
    #[track_caller]
    pub fn await_silence(&self, ways: &Ways) {
        let heard = || {
            let mut times = self.times();
            times.retain(|way, _| ways.contains(way));
            times
        };
        let mut last = (heard(), Instant::now());
        eventually(&format!("nothing comes any more on {ways:?}"), || {
            let now = heard();
            if now != last.0 {
                last = (now, Instant::now());
            }
            last.1.elapsed() > SILENCE
        });
    }

    fn times(&self) -> BTreeMap<String, usize> {
        self.shared.floods()[self.number].times.clone()
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for (_, thread) in self.senders.drain(..) {
            let _ = thread.join();
        }
        self.shared.floods()[self.number].over = true;
    }
}
