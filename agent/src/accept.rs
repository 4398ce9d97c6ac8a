//! One accept loop for every listening socket: a few connections at once, each answered in a task.
//!
//! A client that neither writes nor reads keeps no other out: while all places are taken, the next
//! connection gets the place of the client that waited longest, among those of the greediest client.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How long a client may be silent while others wait for its place: enough for a request that is on
/// its way.
const GRACE: Duration = Duration::from_millis(50);

/// A socket that listens for connections.
pub trait Listener {
    type Stream: Send + 'static;
    /// The client whose connection it is, so that one client takes places only from itself.
    type Client: Ord + Clone + fmt::Display;

    /// Waits for the next connection.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Client)>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    /// The user id.
    type Client = u32;

    async fn next(&self) -> io::Result<(UnixStream, u32)> {
        let stream = self.accept().await?.0;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, uid))
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    type Client = IpAddr;

    async fn next(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, address.ip()))
    }
}

/// A connection's turns: the agent's or the client's. A connection loses its place only while its client is
/// silent.
#[derive(Clone)]
pub struct Turn {
    /// When the agent began to wait for the client; `None` while the agent works on the answer.
    silent_since: watch::Sender<Option<Instant>>,
    changed: Arc<Notify>,
}

impl Turn {
    fn of_client(changed: Arc<Notify>) -> Self {
        Self { silent_since: watch::Sender::new(Some(Instant::now())), changed }
    }

    /// Does what the client waits for.
    pub async fn of_agent<T>(&self, work: impl Future<Output = T>) -> T {
        self.silent_since.send_replace(None);
        let done = work.await;
        self.silent_since.send_replace(Some(Instant::now()));
        self.changed.notify_one();
        done
    }

    fn silent_since(&self) -> Option<Instant> {
        *self.silent_since.borrow()
    }
}

/// Accepts connections until it is dropped, and answers each in a task of its own.
///
/// At most `at_once` connections are answered at a time. `client` names the other end in the log.
pub async fn serve<L, F>(
    listener: &L,
    at_once: usize,
    client: &'static str,
    answer: impl Fn(L::Stream, Turn) -> F,
) where
    L: Listener,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    /// After a failure such as too many open files: time for some to be closed.
    const PAUSE: Duration = Duration::from_millis(100);
    let mut places = Places { taken: Vec::new(), at_once, changed: Arc::default(), kind: client };
    let mut refusing = false;
    loop {
        match listener.next().await {
            Ok((stream, client)) => {
                refusing = false;
                places.make_room_for(&client).await;
                let turn = Turn::of_client(Arc::clone(&places.changed));
                places.take(client, turn.clone(), answer(stream, turn));
                // The client's request is read before its place can be wanted by another.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // Once for each time that the process is out of descriptors, say.
                if !std::mem::replace(&mut refusing, true) {
                    tracing::warn!(%error, "cannot accept a {client}: {error}");
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The connections that are answered at the moment.
struct Places<C> {
    taken: Vec<Place<C>>,
    at_once: usize,
    /// A connection ended, or waits for its client again.
    changed: Arc<Notify>,
    kind: &'static str,
}

struct Place<C> {
    client: C,
    turn: Turn,
    task: AbortHandle,
}

impl<C: Ord + Clone + fmt::Display> Places<C> {
    fn take(
        &mut self,
        client: C,
        turn: Turn,
        answer: impl Future<Output = io::Result<()>> + Send + 'static,
    ) {
        let (kind, changed) = (self.kind, Arc::clone(&self.changed));
        let task = tokio::spawn(async move {
            if let Err(error) = answer.await {
                tracing::debug!(%error, "the connection of a {kind} failed: {error}");
            }
            changed.notify_one();
        });
        self.taken.push(Place { client, turn, task: task.abort_handle() });
    }

    async fn make_room_for(&mut self, client: &C) {
        loop {
            self.taken.retain(|place| !place.task.is_finished());
            if self.taken.len() < self.at_once {
                return;
            }
            let changed = self.changed.notified();
            match self.longest_silent(client) {
                Some((index, since)) if since.elapsed() >= GRACE => {
                    let Place { client, task, .. } = self.taken.swap_remove(index);
                    task.abort();
                    let kind = self.kind;
                    tracing::debug!(%client, "closed a silent connection of {kind} {client}: another needs its place");
                    return;
                }
                Some((_, since)) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(since + GRACE) => {}
                    }
                }
                None => changed.await,
            }
        }
    }

    /// The longest silent connection among those of the clients with the most connections, the new
    /// one included. So no client takes a place from one that has fewer.
    fn longest_silent(&self, newcomer: &C) -> Option<(usize, Instant)> {
        let mut counts = BTreeMap::from([(newcomer, 1)]);
        for place in &self.taken {
            *counts.entry(&place.client).or_insert(0) += 1;
        }
        let most = counts.values().copied().max();
        let greedy = self.taken.iter().enumerate();
        let greedy = greedy.filter(|(_, place)| counts.get(&place.client).copied() == most);
        greedy
            .filter_map(|(index, place)| Some((index, place.turn.silent_since()?)))
            .min_by_key(|(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// More than any step of these tests takes.
    const LONG: Duration = Duration::from_secs(10);

    fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        (folder, path, listener)
    }

    #[tokio::test]
    async fn no_more_connections_are_answered_at_once_than_allowed() {
        let (_folder, path, listener) = listener();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let answer = |mut stream: UnixStream, turn: Turn| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                turn.of_agent(tokio::time::sleep(GRACE * 2)).await;
                running.fetch_sub(1, Ordering::SeqCst);
                stream.write_all(b"x").await
            }
        };
        let clients = async {
            let mut streams = Vec::new();
            for _ in 0..6 {
                streams.push(UnixStream::connect(&path).await.unwrap());
            }
            for stream in &mut streams {
                assert_eq!(stream.read_u8().await.unwrap(), b'x', "a waiting client is answered");
            }
        };
        tokio::select! {
            () = serve(&listener, 2, "client", answer) => unreachable!("it serves until dropped"),
            () = clients => {}
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn silent_clients_keep_no_other_out() {
        let (_folder, path, listener) = listener();
        let answer = |mut stream: UnixStream, _| async move {
            let request = stream.read_u8().await?;
            stream.write_all(&[request]).await
        };
        let clients = async {
            let mut silent = Vec::new();
            for _ in 0..64 {
                silent.push(UnixStream::connect(&path).await.unwrap());
            }
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
            let closed = silent[0].read_u8().await.unwrap_err();
            assert_eq!(closed.kind(), io::ErrorKind::UnexpectedEof, "the oldest made room");
        };
        tokio::select! {
            () = serve(&listener, 8, "client", answer) => unreachable!("it serves until dropped"),
            done = tokio::time::timeout(LONG, clients) => done.unwrap(),
        }
    }

    #[tokio::test]
    async fn client_takes_no_place_from_one_that_has_fewer() {
        let mut places = Places { taken: vec![], at_once: 3, changed: Arc::default(), kind: "uid" };
        let take = |places: &mut Places<u32>, client| {
            let turn = Turn::of_client(Arc::clone(&places.changed));
            places.take(client, turn.clone(), std::future::pending());
            turn
        };
        take(&mut places, 0);
        let _busy = take(&mut places, 1000).silent_since.send_replace(None);
        take(&mut places, 1000);
        let of_place = |client, places: &Places<u32>| places.longest_silent(&client).unwrap().0;
        assert_eq!(of_place(1000, &places), 2, "its own, and not the one that is being answered");
        assert_eq!(of_place(0, &places), 0, "both have two now: the longest silent");
        assert_eq!(of_place(33, &places), 2, "one of the greediest");
        places.make_room_for(&1000).await;
        let left: Vec<u32> = places.taken.iter().map(|place| place.client).collect();
        assert_eq!(left, [0, 1000]);
    }
}
