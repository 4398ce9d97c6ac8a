//! Makes connections, each with the password and the certificates of its time.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use super::error::{Place, StoreError};
use super::hosts::{Connected, NoHost, connect};
use super::options::{ConnectOptions, Target};
use super::token::Token;

/// Reads the options again, with the password of that time. The error is a sentence.
pub type Source = Arc<dyn Fn() -> Result<ConnectOptions, String> + Send + Sync>;

/// How to reach the database. The clones share it.
#[derive(Clone)]
pub(super) struct Dialer(Arc<Mutex<Current>>);

struct Current {
    target: Target,
    /// `None`: what was read once is used for good.
    source: Option<Source>,
    /// Why the source could not be read, once that was told.
    told: Option<String>,
}

tokio::task_local! {
    /// The place where the connection failed that this task asked the pool for: the pool's errors do not name
    /// it.
    static FAILED_AT: Cell<Option<Place>>;
}

/// The pool's answer, and the place where it failed to connect.
pub(super) async fn with_place<T>(asked: impl Future<Output = T>) -> (T, Option<Place>) {
    let asked = async {
        let answer = asked.await;
        (answer, FAILED_AT.with(Cell::take))
    };
    FAILED_AT.scope(Cell::new(None), asked).await
}

impl Dialer {
    pub fn new(target: Target) -> Self {
        Self(Arc::new(Mutex::new(Current { target, source: None, told: None })))
    }

    /// Connections from now on are made as the source says, which is read again when a login fails
    /// for what it read. Connections that exist are left alone.
    ///
    /// # Errors
    /// A sentence that names the flaw; the former options stay in use.
    pub fn follow(&self, source: Source) -> Result<(), String> {
        let target = read(&source, &self.lock().target.clone())?;
        *self.lock() = Current { target, source: Some(source), told: None };
        Ok(())
    }

    /// Connects. If the login fails for a password or a certificate that has changed since it was
    /// read, connects once more.
    ///
    /// # Errors
    /// Why none of the hosts could be used.
    pub async fn connect(&self, application_name: Option<&str>) -> Result<Connected, NoHost> {
        let (target, source) = {
            let current = self.lock();
            (current.target.clone(), current.source.clone())
        };
        let first = connect(&target, application_name).await;
        let (Err(error), Some(source)) = (&first, source) else { return first };
        if !error.is_about_secrets {
            return first;
        }
        match self.read_again(&source).await {
            Some(renewed) if renewed.secrets != target.secrets => {
                let again = connect(&renewed, application_name).await;
                if again.is_ok() {
                    tracing::info!("read the database's password and certificates again");
                }
                let mut current = self.lock();
                // A newer source may be followed meanwhile.
                if current.source.as_ref().is_some_and(|it| Arc::ptr_eq(it, &source)) {
                    current.target = renewed;
                }
                again
            }
            _ => first,
        }
    }

    /// What the source says now; `None`: it cannot be read, which is told once.
    async fn read_again(&self, source: &Source) -> Option<Target> {
        let (asked, former) = (source.clone(), self.lock().target.clone());
        let read = tokio::task::spawn_blocking(move || read(&asked, &former)).await.ok()?;
        let mut current = self.lock();
        match read {
            Ok(target) => {
                current.told = None;
                Some(target)
            }
            Err(why) => {
                if current.told.as_ref() != Some(&why) {
                    tracing::warn!(why, "the former password and certificates stay in use: {why}");
                    current.told = Some(why);
                }
                None
            }
        }
    }

    /// Reads the gateway's token again. Says whether it is another one, which is used from now on.
    pub async fn renew_token(&self) -> bool {
        let Some(source) = self.lock().source.clone() else { return false };
        let Some(renewed) = self.read_again(&source).await else { return false };
        let mut current = self.lock();
        // A newer source may be followed meanwhile.
        let is_new = current.source.as_ref().is_some_and(|it| Arc::ptr_eq(it, &source))
            && renewed.token != current.target.token;
        if is_new {
            tracing::info!("read the gateway's token again");
            current.target = renewed;
        }
        is_new
    }

    /// The present token of the gateway.
    pub fn token(&self) -> Option<Token> {
        self.lock().target.token.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        // No code panics with the lock held, and the value is whole at any time.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the source says now. A password or a token whose file is gone stays in use: the next one may not be in its
/// place yet, and without any the database would take the agent for another.
fn read(source: &Source, former: &Target) -> Result<Target, String> {
    let target = source()?.target().map_err(|error: StoreError| error.to_string())?;
    let lacks_password = target.secrets.password.is_none();
    if former.secrets.password.is_some() && lacks_password {
        return Err("the file with the database password is gone".into());
    }
    if former.token.is_some() && target.token.is_none() {
        return Err("the file with the gateway's token is gone".into());
    }
    Ok(target)
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), Error>> + Send + 'a>>;

impl deadpool_postgres::Connect for Dialer {
    /// The pool's configuration is the one with which it was made.
    fn connect(&self, _: &tokio_postgres::Config) -> Connecting<'_> {
        Box::pin(async move {
            let (client, connection) = match Self::connect(self, None).await {
                Ok(connected) => connected,
                Err(NoHost { error, place, .. }) => {
                    // The pool may connect without a question that waits.
                    let _ = FAILED_AT.try_with(|failed_at| failed_at.set(Some(place)));
                    return Err(error);
                }
            };
            // Its error also reaches the caller through the client.
            let drive = async move { drop(connection.await) };
            Ok((client, tokio::spawn(drive)))
        })
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialer({})", self.lock().target.place)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn all_connections_that_fail_at_once_tell_the_same() {
        let store =
            Store::connect(&ConnectOptions::new("postgres://gw@127.0.0.1:1,127.0.0.2:1/vpn"))
                .unwrap();
        for _ in 0..50 {
            let asked: Vec<_> = (0..8)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move { store.hello().await.unwrap_err().to_string() })
                })
                .collect();
            for asked in asked {
                let text = asked.await.unwrap();
                assert!(text.contains("127.0.0.1:1 as role gw (127.0.0.2:1"), "{text}");
            }
        }
    }
}
