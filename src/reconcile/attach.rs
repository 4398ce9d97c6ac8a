//! The shell's tie to the database: made, kept, turned to another mode, cut.

use std::time::Duration;

use tracing::debug;

use super::database::{Connection, chain, connect};
use super::event::{Event, Mode};
use super::mode::suits;
use super::shell::{Host, Inner, Shell};

/// How often we say that we are there, and ask how many are: an agent that is silent for five of
/// these counts as gone.
pub(super) const ATTACH_EVERY: Duration = Duration::from_secs(60);

/// How changes are learnt of while the database is there.
#[derive(Clone, Copy)]
pub(super) struct InUse {
    pub mode: Mode,
    /// Whether the number of gateways may choose another one.
    may_turn: bool,
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
        self.in_use = Some(InUse { mode, may_turn: chosen.may_turn });
        self.template.database.schema_version = Some(hello.schema_version);
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
                Ok(gateways) => drop(events.send(Inner::Attached(gateways))),
                // Whoever reads finds that the database is away, and says so.
                Err(error) => debug!("could not say that we are there: {}", chain(&error)),
            }
        });
    }

    /// Turns to the other mode where that suits so many gateways.
    pub(super) fn attached(&self, gateways: i64) {
        if let Some(InUse { mode, may_turn: true }) = self.in_use
            && suits(gateways, Some(mode)).0 != mode
        {
            self.spawn_connect();
        }
    }
}
