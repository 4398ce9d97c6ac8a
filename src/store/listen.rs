//! The connection that receives notifications of commits. They are empty: they only say *look again*.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_postgres::AsyncMessage;

use super::connect::{NEUTRAL, where_there_is_room};
use super::{Attached, Hello, Store, StoreError};

/// How long a notification to ourselves may take before notifications count as lost.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

const DOING: &str = "listen for notifications";

/// A connection that listens and never opens a transaction: an open transaction lets the server's
/// notification queue grow until commits fail.
pub struct Listener {
    store: Store,
    attached: Attached,
    client: tokio_postgres::Client,
    wakes: mpsc::UnboundedReceiver<()>,
    probes: mpsc::UnboundedReceiver<()>,
    /// A channel of this listener alone.
    probe_channel: String,
    connection: tokio::task::JoinHandle<()>,
    end: tokio::sync::oneshot::Receiver<tokio_postgres::Error>,
}

impl Store {
    /// Calls [`Store::attach`], connects, and listens on this gateway's channel and on the channel for
    /// all. Read only after it returns: later commits are announced, except for what a transaction
    /// wrote before any agent listened.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] where the server has no session left to listen on, and any other
    /// [`StoreError`] of the connection or of the role's rights.
    pub async fn listen(&self, hello: &Hello) -> Result<Listener, StoreError> {
        let attached = self.attach(true).await?;
        // Distinguishes this connection in pg_stat_activity.
        let connect = || self.dial(DOING, "gatepost listen");
        let (client, mut connection) = match connect().await {
            Err(error) if error.is_want_of_room() => {
                self.close_spare_sessions();
                where_there_is_room(connect).await?
            }
            connected => connected?,
        };
        let (wake, wakes) = mpsc::unbounded_channel();
        let (probe, probes) = mpsc::unbounded_channel();
        let (ended, end) = tokio::sync::oneshot::channel();
        let probe_channel = format!("gatepost_probe_{:016x}", fastrand::u64(..));
        let channels = format!(
            "listen \"gatepost_{}\"; listen gatepost_all; listen {probe_channel}",
            hello.gateway_id
        );
        let own_channel = probe_channel.clone();
        let connection = tokio::spawn(async move {
            loop {
                match std::future::poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(heard))) => {
                        let to = if heard.channel() == own_channel { &probe } else { &wake };
                        if to.send(()).is_err() {
                            return;
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => {
                        // The listener may be gone.
                        let _ = ended.send(error);
                        return;
                    }
                    None => return,
                }
            }
        });
        let store = self.clone();
        let listener =
            Listener { store, attached, client, wakes, probes, probe_channel, connection, end };
        self.within(DOING, listener.client.batch_execute(NEUTRAL)).await?;
        self.within(DOING, listener.client.batch_execute(&channels)).await?;
        Ok(listener)
    }
}

impl Listener {
    /// The answer of [`Store::attach`] from before it began to listen.
    #[must_use]
    pub const fn attached(&self) -> &Attached {
        &self.attached
    }

    /// Waits for the next notification, and returns how many arrived since the last call. Cancelling
    /// loses none.
    ///
    /// # Errors
    /// The connection is lost. Listen again, then read: commits in between were not announced.
    pub async fn next(&mut self) -> Result<usize, StoreError> {
        if self.wakes.recv().await.is_none() {
            return Err(self.gone());
        }
        let mut count = 1;
        while self.wakes.try_recv().is_ok() {
            count += 1;
        }
        Ok(count)
    }

    /// Whether a test notification arrives. `false`: something between us and the server, such as a
    /// pooler in transaction mode, drops notifications; poll instead. It is sent by another
    /// connection, because a pooler returns what the listening session itself sends.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn probe(&mut self) -> Result<bool, StoreError> {
        while self.probes.try_recv().is_ok() {}
        let lease = self.store.lease(DOING).await?;
        let notify = format!("notify {}", self.probe_channel);
        self.store.within(DOING, lease.batch_execute(&notify)).await?;
        lease.done();
        match tokio::time::timeout(PROBE_WITHIN, self.probes.recv()).await {
            Ok(Some(())) => Ok(true),
            Ok(None) => Err(self.gone()),
            Err(_) => Ok(false),
        }
    }

    fn gone(&mut self) -> StoreError {
        let place = &self.store.place;
        match self.end.try_recv() {
            Ok(error) => StoreError::of(place, DOING, error),
            Err(_) => StoreError::Closed { place: Box::new(place.clone()) },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.connection.abort();
    }
}
