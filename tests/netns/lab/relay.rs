//! A unix socket that leads to PostgreSQL from every network namespace, and that a test can cut.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// As long as the agent waits for a host.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

#[derive(Default)]
struct State {
    /// Both ends of every connection that is open.
    open: Mutex<Vec<(UnixStream, TcpStream)>>,
    refusing: AtomicBool,
    ended: AtomicUsize,
    /// Where new connections lead.
    server: Mutex<Option<SocketAddr>>,
    /// After so many bytes of answers it begins to refuse.
    bytes_left: Mutex<Option<u64>>,
    silence: Mutex<Silence>,
    silence_ended: Condvar,
}

/// Whether answers are withheld, and how many are.
#[derive(Default)]
struct Silence {
    lasts: bool,
    withheld: usize,
}

/// A relay in a folder of its own. It ends with the process.
pub struct Relay {
    folder: PathBuf,
    state: Arc<State>,
}

impl Relay {
    pub fn open(folder: &Path, server: SocketAddr) -> Self {
        let folder = folder.join("postgres");
        std::fs::create_dir(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(".s.PGSQL.5432")).unwrap();
        let state = Arc::new(State::default());
        *state.server.lock().unwrap() = Some(server);
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming() {
                let shared = Arc::clone(&shared);
                // No client waits for another whose server does not answer.
                thread::spawn(move || client.and_then(|client| shared.join(client)));
            }
        });
        Self { folder, state }
    }

    /// How many connections have ended so far.
    pub fn ended(&self) -> usize {
        self.state.ended.load(Ordering::SeqCst)
    }

    /// A URL through this relay.
    pub fn url(&self, user: &str, database: &str, password: &str) -> String {
        let folder = self.folder.to_str().unwrap().replace('/', "%2F");
        let password = if password.is_empty() { String::new() } else { format!(":{password}") };
        format!("postgres://{user}{password}@{folder}/{database}")
    }

    /// Cuts every open connection: how many.
    pub fn cut(&self) -> usize {
        self.state.cut()
    }

    /// From now on new connections are closed at once, and those that are open are cut: how many.
    pub fn refuse(&self) -> usize {
        self.state.refusing.store(true, Ordering::SeqCst);
        self.cut()
    }

    /// As [`refuse`](Self::refuse), as soon as so many bytes have come from the server.
    pub fn die_after(&self, bytes: u64) {
        *self.state.bytes_left.lock().unwrap() = Some(bytes);
    }

    /// Whether it refuses connections.
    pub fn has_died(&self) -> bool {
        self.state.refusing.load(Ordering::SeqCst)
    }

    /// From now on no answer of the server comes through, and nothing says so.
    pub fn fall_silent(&self) {
        self.state.silence.lock().unwrap().lasts = true;
    }

    /// Whether an answer is withheld.
    pub fn withholds(&self) -> bool {
        self.state.silence.lock().unwrap().withheld > 0
    }

    /// Lets the answers through, also those that were withheld.
    pub fn speak(&self) {
        self.state.silence.lock().unwrap().lasts = false;
        self.state.silence_ended.notify_all();
    }

    /// From now on new connections lead to this server, and those that are open are cut.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.state.server.lock().unwrap() = Some(server);
        self.cut();
    }

    /// The socket that clients connect to.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(".s.PGSQL.5432")
    }

    /// Lets connections through again.
    pub fn accept(&self) {
        self.state.refusing.store(false, Ordering::SeqCst);
    }
}

impl State {
    fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.open.lock().unwrap());
        for (client, server) in &open {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
        open.len()
    }

    fn await_end_of_silence(&self) {
        let mut silence = self.silence.lock().unwrap();
        silence.withheld += 1;
        let mut silence = self.silence_ended.wait_while(silence, |it| it.lasts).unwrap();
        silence.withheld -= 1;
    }

    /// Copies answers until the end, which may come at any byte.
    fn answer(&self, server: &mut TcpStream, client: &mut UnixStream) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = server.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            self.await_end_of_silence();
            let mut left = self.bytes_left.lock().unwrap();
            match *left {
                Some(bytes) if bytes < read as u64 => {
                    *left = None;
                    drop(left);
                    // The client may be gone already: it dies all the same.
                    let written =
                        client.write_all(&buffer[..usize::try_from(bytes).unwrap_or(read)]);
                    self.refusing.store(true, Ordering::SeqCst);
                    self.cut();
                    return written;
                }
                Some(bytes) => *left = Some(bytes - read as u64),
                None => {}
            }
            drop(left);
            client.write_all(&buffer[..read])?;
        }
    }

    fn join(self: &Arc<Self>, client: UnixStream) -> io::Result<()> {
        if self.refusing.load(Ordering::SeqCst) {
            return Ok(());
        }
        let Some(server) = *self.server.lock().unwrap() else { return Ok(()) };
        let server = TcpStream::connect_timeout(&server, CONNECT_WITHIN)?;
        server.set_nodelay(true)?;
        let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
        let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
        let mut open = self.open.lock().unwrap();
        if self.refusing.load(Ordering::SeqCst) {
            // Since we asked. What is open is cut under this lock.
            return Ok(());
        }
        open.push((client, server));
        drop(open);
        let state = Arc::clone(self);
        thread::spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_server);
            state.ended.fetch_add(1, Ordering::SeqCst);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let state = Arc::clone(self);
        thread::spawn(move || {
            let _ = state.answer(&mut from_server, &mut to_client);
            let _ = to_client.shutdown(Shutdown::Write);
        });
        Ok(())
    }
}
