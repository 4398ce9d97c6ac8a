//! The client's end: blocking, one request per connection.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;

use super::error::ControlError;
use super::protocol::{Line, Request};
use crate::telemetry::Entry;
use gatepost::reconcile::status::{
    BlockAnswer, DeniedPacket, Exact, Explanation, PeerStatus, Status,
};

/// A running agent, as its socket shows it.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// A client of this socket. It connects anew for each request.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The agent's status.
    ///
    /// # Errors
    /// [`ControlError::NoAgent`] if no agent answers; another one if its answer is wrong.
    pub fn status(&self) -> Result<Status, ControlError> {
        self.ask(&Request::Status, |_: serde_json::Value| {})
    }

    /// Passes every peer, or those of a user, to `each`, one by one as they arrive. An agent of an earlier
    /// version sends all of them.
    ///
    /// # Errors
    /// The errors of [`Client::status`].
    pub fn peers(
        &self,
        user: Option<&str>,
        each: impl FnMut(PeerStatus),
    ) -> Result<(), ControlError> {
        self.ask(&Request::Peers { user: user.map(str::to_owned) }, each)
    }

    /// The verdict for what `who` sends to `destination`.
    ///
    /// # Errors
    /// The errors of [`Client::status`]; [`ControlError::Refused`] if `who` is unknown.
    pub fn explain(&self, who: &str, destination: &str) -> Result<Explanation, ControlError> {
        let (who, destination) = (who.to_owned(), destination.to_owned());
        self.ask(&Request::Explain { who, destination }, |_: serde_json::Value| {})
    }

    /// Passes the denied packets that `who` sent or should have got to `each`, the oldest first, and with
    /// `follow` those that come, until `each` says that it wants no more.
    ///
    /// # Errors
    /// The errors of [`Client::status`]; [`ControlError::Refused`] if no packet is logged or read.
    pub fn denied(
        &self,
        who: Option<&str>,
        follow: bool,
        each: impl FnMut(DeniedPacket) -> bool,
    ) -> Result<(), ControlError> {
        let request = Request::Denied { who: who.map(str::to_owned), follow };
        let stream = self.connect(&request)?;
        // Nothing may be denied for days.
        let waits = if follow { stream.set_read_timeout(None) } else { Ok(()) };
        waits.map_err(|source| self.broken(source))?;
        self.ask_on(stream, &request, each).map(Option::unwrap_or_default)
    }

    /// The newest entries of its log, the oldest first.
    ///
    /// # Errors
    /// The errors of [`Client::status`].
    pub fn journal(&self) -> Result<Vec<Entry>, ControlError> {
        let mut entries = Vec::new();
        self.ask::<_, ()>(&Request::Journal, |entry| entries.push(entry))?;
        Ok(entries)
    }

    /// Has the agent compare everything again, and waits until it has.
    ///
    /// # Errors
    /// The errors of [`Client::status`]; [`ControlError::Refused`] if the pass failed.
    pub fn resync(&self) -> Result<(), ControlError> {
        self.ask(&Request::Resync, |_: serde_json::Value| {})
    }

    /// Cuts off a user, a device, a key or an address, and waits until no packet passes.
    ///
    /// # Errors
    /// The errors of [`Client::status`]; [`ControlError::Refused`] if it is not clear whom `who` names.
    pub fn block(&self, who: &str) -> Result<BlockAnswer, ControlError> {
        self.ask(&Request::Block { who: who.to_owned() }, |_: serde_json::Value| {})
    }

    /// Lifts a block.
    ///
    /// # Errors
    /// The errors of [`Client::block`].
    pub fn unblock(&self, who: &str) -> Result<BlockAnswer, ControlError> {
        self.ask(&Request::Unblock { who: who.to_owned() }, |_: serde_json::Value| {})
    }

    /// Confirms the removals that are held back by rows read `until` this time of the database, and lets
    /// in the peers that are kept out since `let_in_until` or earlier.
    ///
    /// # Errors
    /// The errors of [`Client::status`]; [`ControlError::Refused`] if no removal is held back, and no peer kept out.
    pub fn confirm(
        &self,
        until: SystemTime,
        let_in_until: Option<SystemTime>,
    ) -> Result<(), ControlError> {
        let let_in_until = let_in_until.map(Exact);
        self.ask(&Request::Confirm { until, let_in_until }, |_: serde_json::Value| {})
    }

    fn ask<I: DeserializeOwned, D: DeserializeOwned>(
        &self,
        request: &Request,
        mut each: impl FnMut(I),
    ) -> Result<D, ControlError> {
        let more = |item| {
            each(item);
            true
        };
        let done = self.ask_on(self.connect(request)?, request, more)?;
        done.ok_or_else(|| self.unintelligible(""))
    }

    /// `None`: `each` wanted no more.
    fn ask_on<I: DeserializeOwned, D: DeserializeOwned>(
        &self,
        stream: UnixStream,
        request: &Request,
        mut each: impl FnMut(I) -> bool,
    ) -> Result<Option<D>, ControlError> {
        let mut stream = BufReader::new(stream);
        let mut text = serde_json::to_string(request).map_err(io::Error::from);
        if let Ok(text) = &mut text {
            text.push('\n');
        }
        text.and_then(|text| stream.get_mut().write_all(text.as_bytes()))
            .map_err(|source| self.broken(source))?;
        let mut line = String::new();
        loop {
            line.clear();
            let read = stream.read_line(&mut line).map_err(|source| match source.kind() {
                io::ErrorKind::WouldBlock => ControlError::Silent {
                    path: self.path.clone(),
                    waited: Self::patience(request),
                },
                _ => self.broken(source),
            })?;
            if read == 0 {
                let source =
                    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed early");
                return Err(self.broken(source));
            }
            match serde_json::from_str::<Line<serde_json::Value>>(&line) {
                Ok(Line::Item(item)) if each(self.parse(item.clone())?) => {}
                Ok(Line::Item(_)) => return Ok(None),
                Ok(Line::Done(done)) => return self.parse(done).map(Some),
                Ok(Line::Error(message)) => {
                    return Err(ControlError::Refused { path: self.path.clone(), message });
                }
                Err(_) => return Err(self.unintelligible(&line)),
            }
        }
    }

    /// How long the agent may take for an answer.
    const fn patience(request: &Request) -> Duration {
        match request {
            // The loop need not be asked.
            Request::Status | Request::Journal => Duration::from_secs(10),
            // Enough for a resync with 100,000 peers.
            _ => Duration::from_mins(2),
        }
    }

    fn connect(&self, request: &Request) -> Result<UnixStream, ControlError> {
        let stream = UnixStream::connect(&self.path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ControlError::NoAgent { path: self.path.clone(), source }
            }
            _ => self.broken(source),
        })?;
        stream
            .set_read_timeout(Some(Self::patience(request)))
            .map_err(|source| self.broken(source))?;
        Ok(stream)
    }

    fn parse<T: DeserializeOwned>(&self, value: serde_json::Value) -> Result<T, ControlError> {
        let text = value.to_string();
        serde_json::from_value(value).map_err(|_| self.unintelligible(&text))
    }

    fn unintelligible(&self, line: &str) -> ControlError {
        let line = line.trim_end().chars().take(200).collect();
        ControlError::Unintelligible { path: self.path.clone(), line }
    }

    fn broken(&self, source: io::Error) -> ControlError {
        let remedy = match source.kind() {
            io::ErrorKind::PermissionDenied => "run this as root or as a member of group gatepost",
            _ => "see journalctl -u gatepost",
        };
        ControlError::Broken { path: self.path.clone(), source, remedy }
    }
}
