//! The agent's ear: hears hints and signs of life, and publishes nothing.

use std::time::Duration;

use async_nats::{Client, Event, ServerError, Subscriber};
use futures_util::StreamExt as _;
use gatepost::backoff::Backoff;
use gatepost::model::GatewayId;
use gatepost::reconcile::Hearing;
use tokio::sync::mpsc;

use super::{Broker, BrokerError, FOR_ALL, SIGNS_OF_LIFE, subject_of};

/// How many events of the connection wait here; more are dropped.
const EVENTS: usize = 64;
/// A broker that answers no later does not answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// A connection that lived so long was a good one: the next attempt comes soon.
const GOOD_AFTER: Duration = Duration::from_secs(30);

/// Hears for as long as the loop lives. `name` is this program's at the broker; `seed` spreads the
/// attempts of a fleet to connect.
pub async fn listen(broker: Broker, name: String, seed: u64, mut hearing: Hearing) {
    let mut backoff = Backoff::new(seed);
    loop {
        let known = hearing.gateway.wait_for(Option::is_some).await;
        let Some(gateway) = known.ok().and_then(|known| *known) else { return };
        let began = tokio::time::Instant::now();
        match hear(&broker, &name, gateway, &mut hearing).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                if began.elapsed() > GOOD_AFTER {
                    backoff.reset();
                }
                // Heard by a loop that has not ended.
                hearing.heard.send_modify(|heard| heard.trouble = Some(error.to_string()));
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_wait()) => {}
                    () = hearing.heard.closed() => return,
                }
            }
        }
    }
}

/// Subscribes as the agent of this gateway does, and leaves again.
///
/// # Errors
/// [`BrokerError`], also of a subscription that is refused.
pub async fn try_to_hear(
    broker: &Broker,
    name: &str,
    gateway: GatewayId,
) -> Result<(), BrokerError> {
    let (happened, mut events) = mpsc::channel(EVENTS);
    let client = broker.connect(name, move |event| drop(happened.try_send(event))).await?;
    let [_own, _for_all, mut last] = subscriptions(&client, gateway).await?;
    // The server answers in order: a refused subscription is said before this one ends.
    let ends = async {
        last.drain().await.map_err(|_| BrokerError::Lost)?;
        while last.next().await.is_some() {}
        Ok(())
    };
    tokio::time::timeout(ANSWERS_WITHIN, ends).await.map_err(|_| BrokerError::Lost)??;
    tokio::task::yield_now().await;
    while let Ok(event) = events.try_recv() {
        if let Event::ServerError(ServerError::Other(text)) = event {
            return Err(BrokerError::of_server(&text));
        }
    }
    Ok(())
}

/// Hears for one gateway, until it is another or the connection is lost.
async fn hear(
    broker: &Broker,
    name: &str,
    gateway: GatewayId,
    hearing: &mut Hearing,
) -> Result<(), BrokerError> {
    let (happened, mut events) = mpsc::channel(EVENTS);
    let client = broker.connect(name, move |event| drop(happened.try_send(event))).await?;
    let [mut own, mut for_all, mut signs_of_life] = subscriptions(&client, gateway).await?;
    // A refused subscription is said before the answer to this.
    client.flush().await.map_err(|_| BrokerError::Lost)?;
    let heard = |change: fn(&mut gatepost::reconcile::Heard)| hearing.heard.send_modify(change);
    loop {
        tokio::select! {
            biased;
            Some(event) = events.recv() => match event {
                // What was said while there was no connection is lost.
                Event::Connected => heard(|heard| heard.hints += 1),
                Event::ServerError(ServerError::Other(text)) => {
                    return Err(BrokerError::of_server(&text));
                }
                Event::ServerError(error) => return Err(BrokerError::Server(error.to_string())),
                Event::Closed => return Err(BrokerError::Lost),
                _ => {}
            },
            // Before hints: however many come, the loop still learns the rest.
            sign = signs_of_life.next() => {
                sign.ok_or(BrokerError::Lost)?;
                heard(|heard| { heard.signs_of_life += 1; heard.trouble = None; });
            }
            // The loop has ended, or the gateway's row is another one.
            changed = hearing.gateway.changed() => {
                if changed.is_err() || *hearing.gateway.borrow() != Some(gateway) {
                    return Ok(());
                }
            }
            hint = own.next() => {
                hint.ok_or(BrokerError::Lost)?;
                heard(|heard| heard.hints += 1);
            }
            hint = for_all.next() => {
                hint.ok_or(BrokerError::Lost)?;
                heard(|heard| heard.hints += 1);
            }
        }
    }
}

/// To the gateway's own hints, to those for all, and to the bell's signs of life.
async fn subscriptions(
    client: &Client,
    gateway: GatewayId,
) -> Result<[Subscriber; 3], BrokerError> {
    Ok([
        subscribe(client, subject_of(gateway)).await?,
        subscribe(client, FOR_ALL.to_owned()).await?,
        subscribe(client, SIGNS_OF_LIFE.to_owned()).await?,
    ])
}

async fn subscribe(client: &Client, subject: String) -> Result<Subscriber, BrokerError> {
    client.subscribe(subject).await.map_err(|error| BrokerError::Server(error.to_string()))
}
