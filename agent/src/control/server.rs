//! The answering end: reads the published status, hands the rest to the loop.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use super::{ControlError, Line, Request};
use crate::handles::{Ask, Watcher};

/// A bound control socket. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Held as long as the process lives: tells a second agent from a stale socket file.
    _lock: Flock<File>,
}

/// Connections served at once; further ones wait.
const CONNECTIONS: usize = 16;

/// A request is a line of this many bytes at most.
const REQUEST_BYTES: u64 = 16 * 1024;

/// A client that sends no request within this time is let go.
const PATIENCE: Duration = Duration::from_secs(10);

impl Server {
    /// Listens on `path` with mode 0660, in place of a socket file that a killed agent left.
    ///
    /// # Errors
    /// [`ControlError::Taken`] if another agent lives, [`ControlError::Bind`] if the path cannot
    /// be had.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Bind { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        let lock = lock(path)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// Serves until it is dropped.
    pub async fn serve(self, watcher: Watcher) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let watcher = watcher.clone();
                    tokio::spawn(async move {
                        if let Err(error) = answer(stream, watcher).await {
                            tracing::debug!(%error, "a control client went away: {error}");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a control client: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The lock file stays: removing it would let two agents lock two files of one name.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the control socket was gone already: {error}");
        }
    }
}

fn lock(path: &Path) -> Result<Flock<File>, ControlError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let failed = |source| ControlError::Bind { path: path.to_owned(), source };
    let file = File::options().create(true).append(true).open(&name).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => ControlError::Taken { path: path.to_owned() },
        other => failed(other.into()),
    })
}

async fn answer(mut stream: UnixStream, watcher: Watcher) -> io::Result<()> {
    let (reader, writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let mut reply = Reply(BufWriter::new(writer));
    match serde_json::from_str(&line) {
        Ok(request) => obey(request, &watcher, &mut reply).await?,
        Err(error) => reply.line(&Line::<()>::Error(format!("no such request: {error}"))).await?,
    }
    reply.0.flush().await
}

async fn obey(request: Request, watcher: &Watcher, reply: &mut Reply<'_>) -> io::Result<()> {
    match request {
        Request::Status => {
            let status = watcher.status.borrow().clone();
            reply.line(&Line::Done(status)).await
        }
        Request::Peers => match ask(watcher, Ask::Peers).await {
            Ok(peers) => {
                for peer in peers {
                    reply.line(&Line::Item(peer)).await?;
                }
                reply.line(&Line::Done(())).await
            }
            Err(why) => reply.line(&Line::<()>::Error(why)).await,
        },
        Request::Explain { who, destination } => {
            let make = |answer| Ask::Explain { who, destination, answer };
            reply.end(ask(watcher, make).await.flatten()).await
        }
        Request::Resync => reply.end(ask(watcher, Ask::Resync).await.flatten()).await,
        Request::Confirm => reply.end(ask(watcher, Ask::Confirm).await.flatten()).await,
    }
}

async fn ask<T>(
    watcher: &Watcher,
    make: impl FnOnce(oneshot::Sender<T>) -> Ask,
) -> Result<T, String> {
    let stopping = || "the agent is stopping".to_owned();
    let (answer, answered) = oneshot::channel();
    watcher.asks.send(make(answer)).await.map_err(|_| stopping())?;
    answered.await.map_err(|_| stopping())
}

struct Reply<'a>(BufWriter<tokio::net::unix::WriteHalf<'a>>);

impl Reply<'_> {
    async fn end<T: Serialize>(&mut self, result: Result<T, String>) -> io::Result<()> {
        self.line(&match result {
            Ok(done) => Line::Done(done),
            Err(why) => Line::Error(why),
        })
        .await
    }

    async fn line<T: Serialize>(&mut self, line: &Line<T>) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.0.write_all(&text).await
    }
}
