//! The bell's loop: it holds the bell, looks at the database, and publishes after each look.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, Event};
use gatepost::store::{Held, Ring, Store, StoreError};
use tokio::sync::watch;

use super::rhythm::Rhythm;
use super::state::{BellState, Counts};
use crate::hints::{Broker, BrokerError, FOR_ALL, SIGNS_OF_LIFE, subject_of};
use crate::pulse::Pulse;

/// Before the next attempt after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why the loop begins anew.
enum Trouble {
    Database(StoreError),
    Broker(BrokerError),
}

pub struct Ringer {
    pub store: Store,
    pub broker: Broker,
    /// Unlike that of any other bell.
    pub name: String,
    pub state: watch::Sender<BellState>,
    pub counts: Arc<Counts>,
    pub pulse: Pulse,
}

impl Ringer {
    /// Rings until it is cancelled.
    pub async fn run(self) -> Infallible {
        loop {
            let trouble = match self.session().await {
                Err(trouble) => trouble,
                Ok(never) => match never {},
            };
            match trouble {
                Trouble::Database(error) => {
                    self.show(BellState::NoDatabase { why: error.to_string() })
                }
                Trouble::Broker(error) => {
                    self.show(BellState::NoBroker { why: error.to_string() });
                    // Another bell may reach the broker.
                    let _ = self.store.leave_bell(&self.name).await;
                }
            }
            self.pulse.beat(Instant::now());
            tokio::time::sleep(RETRY_AFTER).await;
        }
    }

    /// From a connection to the broker to the first failure.
    async fn session(&self) -> Result<Infallible, Trouble> {
        let line = Line::connect(&self.broker, &self.name).await.map_err(Trouble::Broker)?;
        // What was to be published before may be lost.
        let mut everyone_is_due = true;
        let mut rhythm = Rhythm::new(Instant::now());
        loop {
            self.pulse.beat(Instant::now());
            if rhythm.must_hold(Instant::now()) {
                let held = self.store.hold_bell(&self.name).await.map_err(Trouble::Database)?;
                rhythm.held(Instant::now());
                if let Held::Elsewhere { holder, .. } = held {
                    self.show(BellState::Waiting { holder });
                    rhythm.rest();
                    line.check().map_err(Trouble::Broker)?;
                    tokio::time::sleep_until(rhythm.look_at().into()).await;
                    continue;
                }
            }
            let look_began = Instant::now();
            let rung = self.store.ring(&self.name).await.map_err(Trouble::Database)?;
            Counts::add(&self.counts.looks, 1);
            rhythm.looked(Instant::now(), &rung);
            line.check().map_err(Trouble::Broker)?;
            if rung != Ring::NotHeld {
                everyone_is_due |= line.was_interrupted();
                let hints = if everyone_is_due { Ring::Everyone } else { rung };
                self.publish(&line, &hints).await.map_err(Trouble::Broker)?;
                everyone_is_due = false;
                if rhythm.must_sign(look_began, Instant::now()) {
                    line.publish(SIGNS_OF_LIFE.to_owned()).await.map_err(Trouble::Broker)?;
                    rhythm.signed(Instant::now());
                }
                self.show(BellState::Ringing);
            }
            tokio::time::sleep_until(rhythm.look_at().into()).await;
        }
    }

    async fn publish(&self, line: &Line, hints: &Ring) -> Result<(), BrokerError> {
        match hints {
            Ring::NotHeld => {}
            Ring::Everyone => {
                line.publish(FOR_ALL.to_owned()).await?;
                Counts::add(&self.counts.hints_to_all, 1);
            }
            Ring::Gateways(gateways) => {
                for gateway in gateways {
                    line.publish(subject_of(*gateway)).await?;
                }
                Counts::add(&self.counts.hints_to_one, gateways.len());
            }
        }
        Ok(())
    }

    /// Publishes the state, and logs it when it is another one.
    fn show(&self, next: BellState) {
        let changed = self.state.send_if_modified(|state| {
            let changed = *state != next;
            *state = next.clone();
            changed
        });
        if !changed {
            return;
        }
        match &next {
            BellState::Starting => {}
            BellState::Ringing => tracing::info!(
                message_id = "0f6cf6b0a5b74b4d8a5f1c52d53a7e11",
                "this bell rings now"
            ),
            BellState::Waiting { holder } => {
                tracing::info!(holder, "bell {holder} rings; this one waits to take over");
            }
            BellState::NoDatabase { why } => tracing::warn!(
                message_id = "b1d5d2f5f0a94c2e9df0c0cb5a8f6c22",
                error = why,
                "this bell cannot ring: {why}"
            ),
            BellState::NoBroker { why } => tracing::warn!(
                message_id = "b1d5d2f5f0a94c2e9df0c0cb5a8f6c22",
                error = why,
                "this bell cannot ring: {why}"
            ),
        }
    }
}

/// A connection to the broker, and what has happened to it.
struct Line {
    client: Client,
    /// It was lost, and made again.
    interrupted: Arc<AtomicBool>,
    /// The last refusal of the broker.
    refused: watch::Receiver<Option<BrokerError>>,
}

impl Line {
    async fn connect(broker: &Broker, name: &str) -> Result<Self, BrokerError> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let (refuse, refused) = watch::channel(None);
        let seen = Arc::clone(&interrupted);
        let name = format!("gatepost bell {name}");
        let client = broker.connect(&name, move |event| match event {
            Event::Disconnected => seen.store(true, Ordering::Relaxed),
            Event::ServerError(error) => {
                drop(refuse.send_replace(Some(BrokerError::of_server(&error.to_string()))));
            }
            Event::Closed => drop(refuse.send_replace(Some(BrokerError::Lost))),
            _ => {}
        });
        Ok(Self { client: client.await?, interrupted, refused })
    }

    /// Whether it was made again since this was last asked.
    fn was_interrupted(&self) -> bool {
        self.interrupted.swap(false, Ordering::Relaxed)
    }

    /// Whether it can be used.
    fn check(&self) -> Result<(), BrokerError> {
        self.refused.borrow().clone().map_or(Ok(()), Err)
    }

    /// An empty message.
    async fn publish(&self, subject: String) -> Result<(), BrokerError> {
        let sent = self.client.publish(subject, Vec::new().into()).await;
        sent.map_err(|_| self.check().err().unwrap_or(BrokerError::Lost))
    }
}
