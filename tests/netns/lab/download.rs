//! A download: a LAN host sends to a peer continuously, by TCP and UDP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Client, LAN_SERVER, Space, eventually};

/// The interval between packets: the precision with which the last packet is known.
const SPACING: Duration = Duration::from_millis(2);
const SEGMENT: [u8; 256] = [7; 256];
/// How often an idle thread checks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

/// A running download. Dropping it ends it.
pub struct Download {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    datagrams_sent: AtomicU64,
    came: Mutex<Came>,
}

type Job = Box<dyn FnOnce(&Shared) + Send>;

/// What arrived.
#[derive(Debug, Clone, Copy, Default)]
pub struct Came {
    pub last: Option<Instant>,
    pub longest_pause: Duration,
    pub bytes: u64,
    pub datagrams: u64,
    /// Datagrams before the last one that did not come.
    pub lost: u64,
}

impl Came {
    /// The number of the last datagram that came.
    pub const fn highest(&self) -> u64 {
        (self.datagrams + self.lost).saturating_sub(1)
    }
}

impl Download {
    /// Opens both flows from the peer's side, and waits until they flow.
    pub fn start(client: &Client, lan: &Space) -> Self {
        let shared = Arc::new(Shared::default());
        let (listener, from) = lan.within(|| {
            let listener = TcpListener::bind((LAN_SERVER, 0)).unwrap();
            (listener, UdpSocket::bind((LAN_SERVER, 0)).unwrap())
        });
        let stream = client.tcp(LAN_SERVER, listener.local_addr().unwrap().port()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let to = client.space.within(|| UdpSocket::bind("0.0.0.0:0").unwrap());
        // A machine that is busy elsewhere must not look like one that loses packets.
        setsockopt(&to, sockopt::RcvBufForce, &(8 << 20)).unwrap();
        to.connect(from.local_addr().unwrap()).unwrap();
        let jobs: [Job; 4] = [
            Box::new(move |shared| send_segments(accepted, shared)),
            Box::new(move |shared| send_datagrams(&from, shared)),
            Box::new(move |shared| read_segments(stream, shared)),
            Box::new(move |shared| read_datagrams(&to, shared)),
        ];
        let threads = jobs.map(|job| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || job(&shared))
        });
        let download = Self { shared, threads: threads.into() };
        eventually("the download flows", || {
            let came = download.came();
            came.bytes > 0 && came.datagrams > 0
        });
        download
    }

    pub fn came(&self) -> Came {
        *self.shared.came.lock().unwrap()
    }

    /// How many datagrams the LAN has sent: the number of the next one.
    pub fn datagrams_sent(&self) -> u64 {
        self.shared.datagrams_sent.load(Ordering::SeqCst)
    }

    /// Waits until so many more datagrams were sent, whether or not they come.
    pub fn await_sent(&self, more: u64) {
        let wanted = self.datagrams_sent() + more;
        eventually("datagrams are sent", || self.datagrams_sent() >= wanted);
    }

    /// Waits until nothing comes any more while the LAN sends so many datagrams: when the last packet came.
    pub fn await_end(&self, quiet: u64) -> Instant {
        let [end] = Self::await_ends([self], quiet);
        end
    }

    /// As [`await_end`](Self::await_end), of several at once.
    pub fn await_ends<const N: usize>(downloads: [&Self; N], quiet: u64) -> [Instant; N] {
        let mut last = [None; N];
        eventually("nothing comes any more", || {
            last = downloads.map(|it| it.came().last);
            let wanted = downloads.map(|it| it.datagrams_sent() + quiet);
            eventually("datagrams are sent", || {
                downloads.iter().zip(wanted).all(|(it, wanted)| it.datagrams_sent() >= wanted)
            });
            downloads.map(|it| it.came().last) == last
        });
        last.map(Option::unwrap)
    }

    /// Waits until so many more bytes and datagrams came.
    pub fn await_more(&self, more: u64) {
        let before = self.came();
        eventually("the download goes on", || {
            let came = self.came();
            came.bytes >= before.bytes + more && came.datagrams >= before.datagrams + more
        });
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn take(&self, count: impl FnOnce(&mut Came)) {
        let now = Instant::now();
        let mut came = self.came.lock().unwrap();
        let pause = came.last.map_or(Duration::ZERO, |last| now - last);
        came.longest_pause = came.longest_pause.max(pause);
        came.last = Some(now);
        count(&mut came);
    }
}

fn send_segments(mut stream: TcpStream, shared: &Shared) {
    stream.set_nodelay(true).unwrap();
    stream.set_write_timeout(Some(LOOK)).unwrap();
    while !shared.stopped() {
        // A full buffer, when nothing is acknowledged any more.
        let _ = stream.write(&SEGMENT);
        thread::sleep(SPACING);
    }
}

/// To whoever asks, by numbers.
fn send_datagrams(socket: &UdpSocket, shared: &Shared) {
    socket.set_read_timeout(Some(LOOK)).unwrap();
    let peer = loop {
        match socket.recv_from(&mut [0; 8]) {
            Ok((_, peer)) => break peer,
            Err(_) if shared.stopped() => return,
            Err(_) => {}
        }
    };
    while !shared.stopped() {
        let number = shared.datagrams_sent.fetch_add(1, Ordering::SeqCst);
        let _ = socket.send_to(&number.to_be_bytes(), peer);
        thread::sleep(SPACING);
    }
}

fn read_segments(mut stream: TcpStream, shared: &Shared) {
    stream.set_read_timeout(Some(LOOK)).unwrap();
    let mut buffer = [0; 64 * 1024];
    while !shared.stopped() {
        if let Ok(length @ 1..) = stream.read(&mut buffer) {
            shared.take(|came| came.bytes += length as u64);
        }
    }
}

fn read_datagrams(socket: &UdpSocket, shared: &Shared) {
    socket.set_read_timeout(Some(LOOK)).unwrap();
    while !shared.stopped() {
        let mut number = [0; 8];
        match socket.recv(&mut number) {
            Ok(8) => shared.take(|came| {
                came.datagrams += 1;
                came.lost = (u64::from_be_bytes(number) + 1).saturating_sub(came.datagrams);
            }),
            // Not heard yet, or not any more.
            _ => drop(socket.send(b"more")),
        }
    }
}
