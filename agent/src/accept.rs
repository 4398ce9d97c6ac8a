//! One accept loop for every listening socket: a few connections at once, each answered in a task.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// A socket that listens for connections.
pub trait Listener {
    type Stream: Send + 'static;

    /// Waits for the next connection.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.accept().await?.0)
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

/// Accepts connections until it is dropped, and answers each in a task of its own.
///
/// At most `at_once` connections are answered at a time; further ones wait. `client` names the other
/// end in the log.
pub async fn serve<L, F>(
    listener: &L,
    at_once: usize,
    client: &'static str,
    answer: impl Fn(L::Stream) -> F,
) where
    L: Listener,
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    /// After a failure such as too many open files: time for some to be closed.
    const PAUSE: Duration = Duration::from_millis(100);
    let places = Arc::new(Semaphore::new(at_once));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.next().await {
            Ok(stream) => {
                let answered = answer(stream);
                tokio::spawn(async move {
                    if let Err(error) = answered.await {
                        tracing::debug!(%error, "the connection of a {client} failed: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a {client}: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn no_more_connections_are_answered_at_once_than_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let answer = |mut stream: UnixStream| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            async move {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
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
                assert_eq!(stream.read_u8().await.unwrap(), b'x');
            }
        };
        tokio::select! {
            () = serve(&listener, 2, "client", answer) => unreachable!("it serves until dropped"),
            () = clients => {}
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }
}
