//! The shell's tie to the database: made, kept, turned to another mode, cut.

use std::time::{Duration, Instant};

use tracing::debug;

use super::database::{Connection, chain, connect};
use super::event::{Event, Mode};
use super::mode::{Until, suits};
use super::shell::{Host, Inner, Shell};
use super::summary::clock;
use crate::store::Attached;

/// How often we say that we are there, and ask how many are: an agent that is silent for five of
/// these counts as gone.
pub(super) const ATTACH_EVERY: Duration = Duration::from_secs(60);

/// How changes are learnt of while the database is there.
#[derive(Clone, Copy)]
pub(super) struct InUse {
    pub mode: Mode,
    until: Until,
    chosen_at: Instant,
}

impl InUse {
    /// Whether another mode may be better, now that so many gateways share the database.
    fn is_doubtful(&self, gateways: i64, now: Instant, probe_every: Duration) -> bool {
        match self.until {
            Until::Reconfigured => false,
            Until::Crowd => suits(gateways, Some(self.mode)).0 != self.mode,
            Until::ProbedAgain => now.duration_since(self.chosen_at) >= probe_every,
        }
    }
}

impl<D: Host> Shell<D> {
    pub(super) fn stop_listening(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
    }

    pub(super) fn connected(&mut self, connection: Connection) {
        let Connection { hello, chosen } = connection;
        let mode = chosen.mode;
        self.template.sync.mode_why = chosen.why;
        let until = chosen.until;
        let before = self.in_use.replace(InUse { mode, until, chosen_at: clock().instant });
        self.template.database.schema_version = Some(hello.schema_version);
        if until == Until::ProbedAgain && before.is_some_and(|before| before.until == until) {
            // Asked once more, with the same answer: nothing has changed.
            return;
        }
        self.stop_listening();
        if let Some(mut listener) = chosen.listener {
            let events = self.events.clone();
            let heard = async move {
                loop {
                    let event = match listener.next().await {
                        Ok(_) => Event::Notified,
                        Err(error) => Event::Disconnected { error: chain(&error) },
                    };
                    let over = matches!(event, Event::Disconnected { .. });
                    if events.send(Inner::Event(event)).is_err() || over {
                        return;
                    }
                }
            };
            self.listening = Some(tokio::spawn(heard));
        }
        self.tell(Event::Connected { mode });
        self.tell(Event::Unwatched { tables: chosen.unwatched });
    }

    pub(super) fn spawn_connect(&self) {
        let (store, mode, gateway) = (self.store.clone(), self.mode, self.gateway.clone());
        let present = self.in_use.map(|in_use| in_use.mode);
        self.spawn_inner(async move {
            match connect(&store, mode, &gateway, present).await {
                Ok(connection) => Inner::Connected(Box::new(connection)),
                Err(error) => Inner::Event(Event::Disconnected { error }),
            }
        });
    }

    /// Says that we are there, while we are.
    pub(super) fn attach(&self) {
        let Some(in_use) = self.in_use else { return };
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            match store.attach(in_use.mode == Mode::Listen).await {
                // The loop may have ended meanwhile.
                Ok(attached) => drop(events.send(Inner::Attached(attached))),
                // Whoever reads finds that the database is away, and says so.
                Err(error) => debug!("could not say that we are there: {}", chain(&error)),
            }
        });
    }

    /// Chooses the mode anew where another may be better, and sees who will not tell of changes.
    pub(super) fn attached(&mut self, attached: Attached) {
        let Attached { gateways, unwatched } = attached;
        self.tell(Event::Unwatched { tables: unwatched });
        let (now, probe_every) = (clock().instant, self.machine.resync_interval());
        if self.in_use.is_some_and(|in_use| in_use.is_doubtful(gateways, now, probe_every)) {
            self.spawn_connect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_that_was_lost_is_sent_again_and_a_configured_mode_stays() {
        let (now, every) = (Instant::now(), Duration::from_secs(600));
        let doubtful = |until, mode, gateways, later| {
            let in_use = InUse { mode, until, chosen_at: now };
            in_use.is_doubtful(gateways, now + later, every)
        };
        let minute = Duration::from_secs(60);
        assert!(!doubtful(Until::ProbedAgain, Mode::Poll, 1, minute));
        assert!(doubtful(Until::ProbedAgain, Mode::Poll, 1, every));
        assert!(!doubtful(Until::Reconfigured, Mode::Poll, 1, every));
        assert!(!doubtful(Until::Crowd, Mode::Listen, 50, every));
        assert!(doubtful(Until::Crowd, Mode::Listen, 51, minute));
    }
}
