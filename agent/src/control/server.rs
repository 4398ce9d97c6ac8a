//! The agent's end: answers from the published status, and asks the loop for the rest.

use std::fmt::Display;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::oneshot;

use super::caller::{Caller, Denied, Writers};
use super::error::ControlError;
use super::protocol::{Access, Line, Request};
use crate::accept::{self, Turn};
use crate::denied::Recent;
use crate::handles::{Ask, Watcher};
use crate::telemetry::newest;
use gatepost::model::Whom;
use gatepost::reconcile::WhoError;
use gatepost::reconcile::status::{DeniedPacket, Exact};

/// A bound control socket. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Held while this process lives, so that a second agent can tell a live agent from a socket file
    /// that a killed one left.
    _lock: Flock<File>,
}

/// Connections served at once.
const CONNECTIONS: usize = 16;

/// The longest request, a line, in bytes.
const REQUEST_BYTES: u64 = 16 * 1024;

/// A client that sends no request within this time is disconnected.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A client that reads nothing of its reply for so long is disconnected.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

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
    pub async fn serve(self, watcher: Watcher, writers: Writers) {
        let answer = |stream, turn| answer(stream, watcher.clone(), writers.clone(), turn);
        accept::serve(&self.listener, CONNECTIONS, "control client", answer).await;
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

async fn answer(
    mut stream: UnixStream,
    watcher: Watcher,
    writers: Writers,
    turn: Turn,
) -> io::Result<()> {
    let caller = Caller::of(&stream)?;
    let (reader, writer) = stream.split();
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(REQUEST_BYTES));
    tokio::time::timeout(REQUEST_TIMEOUT, reader.read_line(&mut line)).await??;
    let asking = Asking { watcher, writers, turn };
    let mut reply = Reply(BufWriter::new(writer));
    match serde_json::from_str(&line) {
        Ok(request) => match asking.admit(&request, caller).await {
            Ok(()) => reply.to(request, &asking).await?,
            Err(denied) => reply.error(denied).await?,
        },
        Err(error) => reply.error(format!("no such request: {error}")).await?,
    }
    in_time(reply.0.flush()).await
}

/// The loop has ended and answers no more requests.
#[derive(Debug, thiserror::Error)]
#[error("the agent is stopping")]
struct Stopping;

/// The values that a request needs besides the connection.
struct Asking {
    watcher: Watcher,
    writers: Writers,
    turn: Turn,
}

impl Asking {
    /// Whether the caller may make this request. The journal says who changes something.
    async fn admit(&self, request: &Request, caller: Caller) -> Result<(), Denied> {
        if request.access() == Access::Read {
            return Ok(());
        }
        let admitted = self.turn.of_agent(self.writers.admit(caller)).await;
        match &admitted {
            Ok(caller) => {
                let (uid, pid, user) = caller.fields();
                tracing::info!(uid, pid, user, command = %request, "{caller} asked for {request}");
            }
            Err(denied) => {
                let (uid, pid, user) = denied.caller().fields();
                tracing::warn!(uid, pid, user, command = %request, "refused {request}: {denied}");
            }
        }
        admitted.map(drop)
    }

    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Stopping> {
        let (answer, answered) = oneshot::channel();
        let ask = async {
            self.watcher.asks.send(make(answer)).await.map_err(|_| Stopping)?;
            answered.await.map_err(|_| Stopping)
        };
        self.turn.of_agent(ask).await
    }
}

/// The names by which the packets of `who` are found. An unknown name is a slip, unless packets are
/// known of one who had it.
async fn whose(asking: &Asking, who: Option<String>) -> Result<Vec<String>, String> {
    let Some(who) = who else { return Ok(Vec::new()) };
    let ask_for = |answer| Ask::Whom { who: who.clone(), answer };
    let found = asking.ask(ask_for).await.map_err(|stopping| stopping.to_string())?;
    let (known, _) = asking.watcher.denied.follow();
    match found {
        Err(unknown @ WhoError::Unknown { .. }) if !known.iter().any(|it| it.concerns(&who)) => {
            Err(unknown.to_string())
        }
        // An id or a key has a name. An address stands for itself: it may be that of several devices in turn.
        Ok((Whom::User(_) | Whom::Device(_) | Whom::Key(_), name)) if !name.is_empty() => {
            Ok(vec![name.into(), who])
        }
        _ => Ok(vec![who]),
    }
}

async fn in_time<T>(write: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(READ_TIMEOUT, write).await?
}

struct Reply<'a>(BufWriter<tokio::net::unix::WriteHalf<'a>>);

impl Reply<'_> {
    async fn to(&mut self, request: Request, asking: &Asking) -> io::Result<()> {
        match request {
            Request::Status => self.line(&Line::Done(asking.watcher.status())).await,
            Request::Peers { user } => match asking.ask(|answer| Ask::Peers { user, answer }).await
            {
                Ok(peers) => {
                    for peer in peers {
                        self.line(&Line::Item(peer)).await?;
                    }
                    self.line(&Line::Done(())).await
                }
                Err(stopping) => self.error(stopping).await,
            },
            Request::Explain { who, destination } => {
                let ask_for = |answer| Ask::Explain { who, destination, answer };
                let mut answer = asking.ask(ask_for).await;
                if let Ok(Ok(explanation)) = &mut answer {
                    explanation.add_hindrances(&asking.watcher.hindrances.texts());
                }
                self.answer(answer).await
            }
            Request::Denied { who, follow } => {
                let denied = &asking.watcher.denied;
                match whose(asking, who).await {
                    Ok(names) => self.denied(denied, &names, follow).await,
                    Err(why) => self.error(why).await,
                }
            }
            Request::Block { who } => {
                let ask_for = |answer| Ask::Block { who, answer };
                self.answer(asking.ask(ask_for).await).await
            }
            Request::Unblock { who } => {
                let ask_for = |answer| Ask::Unblock { who, answer };
                self.answer(asking.ask(ask_for).await).await
            }
            Request::Journal => {
                for entry in newest() {
                    self.line(&Line::Item(entry)).await?;
                }
                self.line(&Line::Done(())).await
            }
            Request::Resync => {
                asking.watcher.hindrances.look_again();
                self.answer(asking.ask(Ask::Resync).await).await
            }
            Request::Confirm { until, let_in_until } => {
                let let_in_until = let_in_until.map(|Exact(at)| at);
                let ask_for = |answer| Ask::Confirm { until, let_in_until, answer };
                self.answer(asking.ask(ask_for).await).await
            }
        }
    }

    /// Sends the denied packets that one of these sent or should have got, all if there are none. The client
    /// of a stream has the turn, and loses its place to one that asks.
    async fn denied(&mut self, denied: &Recent, names: &[String], follow: bool) -> io::Result<()> {
        let is_meant = |packet: &DeniedPacket| {
            names.is_empty() || names.iter().any(|name| packet.concerns(name))
        };
        let (known, mut news) = denied.follow();
        for packet in known.into_iter().filter(is_meant) {
            self.line(&Line::Item(packet)).await?;
        }
        if let Some(why) = denied.trouble() {
            return self.error(why).await;
        }
        if !denied.logs() {
            return self.error("firewall.deny_log is false: no denied packet is logged").await;
        }
        if !follow {
            return self.line(&Line::Done(())).await;
        }
        loop {
            in_time(self.0.flush()).await?;
            match news.recv().await {
                Ok(packet) if is_meant(&packet) => self.line(&Line::Item(packet)).await?,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return self.line(&Line::Done(())).await,
            }
        }
    }

    /// Sends what the loop answered, or that it has ended.
    async fn answer<T: Serialize, E: Display>(
        &mut self,
        answer: Result<Result<T, E>, Stopping>,
    ) -> io::Result<()> {
        match answer {
            Ok(Ok(done)) => self.line(&Line::Done(done)).await,
            Ok(Err(refusal)) => self.error(refusal).await,
            Err(stopping) => self.error(stopping).await,
        }
    }

    async fn error(&mut self, error: impl Display) -> io::Result<()> {
        self.line(&Line::<()>::Error(error.to_string())).await
    }

    async fn line<T: Serialize>(&mut self, line: &Line<T>) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        in_time(self.0.write_all(&text)).await
    }
}
