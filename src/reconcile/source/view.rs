//! What readers see of the database's side.

use std::time::{Duration, SystemTime};

use super::Source;
use crate::reconcile::bell::Silence;
use crate::reconcile::error::DatabaseError;
use crate::reconcile::mode::Mode;

/// What readers see.
#[derive(Debug, Clone, Copy)]
pub(in crate::reconcile) struct SourceView<'a> {
    /// `None`: the database is unreachable.
    pub mode: Option<Mode>,
    /// Between two questions in poll mode.
    pub poll_interval: Option<Duration>,
    /// Hints were chosen, although none may be heard at the moment.
    pub follows_bell: bool,
    pub hears_bell: bool,
    /// Since when a bell is heard, but no hints.
    pub mute_since: Option<SystemTime>,
    /// Why no bell is heard that should be.
    pub silence: Option<Silence<'a>>,
    /// Why the database could not be read, until it is read again.
    pub error: Option<&'a DatabaseError>,
    /// The next attempt to connect has not begun.
    pub is_down: bool,
    pub misfit: Option<&'a DatabaseError>,
    /// Why the server has no session to listen on, while that is so.
    pub no_session: Option<&'a str>,
    pub since: SystemTime,
    pub unannounced: &'a [String],
    pub reads_wanted: bool,
    pub figures: SourceFigures,
    pub resync_interval: Duration,
}

/// Figures that only grow.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::reconcile) struct SourceFigures {
    pub notifications: u64,
    pub notify_missed: u64,
    pub full_reads: u64,
    pub change_reads: u64,
}

impl Source {
    pub fn view(&self) -> SourceView<'_> {
        SourceView {
            mode: self.mode(),
            poll_interval: (self.mode() == Some(Mode::Poll))
                .then(|| self.timing.poll_interval_among(self.gateways)),
            follows_bell: self.follows_bell(),
            hears_bell: self.bell.is_heard(),
            mute_since: self.bell.mute_since(),
            silence: self.bell.silence(),
            error: self.connection.error(),
            is_down: self.is_down(),
            misfit: self.misfit.as_ref(),
            no_session: self.no_session.as_deref(),
            since: self.since,
            unannounced: self.notifications.unannounced(),
            reads_wanted: self.wanted.is_some() || self.is_hinted,
            figures: SourceFigures {
                notifications: self.notifications.received(),
                notify_missed: self.notifications.missed(),
                ..self.figures
            },
            resync_interval: self.timing.resync_interval,
        }
    }
}
