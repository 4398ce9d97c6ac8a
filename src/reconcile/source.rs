//! The database's side: the connection, what to read and when, and the database's clock.

mod clock;
mod connection;
mod due;
mod view;

use std::time::{Duration, Instant, SystemTime};

use super::bell::{Bell, BellChange, BellNews};
use super::clock::{Now, is_due};
use super::error::DatabaseError;
use super::event::{Action, ReadAnswer, ReadKind};
use super::mode::Mode;
use super::note::Note;
use super::notifications::{Announcement, Notifications};
use super::options::Timing;
use super::pace::Pace;
use super::rows::Verdict;
use crate::backoff::Backoff;
use clock::Clock;
use connection::{Connection, Told};
use view::SourceFigures;
pub(super) use view::SourceView;

/// A notification ends the wait before a failed read is made again, at most once in this time.
const RETRY_GAP: Duration = Duration::from_secs(1);

/// What the machine knows about its database.
#[derive(Debug)]
pub(super) struct Source {
    timing: Timing,
    connection: Connection,
    /// Why the tables cannot be read, from the first failure to the next read that succeeds.
    misfit: Option<DatabaseError>,
    /// Why the server has no session to listen on, while that is so.
    no_session: Option<String>,
    /// This host's time at which the connection was made or lost.
    since: SystemTime,
    clock: Clock,
    wanted: Option<ReadKind>,
    /// A hint came that no read has answered.
    is_hinted: bool,
    pace: Pace,
    reading: Option<Reading>,
    notifications: Notifications,
    bell: Bell,
    /// So many share the database, as far as it told.
    gateways: u32,
    next_poll: Instant,
    next_resync: Instant,
    retry_read: Option<Instant>,
    /// When the last read began.
    read_at: Option<Instant>,
    connect_backoff: Backoff,
    read_backoff: Backoff,
    random: fastrand::Rng,
    figures: SourceFigures,
}

/// A read of the database.
#[derive(Debug, Clone, Copy)]
struct Reading {
    kind: ReadKind,
    announcement: Announcement,
    began_at: Instant,
}

/// A read that has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndedRead {
    /// The earliest known time at which its changes were waiting: the notification, else the beginning of
    /// the read.
    pub since: Instant,
    announcement: Announcement,
}

/// What time alone brought about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elapsed {
    /// Everything is to be compared.
    pub resync: bool,
    pub notes: Vec<Note>,
}

impl Source {
    /// Everything is due at once except the resync: the first read is of everything anyway.
    pub fn new(timing: Timing, now: Now) -> Self {
        Self {
            timing,
            connection: Connection::Down { retry_at: now.instant, error: None, told: Told::Yes },
            misfit: None,
            no_session: None,
            since: now.wall,
            clock: Clock::Unknown,
            wanted: Some(ReadKind::Everything),
            is_hinted: false,
            pace: Pace::new(now.instant),
            reading: None,
            notifications: Notifications::default(),
            bell: Bell::default(),
            gateways: 0,
            next_poll: now.instant,
            next_resync: now.instant + timing.resync_interval,
            retry_read: None,
            read_at: None,
            connect_backoff: Backoff::new(timing.seed),
            read_backoff: Backoff::new(timing.seed.wrapping_add(1)),
            random: fastrand::Rng::with_seed(timing.seed),
            figures: SourceFigures::default(),
        }
    }

    /// The mode in force: without a bell that is heard and rings, hints are no way to learn of changes.
    pub const fn mode(&self) -> Option<Mode> {
        match self.connection {
            Connection::Up { mode: Mode::Hints, .. } if !self.bell.is_followed() => {
                Some(Mode::Poll)
            }
            Connection::Up { mode, .. } => Some(mode),
            Connection::Connecting { .. } | Connection::Down { .. } => None,
        }
    }

    pub const fn is_connected(&self) -> bool {
        self.mode().is_some()
    }

    /// Whether the last attempt to connect failed, and the next has not begun.
    pub const fn is_down(&self) -> bool {
        matches!(self.connection, Connection::Down { .. })
    }

    pub const fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Whether changes to every table are announced.
    pub const fn announces_all(&self) -> bool {
        self.notifications.announce_all()
    }

    pub fn let_time_pass(&mut self, now: Now) -> Elapsed {
        let mut elapsed = Elapsed::default();
        if self.bell.let_time_pass(now) == Some(BellChange::Silent) {
            let trouble = self.bell.silence().and_then(|it| it.trouble).map(ToOwned::to_owned);
            elapsed.notes.push(Note::BellSilent { trouble });
            self.poll_soon(now);
        }
        if is_due(self.resync_due(), now.instant) {
            self.next_resync = now.instant + self.timing.resync_interval;
            self.want(ReadKind::Everything);
            elapsed.resync = true;
        }
        if let Some(mode) = self.mode().filter(|_| is_due(self.poll_due(), now.instant)) {
            self.next_poll = now.instant + self.until_next_poll(mode);
            self.want(ReadKind::Check);
        }
        let (follows_bell, bell) = (self.follows_bell(), &self.bell);
        let is_owed = |found_at| !follows_bell || bell.owes_hint(found_at);
        let missed = self.notifications.let_time_pass(now.instant, is_owed);
        if missed && follows_bell {
            self.bell.distrust(now);
            self.poll_soon(now);
            elapsed.notes.push(Note::HintsMissed);
        } else if missed {
            elapsed.notes.push(Note::NotifyMissed);
        }
        elapsed
    }

    /// The whole fleet may hear the bell no more at once, and does not ask at once.
    fn poll_soon(&mut self, now: Now) {
        let within = self.timing.poll_interval_among(self.gateways);
        let first = now.instant + within.mul_f64(self.random.f64());
        self.next_poll = self.next_poll.min(first);
    }

    const fn follows_bell(&self) -> bool {
        matches!(self.connection, Connection::Up { mode: Mode::Hints, .. })
    }

    /// From one read until the database is asked again although nothing was heard. Never quite alike, so
    /// that a fleet does not ask all at once, and never shorter than a heartbeat of the same length, whose
    /// read answers the same question.
    fn until_next_poll(&mut self, mode: Mode) -> Duration {
        let interval = self.timing.question_interval(mode, self.gateways);
        interval.mul_f64(1.0 + self.random.f64() / 5.0)
    }

    /// Takes in what was heard of the bell. Returns what to say about it. What it said while it was not
    /// heard is found by the question that is due next, which comes soon and spread over the fleet.
    pub fn bell_news(&mut self, news: BellNews, now: Now) -> Option<Note> {
        self.bell.hears(news, now).map(|_| Note::BellHeard)
    }

    /// Takes in how many gateways share the database. Fewer of them may ask more often.
    pub fn gateways(&mut self, count: u32, now: Now) {
        self.gateways = count;
        self.pace.among(count);
        if let Some(mode) = self.mode() {
            self.next_poll = self.next_poll.min(now.instant + self.until_next_poll(mode));
        }
    }

    /// Follows these intervals from now on. Other rows may follow from the configuration: all are read at once.
    pub fn reload(&mut self, timing: Timing, now: Now) {
        self.timing = timing;
        self.want(ReadKind::Everything);
        // A login that was refused may succeed with another password.
        self.retry_now(now);
    }

    /// The intervals for the gateways that share the database.
    pub fn timing(&self) -> Timing {
        self.timing.among(self.gateways)
    }

    /// Does not wait any longer before it connects again.
    const fn retry_now(&mut self, now: Now) {
        if let Connection::Down { retry_at, .. } = &mut self.connection {
            *retry_at = now.instant;
        }
    }

    /// Begins to connect, if that is due.
    pub fn begin_connect(&mut self, now: Now) -> Option<Action> {
        let is_due = is_due(self.connect_due(), now.instant);
        match &mut self.connection {
            Connection::Down { error, .. } if is_due => {
                self.connection = Connection::Connecting { error: error.take() };
                Some(Action::Connect)
            }
            _ => None,
        }
    }

    pub fn connected(&mut self, mode: Mode, now: Now) {
        if !self.is_connected() {
            self.since = now.wall;
        }
        self.connection.is_up(mode);
        self.notifications.connected();
        // Marks show what happened while the connection was down, so the changes are enough.
        self.want(ReadKind::Changes);
    }

    /// Takes in why the server has no session to listen on, if it has none.
    pub fn no_session(&mut self, why: Option<String>) {
        self.no_session = why;
    }

    /// The connection was lost or could not be made. Returns what to say about it: nothing yet if it was
    /// lost after it had served, because it may be made again at once.
    pub fn disconnected(&mut self, error: DatabaseError, now: Now) -> Option<Note> {
        let may_pass = self.connection.may_pass() && error.is_a_lost_connection();
        if self.is_connected() {
            self.since = now.wall;
        }
        if error.is_misfit() {
            self.misfit = Some(error.clone());
        }
        self.no_session = None;
        let retry_in = self.connect_backoff.next_wait();
        let note = Note::DatabaseDown { state: error.state(), error: error.to_string(), retry_in };
        let told = if may_pass { Told::NotYet } else { Told::Yes };
        let retry_at = now.instant + retry_in;
        self.connection = Connection::Down { retry_at, error: Some(error), told };
        (!may_pass).then_some(note)
    }

    pub fn notified(&mut self, now: Now) {
        self.announced(now);
        self.want(ReadKind::Changes);
    }

    /// A hint came: it is answered by a read, but not at any pace. Returns what to say about it.
    pub fn hinted(&mut self, now: Now) -> Option<Note> {
        self.announced(now);
        self.is_hinted = true;
        self.bell.hinted().then_some(Note::HintsAgain)
    }

    fn announced(&mut self, now: Now) {
        self.notifications.notified(now.instant);
        // It may tell of the correction that a failed read waits for.
        self.retry_read = self.retry_read.map(|at| at.min(self.earliest_retry(now)));
    }

    /// When a read that was announced may follow the last one.
    fn earliest_retry(&self, now: Now) -> Instant {
        self.read_at.map_or(now.instant, |at| at + RETRY_GAP).max(now.instant)
    }

    /// A question beside the reads was not answered.
    pub fn question_failed(&mut self, error: &DatabaseError) {
        if matches!(error, DatabaseError::OtherServer) {
            // Only a full read says which server is to be asked.
            self.want(ReadKind::Everything);
        }
    }

    /// Takes in which tables' changes are not announced. Each time some are not, everything is read;
    /// and once more when all are announced again.
    pub fn unannounced(&mut self, tables: Vec<String>) -> Option<Note> {
        if tables.is_empty() && self.notifications.announce_all() {
            return None;
        }
        self.want(ReadKind::Everything);
        self.notifications.set_unannounced(tables)
    }

    /// Wants so much to be read, at once.
    pub fn want(&mut self, kind: ReadKind) {
        self.wanted = self.wanted.max(Some(kind));
    }

    /// Begins a read that is wanted, if it may begin. `enough` says how much must be read at least.
    pub fn begin_read(
        &mut self,
        enough: impl FnOnce(ReadKind) -> ReadKind,
        now: Now,
    ) -> Option<Action> {
        if !is_due(self.read_due(now.instant), now.instant) {
            return None;
        }
        let wanted = self.wanted.take().unwrap_or_else(|| {
            self.pace.take(now.instant);
            ReadKind::Changes
        });
        let kind = enough(wanted);
        self.is_hinted = false;
        self.retry_read = None;
        self.read_at = Some(now.instant);
        if let Some(mode) = self.mode() {
            // Whatever it is made for, it finds what was lost.
            self.next_poll = now.instant + self.until_next_poll(mode);
        }
        let announcement = self.notifications.begin_read();
        self.reading = Some(Reading { kind, announcement, began_at: now.instant });
        Some(Action::Read(kind))
    }

    /// The read that is under way has ended.
    pub fn end_read(&mut self, answer: &Result<ReadAnswer, DatabaseError>, now: Now) -> EndedRead {
        let unasked = Reading {
            kind: ReadKind::Changes,
            announcement: Announcement::Connected,
            began_at: now.instant,
        };
        let reading = self.reading.take().unwrap_or(unasked);
        match answer {
            Err(_) => self.read_again(reading.kind, now),
            Ok(answer) => self.answered(answer, reading, now),
        }
        let announcement = reading.announcement;
        EndedRead { since: announcement.notified_at(reading.began_at), announcement }
    }

    /// Follows the verdict on what this read brought. `settled`: nothing was known to differ.
    pub fn judged(&mut self, read: EndedRead, verdict: &Verdict, settled: bool, now: Now) {
        match verdict {
            Verdict::Good { finds_changes, is_beyond_limits, .. } => {
                self.connect_backoff.reset();
                self.read_backoff.reset();
                if settled && *finds_changes {
                    self.found_changes(read, now);
                }
                if *is_beyond_limits {
                    self.want(ReadKind::Everything);
                }
            }
            Verdict::TooLittle => self.want(ReadKind::Everything),
            Verdict::Refused(_) => self.read_again(ReadKind::Everything, now),
            Verdict::Unknown => {}
        }
    }

    /// A read found changes that have an effect here, while nothing was known to differ. Where they should
    /// have been announced and were not, their notification may still be on the way.
    fn found_changes(&mut self, read: EndedRead, now: Now) {
        if matches!(self.mode(), Some(Mode::Listen | Mode::Hints)) {
            self.notifications.found(read.announcement, now.instant);
        }
    }

    fn answered(&mut self, answer: &ReadAnswer, reading: Reading, now: Now) {
        self.misfit = None;
        self.connection.serves();
        match answer {
            ReadAnswer::Unchanged { taken_at } => {
                self.figures.change_reads += 1;
                self.no_row_changed(*taken_at, now);
            }
            ReadAnswer::Changed(rows) => {
                self.figures.change_reads += 1;
                self.set_clock(rows.taken_at, reading.began_at, now);
            }
            ReadAnswer::Everything(rows) => {
                self.figures.full_reads += 1;
                self.set_clock(rows.taken_at, reading.began_at, now);
                self.next_resync = now.instant + self.timing.resync_interval;
            }
        }
    }

    /// A read failed, or its rows cannot be used: it is made again. A notification that came meanwhile
    /// may tell of the correction, or of a revocation.
    fn read_again(&mut self, kind: ReadKind, now: Now) {
        self.want(kind);
        let at = now.instant + self.read_backoff.next_wait();
        let announced = self.notifications.is_announced();
        self.retry_read = Some(if announced { at.min(self.earliest_retry(now)) } else { at });
    }
}

#[cfg(test)]
mod tests;
