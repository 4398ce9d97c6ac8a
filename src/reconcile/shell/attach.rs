//! The shell's connection to the database: made, kept, switched to another mode, cut.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{debug, warn};

use super::choose::{Present, Until};
use super::database::{Answer, Connection, connect, send};
use super::in_use::InUse;
use super::state::{Inner, Shell};
use crate::causes::causes;
use crate::dataplane::Dataplane;
use crate::reconcile::bell::BellNews;
use crate::reconcile::clock;
use crate::reconcile::event::Event;
use crate::reconcile::hints::{Heard, Hints};
use crate::reconcile::ledger::Report;
use crate::reconcile::mode::Mode;
use crate::reconcile::view::status::old_schema;
use crate::store::{Attached, Proven, StoreError};

/// An agent that does not poll follows a bell that it hears within this time.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(1);
/// A proof that was reported within this time says also that the host is there. With the time between two questions
/// it is less than `gatepost.lease()`, after which another host leads.
const HEARD_OF_WITHIN: Duration = Duration::from_secs(45);

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
        if let Some(gateway) = &self.hints_for {
            gateway.send_replace(Some(hello.gateway_id));
        }
        let before = self.in_use.replace(InUse { mode, until, chosen_at: clock::now().instant });
        let known = self.template.database.schema_version.replace(hello.schema_version);
        if let Some(why) =
            old_schema(hello.schema_version).filter(|_| known != Some(hello.schema_version))
        {
            warn!("{why}");
        }
        self.handle(Event::NoSession { why: chosen.no_session });
        let is_a_try = matches!(until, Until::ProbedAgain | Until::SessionIsFree);
        if is_a_try && before.is_some_and(|before| before.until == until) {
            // Tried again, with the same answer: nothing has changed.
            return;
        }
        // A mode is chosen with an answer to `Store::attach`.
        self.presence.attached(clock::now().instant);
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
        let hears_bell = self.machine.view().hears_bell();
        let present = Present { mode: by_number.map(|in_use| in_use.mode), hears_bell };
        self.spawn_inner(async move {
            match connect(&store, mode, &gateway, present).await {
                Ok(connection) => Inner::Connected(Box::new(connection)),
                Err(error) => Inner::Event(Event::Disconnected { error }),
            }
        });
    }

    /// Tells the database that this host is there and that its agent follows, unless reports have told it lately.
    pub(super) fn tell_presence(&self) {
        let Some(in_use) = self.in_use else { return };
        let now = clock::now().instant;
        let heard_of_at = self.machine.view().heard_of_at();
        let tells_of_host = heard_of_at.is_none_or(|at| at + HEARD_OF_WITHIN < now);
        let tells_of_agent = self.presence.is_told_alone(now);
        if !tells_of_host {
            return if tells_of_agent {
                self.attach_after(Duration::ZERO)
            };
        }
        let (store, events) = (self.store.clone(), self.events.clone());
        let listens = tells_of_agent.then_some(in_use.mode == Mode::Listen);
        tokio::spawn(async move {
            match store.heartbeat(None, listens).await {
                Ok((proven, attached)) => drop(events.send(Inner::Present(proven, attached))),
                Err(error) => untold(&error),
            }
        });
    }

    fn attach_after(&self, delay: Duration) {
        let Some(in_use) = self.in_use else { return };
        let (store, events) = (self.store.clone(), self.events.clone());
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            match store.attach(in_use.mode == Mode::Listen).await {
                // The loop may have ended meanwhile.
                Ok(attached) => drop(events.send(Inner::Attached(attached))),
                Err(error) => untold(&error),
            }
        });
    }

    /// Takes in the answer to [`Self::tell_presence`].
    pub(super) fn present(&mut self, proven: Proven, attached: Option<Attached>) {
        self.presence.set_merged_by_bell(proven.merged_by_bell.is_some());
        self.handle(Event::Hosts(proven.hosts));
        if let Some(attached) = attached {
            self.attached(attached);
        }
    }

    pub(super) fn report(&self, report: Report) {
        // An agent that makes one pass follows nothing.
        let in_use = self.in_use.filter(|_| self.mode.is_some());
        let is_told = self.presence.is_told_with_a_proof(clock::now().instant);
        let follows = in_use.filter(|_| is_told).map(|in_use| in_use.mode);
        let (store, merged_by_bell) = (self.store.clone(), self.presence.is_merged_by_bell());
        self.spawn_inner(async move {
            Inner::Reported(Box::new(send(&store, report, follows, merged_by_bell).await))
        });
    }

    pub(super) fn reported(&mut self, answer: Answer) {
        let Answer { sent, attached, merged_by_bell } = answer;
        if let Some(by_bell) = merged_by_bell {
            self.presence.set_merged_by_bell(by_bell);
        }
        self.handle(Event::Reported(sent));
        if let Some(attached) = attached {
            self.attached(attached);
        }
    }

    /// Chooses the mode again where another may be better, and takes in which changes are unannounced.
    pub(super) fn attached(&mut self, attached: Attached) {
        self.presence.attached(clock::now().instant);
        let Attached { gateways, unwatched, .. } = attached;
        self.handle(Event::Unannounced { tables: unwatched });
        self.handle(Event::Gateways { count: gateways });
        self.choose_again(gateways);
    }

    /// Chooses the mode again where another may be better.
    fn choose_again(&self, gateways: u32) {
        let (now, view) = (clock::now().instant, self.machine.view());
        let (hears_bell, probe_every) = (view.hears_bell(), view.resync_interval());
        let doubtful = |in_use: InUse| in_use.is_doubtful(gateways, hears_bell, now, probe_every);
        if self.in_use.is_some_and(doubtful) {
            self.spawn_connect();
        }
    }

    /// Expects to hear a bell, if hints are configured. Returns the receiver of its news; without hints none
    /// ever arrives.
    pub(super) fn expect_hints(&mut self, hints: Option<Hints>) -> watch::Receiver<Heard> {
        let Some(Hints { heard, gateway }) = hints else {
            return watch::channel(Heard::default()).1;
        };
        self.hints_for = Some(gateway);
        self.handle(Event::Bell(BellNews::Expected));
        heard
    }

    /// Takes in what was heard from the broker.
    pub(super) fn heard(&mut self, heard: Heard) {
        let before = std::mem::replace(&mut self.heard, heard);
        let Heard { hints, signs_of_life, trouble } = self.heard.clone();
        if trouble != before.trouble {
            self.handle(Event::Bell(BellNews::Trouble(trouble)));
        }
        if signs_of_life != before.signs_of_life {
            let was_heard = self.machine.view().hears_bell();
            self.handle(Event::Bell(BellNews::Alive));
            let may_follow = |in_use: InUse| {
                use Until::{FleetChanges, ProbedAgain, SessionIsFree};
                matches!(in_use.until, FleetChanges | ProbedAgain | SessionIsFree)
            };
            if !was_heard && self.in_use.is_some_and(may_follow) {
                // The whole fleet hears it at once, and does not connect again at once.
                let within = self.machine.view().poll_interval().unwrap_or(FOLLOWED_WITHIN);
                self.attach_after(within.mul_f64(fastrand::f64()));
            }
        }
        if hints != before.hints {
            self.handle(Event::Hinted);
        }
    }
}

/// The next read finds that the database is unreachable, and says so.
fn untold(error: &StoreError) {
    debug!("could not tell the database that this agent is there: {}", causes(error));
}
