//! A small pool of connections for queries, with limits so that no call hangs.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
    TimeoutType,
};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::Store;
use super::decode::Columns;
use super::dial::{Dialer, Source, with_place};
use super::error::{Limit, StoreError};
use super::hosts::{self, Connected};
use super::options::{ConnectOptions, Target};
use super::patience::{MAKES_DO_FOR, ROOM_AGAIN_AFTER};
use super::seats::{Seat, Seats};
use super::token::{Caller, Token};

/// Lists wrong owners and rights. Any role may run it.
pub(super) const RIGHTS: &str = include_str!("../../migrations/rights.sql");

/// Time for the network, added to a statement's own timeout.
const GRACE: Duration = Duration::from_secs(5);

/// How long an operator's command waits for a connection. Hosts may be tried one after the other.
const SINGLE_WITHIN: Duration = Duration::from_secs(60);

impl Store {
    /// Reads the options. Opens no connection, so that an agent can start while the database is unreachable.
    ///
    /// # Errors
    /// [`StoreError::Config`]: a setting is wrong, and which.
    pub fn connect(options: &ConnectOptions) -> Result<Self, StoreError> {
        let target = options.target()?;
        let hosts = u32::try_from(target.config.get_hosts().len()).unwrap_or(u32::MAX);
        let limits = session_limits(options.statement_timeout);
        let (place, config) = (target.place.clone(), target.config.clone());
        let dialer = Dialer::new(target);
        let connect_within = options.connect_timeout.saturating_mul(hosts) + GRACE;
        let manager = Manager::from_connect(
            config,
            dialer.clone(),
            // No query on recycling, because a lease that failed is not returned.
            ManagerConfig { recycling_method: RecyclingMethod::Fast },
        );
        let pool = Pool::builder(manager)
            .max_size(options.pool_size)
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(options.statement_timeout + GRACE))
            .create_timeout(Some(connect_within))
            .post_create(Hook::async_fn(move |client, _| {
                let limits = limits.clone();
                Box::pin(
                    async move { client.batch_execute(&limits).await.map_err(HookError::Backend) },
                )
            }))
            .build()
            .map_err(|error| StoreError::Config {
                what: format!("the connection pool cannot be created: {error}"),
                fix: "run inside a tokio runtime with time enabled",
            })?;
        let answer_within = options.statement_timeout + GRACE;
        let (epoch, policies, schema_version) = Default::default();
        let host = options.host.clone();
        Ok(Self {
            dialer,
            place,
            pool,
            seats: Seats::new(options.pool_size),
            connect_within,
            answer_within,
            host,
            epoch,
            policies,
            schema_version,
        })
    }

    /// Connects as the source says from now on. It is read at once, and again when a login fails for a
    /// password or a certificate. Connections that exist go on.
    ///
    /// # Errors
    /// A sentence that names the flaw; the former options stay in use.
    pub fn follow(&self, source: Source) -> Result<(), String> {
        self.dialer.follow(source)
    }

    /// A connection that returns to the pool only by [`Lease::done`]. If the server has no room for
    /// another, waits for one of those that there are.
    pub(super) async fn lease(&self, doing: &'static str) -> Result<Lease, StoreError> {
        where_there_is_room(|| self.try_lease(doing)).await
    }

    async fn try_lease(&self, doing: &'static str) -> Result<Lease, StoreError> {
        loop {
            let Some(seat) = self.seats.take(self.answer_within).await else {
                return Err(self.stalled(doing, self.answer_within, Limit::Pool));
            };
            let (got, failed_at) = with_place(self.pool.get()).await;
            let error = match got {
                Ok(object) => {
                    let token = self.dialer.token();
                    return Ok(Lease { object: Some(object), token, _seat: seat });
                }
                Err(PoolError::Backend(source)) => {
                    StoreError::of(failed_at.as_ref().unwrap_or(&self.place), doing, source)
                }
                Err(PoolError::PostCreateHook(HookError::Backend(source))) => {
                    StoreError::of(&self.place, doing, source)
                }
                Err(PoolError::Timeout(TimeoutType::Create)) => {
                    self.stalled(doing, self.connect_within, Limit::Connect)
                }
                Err(_) => self.stalled(doing, self.answer_within, Limit::Pool),
            };
            let has_others = self.pool.status().size > 0;
            if !(error.is_want_of_room() && has_others && seat.leave(MAKES_DO_FOR)) {
                return Err(error);
            }
        }
    }

    /// A connection outside the pool, with this name in `pg_stat_activity`.
    pub(super) async fn dial(
        &self,
        doing: &'static str,
        name: &str,
    ) -> Result<Connected, StoreError> {
        match tokio::time::timeout(self.connect_within, self.dialer.connect(Some(name))).await {
            Ok(connected) => connected.map_err(|no| StoreError::of(&no.place, doing, no.error)),
            Err(_) => Err(self.stalled(doing, self.connect_within, Limit::Connect)),
        }
    }

    /// Closes the sessions that no query uses, but for one.
    pub(super) fn close_spare_sessions(&self) {
        let mut is_first = true;
        self.pool.retain(|_, _| std::mem::take(&mut is_first));
    }

    /// Waits for one exchange, with a limit: a stopped server, or a proxy that lost its server, keeps
    /// the connection open without an answer.
    pub(super) async fn within<T>(
        &self,
        doing: &'static str,
        exchange: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(self.answer_within, exchange).await {
            Ok(answer) => answer.map_err(|error| StoreError::of(&self.place, doing, error)),
            Err(_) => Err(self.stalled(doing, self.answer_within, Limit::Answer)),
        }
    }

    /// Reads, and begins anew while a migration of the control plane holds a table, as it may wait for one
    /// that this read holds. Adds what differs in the tables if that may be why the read failed.
    pub(super) async fn read_in_turns<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        read: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        for _ in 1..LOCK_TURNS {
            match self.explain(read()).await {
                Err(error) if error.is_of_a_migration() => {}
                answer => return answer,
            }
        }
        self.explain(read()).await
    }

    /// Adds what differs in the tables if that may be why a read failed.
    pub(super) async fn explain<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        const DOING: &str = "compare the tables";
        let error = match answer.await {
            Err(error) if error.may_be_a_misfit() => error,
            answer => return answer,
        };
        let misfits = async {
            let lease = self.lease(DOING).await?;
            let query = "select gatepost.misfits()";
            let row = self.within(DOING, lease.query_typed_one(query, &[])).await?;
            lease.done();
            Columns::of(&row, DOING).get::<Vec<String>>(0)
        };
        let mut all = self.wrong_rights().await.unwrap_or_default();
        // Fails if the role may not even call the function.
        all.extend(misfits.await.unwrap_or_default());
        Err(error.with_misfits(all))
    }

    /// Owners and rights in gatepost's schema that differ from what it needs, one line each.
    /// `gatepost migrate` restores them.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection.
    pub async fn wrong_rights(&self) -> Result<Vec<String>, StoreError> {
        const DOING: &str = "compare owners and rights";
        let lease = self.lease(DOING).await?;
        let rows = self.within(DOING, lease.query_typed(RIGHTS, &[])).await?;
        lease.done();
        rows.iter().map(|row| Columns::of(row, DOING).get(0)).collect()
    }

    fn stalled(&self, doing: &'static str, waited: Duration, limit: Limit) -> StoreError {
        StoreError::Stalled { place: Box::new(self.place.clone()), doing, waited, limit }
    }
}

/// Connects, and once more in a moment where the server has no room: a session that was closed just before
/// may still count.
pub(super) async fn where_there_is_room<T, F: Future<Output = Result<T, StoreError>>>(
    connect: impl Fn() -> F,
) -> Result<T, StoreError> {
    for wait in ROOM_AGAIN_AFTER {
        match connect().await {
            Err(error) if error.is_want_of_room() => tokio::time::sleep(wait).await,
            answer => return answer,
        }
    }
    connect().await
}

/// A pooled connection. It is closed if it is dropped before [`done`](Self::done), after an error, a
/// timeout or a cancelled call: a late answer must not be taken for that of the next query.
pub(super) struct Lease {
    object: Option<Object>,
    token: Option<Token>,
    _seat: Seat,
}

impl Lease {
    /// The session, for calls in the name of the gateway.
    pub(super) fn caller(&self) -> Caller<'_> {
        Caller { client: self, token: self.token.as_ref() }
    }

    pub(super) async fn query_typed(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        self.caller().query_typed(query, parameters).await
    }

    pub(super) async fn query_typed_one(
        &self,
        query: &str,
        parameters: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<Row, tokio_postgres::Error> {
        self.caller().query_typed_one(query, parameters).await
    }

    pub(super) fn done(mut self) {
        drop(self.object.take());
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

impl Deref for Lease {
    type Target = deadpool_postgres::ClientWrapper;

    fn deref(&self) -> &Self::Target {
        self.object.as_ref().expect("a lease holds its connection until it is dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.object.as_mut().expect("a lease holds its connection until it is dropped")
    }
}

/// One connection of an operator's command, outside any pool.
pub(super) async fn single(target: &Target) -> Result<tokio_postgres::Client, StoreError> {
    const DOING: &str = "connect";
    let connecting = hosts::connect(target, None);
    let Ok(connected) = tokio::time::timeout(SINGLE_WITHIN, connecting).await else {
        let place = Box::new(target.place.clone());
        let (waited, limit) = (SINGLE_WITHIN, Limit::Connect);
        return Err(StoreError::Stalled { place, doing: DOING, waited, limit });
    };
    let (client, connection) =
        connected.map_err(|no| StoreError::of(&no.place, DOING, no.error))?;
    // Its error also reaches the caller through the client.
    tokio::spawn(connection);
    let neutral = client.batch_execute(NEUTRAL).await;
    neutral.map_err(|error| StoreError::of(&target.place, DOING, error))?;
    Ok(client)
}

/// Overrides what an administrator may have set for the role or the database. `idle_session_timeout` does
/// not exist before version 14. A database in SQL_ASCII may hold text that is not UTF-8, of which the
/// server would send nothing: it is sent as it is, and decoded here.
pub(super) const NEUTRAL: &str = "set statement_timeout = 0; \
    set default_transaction_read_only = off; \
    set default_transaction_isolation = 'read committed'; \
    set search_path = pg_catalog, pg_temp; \
    select pg_catalog.set_config(name, '0', false) \
    from pg_catalog.pg_settings where name = 'idle_session_timeout'; \
    select pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) \
    where pg_catalog.current_setting('server_encoding') = 'SQL_ASCII'";

/// Half a second, or less where the server looks for deadlocks sooner than after a second: it ends one of
/// two transactions that wait for each other, and that must be none of the control plane's.
const LOCK_TIMEOUT: &str = "select pg_catalog.set_config('lock_timeout', least(500, \
    extract(epoch from pg_catalog.current_setting('deadlock_timeout')::interval) * 500)::integer::pg_catalog.text, false)";

/// How often a read that waits for a lock begins anew, without the locks that it had.
const LOCK_TURNS: usize = 10;

/// Set after connecting, because poolers refuse start-up options.
fn session_limits(statement_timeout: Duration) -> String {
    format!(
        "{NEUTRAL}; set statement_timeout = {}; {LOCK_TIMEOUT}; \
         set idle_in_transaction_session_timeout = '60s'",
        statement_timeout.as_millis()
    )
}
