//! The shell's connection to the database: made, kept, switched to another mode, cut.

use tracing::{debug, warn};

use super::choose::Until;
use super::database::{Connection, connect};
use super::in_use::InUse;
use super::state::{Inner, Shell};
use crate::causes::causes;
use crate::dataplane::Dataplane;
use crate::reconcile::clock;
use crate::reconcile::event::Event;
use crate::reconcile::mode::Mode;
use crate::reconcile::view::status::old_schema;
use crate::store::Attached;

impl<D: Dataplane + 'static> Shell<D> {
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
        let before = self.in_use.replace(InUse { mode, until, chosen_at: clock::now().instant });
        let known = self.template.database.schema_version.replace(hello.schema_version);
        if let Some(why) =
            old_schema(hello.schema_version).filter(|_| known != Some(hello.schema_version))
        {
            warn!("{why}");
        }
        if until == Until::ProbedAgain && before.is_some_and(|before| before.until == until) {
            // Probed again, with the same answer: nothing has changed.
            return;
        }
        self.stop_listening();
        if let Some(mut listener) = chosen.listener {
            let events = self.events.clone();
            let heard = async move {
                loop {
                    let event = match listener.next().await {
                        Ok(_) => Event::Notified,
                        Err(error) => Event::Disconnected { error: error.into() },
                    };
                    let over = matches!(event, Event::Disconnected { .. });
                    if events.send(Inner::Event(event)).is_err() || over {
                        return;
                    }
                }
            };
            self.listening = Some(tokio::spawn(heard));
        }
        self.handle(Event::Gateways { count: chosen.gateways });
        self.handle(Event::Connected { mode });
        self.handle(Event::Unannounced { tables: chosen.unwatched });
    }

    pub(super) fn spawn_connect(&self) {
        let (store, mode, gateway) = (self.store.clone(), self.mode, self.gateway.clone());
        let by_number = self.in_use.filter(|in_use| in_use.until == Until::FleetChanges);
        let present = by_number.map(|in_use| in_use.mode);
        self.spawn_inner(async move {
            match connect(&store, mode, &gateway, present).await {
                Ok(connection) => Inner::Connected(Box::new(connection)),
                Err(error) => Inner::Event(Event::Disconnected { error }),
            }
        });
    }

    /// Tells the database that this agent is there.
    pub(super) fn attach(&self) {
        let Some(in_use) = self.in_use else { return };
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            if let Ok(proven) = store.prove(None).await {
                drop(events.send(Inner::Event(Event::Hosts(proven.hosts))));
            }
            match store.attach(in_use.mode == Mode::Listen).await {
                // The loop may have ended meanwhile.
                Ok(attached) => drop(events.send(Inner::Attached(attached))),
                // The next read finds that the database is unreachable, and says so.
                Err(error) => debug!(
                    "could not tell the database that this agent is there: {}",
                    causes(&error)
                ),
            }
        });
    }

    /// Chooses the mode again where another may be better, and takes in which changes are unannounced.
    pub(super) fn attached(&mut self, attached: Attached) {
        let Attached { gateways, unwatched } = attached;
        self.handle(Event::Unannounced { tables: unwatched });
        self.handle(Event::Gateways { count: gateways });
        let (now, probe_every) = (clock::now().instant, self.machine.view().resync_interval());
        if self.in_use.is_some_and(|in_use| in_use.is_doubtful(gateways, now, probe_every)) {
            self.spawn_connect();
        }
    }
}
