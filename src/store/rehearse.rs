//! Runs statements in a transaction that is rolled back, and reads what a gateway would read after them.
//! For an owner of the database.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client, Row};

use super::connect::single;
use super::decode::Columns;
use super::error::{Place, StoreError, server_error};
use super::ineffective::{self, Ineffective};
use super::options::{ConnectOptions, Target};
use super::script::Statement;
use super::snapshot;
use super::token::Caller;
use crate::model::SnapshotRows;

/// The statements and the reading after them take no longer.
pub const REHEARSAL_WITHIN: Duration = Duration::from_secs(30);
/// A lock for which other sessions wait is held no longer.
pub const LOCKED_WITHIN: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock: who waits for a lock keeps others waiting.
const LOCK_TIMEOUT_MS: u64 = 1_000;
/// How long each kind of rows without effect is looked for: that is among the rows of all gateways, while
/// others wait for the locks of the statements.
const INEFFECTIVE_WITHIN_MS: u64 = 1_000;
/// Between two looks at the locks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

const DOING: &str = "rehearse the statements";

/// The effects that statements would have. They were rolled back.
#[derive(Debug)]
pub struct Rehearsal {
    /// Without the statements; `None`: the gateway had no row.
    pub before: Option<SnapshotRows>,
    pub after: SnapshotRows,
    /// The tables that were locked, the strongest lock of each.
    pub locks: Vec<HeldLock>,
    /// The statements that were to change rows, and changed none.
    pub unchanged: Vec<Unchanged>,
    /// Rows that change nothing after the statements, as far as they were found in time.
    pub ineffective: Vec<Ineffective>,
    /// From the first statement to the rollback.
    pub lasted: Duration,
}

/// A statement that changed no row, as where its condition has a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unchanged {
    /// The first is 1.
    pub number: usize,
    pub line: usize,
    pub text: String,
}

/// A lock on a table, held until the transaction's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldLock {
    pub table: String,
    pub mode: LockMode,
}

/// The strength of a lock, as far as it matters to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockMode {
    /// Others read, and write other rows.
    Rows,
    /// Others read.
    Writers,
    /// Others wait for it.
    All,
}

impl LockMode {
    /// `None`: it hinders only those who change the table itself.
    fn of(mode: &str) -> Option<Self> {
        match mode {
            "RowShareLock" | "RowExclusiveLock" => Some(Self::Rows),
            "ShareLock" | "ShareRowExclusiveLock" | "ExclusiveLock" => Some(Self::Writers),
            "AccessExclusiveLock" => Some(Self::All),
            _ => None,
        }
    }
}

/// Runs the statements for the gateway of this name, each alone and by the extended protocol, which lets
/// none of them smuggle in a second one. `within`: the time for all, [`REHEARSAL_WITHIN`].
///
/// # Errors
/// [`StoreError::Statement`]: one was refused, waited too long for a lock, or took too long;
/// [`StoreError::NotOwner`], or another of the connection.
pub async fn rehearse(
    options: &ConnectOptions,
    gateway: &str,
    statements: &[Statement],
    within: Duration,
) -> Result<Rehearsal, StoreError> {
    let target = options.target()?;
    let (client, onlooker) = (single(&target).await?, single(&target).await?);
    let cancel = client.cancel_token();
    let deadline = Instant::now() + within;
    let session = AtomicI32::new(0);
    let desk = Desk { client, place: target.place.clone(), within, deadline, session: &session };
    let why = tokio::select! {
        done = tokio::time::timeout(within, desk.rehearse(gateway, statements)) => match done {
            Ok(done) => {
                desk.leave().await;
                return done;
            }
            Err(_) => format!("the statements took longer than {} s", within.as_secs()),
        },
        table = locked_for_long(&onlooker, &session) => format!(
            "table {table} was locked for {} s, and other sessions have to wait for it: rehearse these \
             statements on a copy of the database",
            LOCKED_WITHIN.as_secs()
        ),
    };
    end(cancel, &target).await;
    Err(StoreError::Statement { line: None, why })
}

/// Waits until the session has held a lock for [`LOCKED_WITHIN`] that keeps writers or readers waiting.
/// Returns the table. An onlooker that cannot look waits for ever.
async fn locked_for_long(onlooker: &Client, session: &AtomicI32) -> String {
    let mut since: BTreeMap<String, Instant> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let pid = session.load(Ordering::Relaxed);
        let locks = if pid == 0 { Vec::new() } else { locks_of(onlooker, pid).await };
        let strong = locks.into_iter().filter(|lock| lock.mode > LockMode::Rows);
        let strong: BTreeSet<String> = strong.map(|lock| lock.table).collect();
        since.retain(|table, _| strong.contains(table));
        for table in strong {
            let at = *since.entry(table.clone()).or_insert_with(Instant::now);
            if at.elapsed() >= LOCKED_WITHIN {
                return table;
            }
        }
    }
}

async fn locks_of(onlooker: &Client, pid: i32) -> Vec<HeldLock> {
    let rows = onlooker.query_typed(LOCKS, &[(&pid, Type::INT4)]).await.unwrap_or_default();
    held(&rows).unwrap_or_default()
}

/// The locks of a session on tables of the control plane.
const LOCKS: &str = "select case n.nspname when 'public' then c.relname::text \
        else n.nspname || '.' || c.relname end, l.mode from pg_locks l \
    join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace \
    where l.pid = $1 and l.locktype = 'relation' and l.granted \
        and c.relkind in ('r', 'p', 'm', 'v') and n.nspname !~ '^pg_' \
        and n.nspname not in ('information_schema', 'gatepost') \
    order by 1";

/// The strongest lock of each table.
fn held(rows: &[Row]) -> Result<Vec<HeldLock>, StoreError> {
    let mut locks: Vec<HeldLock> = Vec::new();
    for row in rows {
        let columns = Columns::of(row, DOING);
        let (table, mode): (String, String) = (columns.get(0)?, columns.get(1)?);
        let Some(mode) = LockMode::of(&mode) else { continue };
        match locks.last_mut().filter(|last| last.table == table) {
            Some(last) => last.mode = last.mode.max(mode),
            None => locks.push(HeldLock { table, mode }),
        }
    }
    Ok(locks)
}

/// Ends what still runs. The connection closes with its client, and with it the transaction.
async fn end(cancel: CancelToken, target: &Target) {
    let cancelling = cancel.cancel_query(target.tls.clone());
    let _ = tokio::time::timeout(Duration::from_secs(5), cancelling).await;
}

struct Desk<'a> {
    client: Client,
    place: Place,
    /// The time for all statements, and its end.
    within: Duration,
    deadline: Instant,
    /// The server's process, once the statements run; 0 before.
    session: &'a AtomicI32,
}

impl Desk<'_> {
    async fn rehearse(
        &self,
        gateway: &str,
        statements: &[Statement],
    ) -> Result<Rehearsal, StoreError> {
        self.run("begin isolation level repeatable read").await?;
        self.limits().await?;
        let before = match self.bind(gateway).await? {
            true => Some(self.read().await?),
            false => None,
        };
        self.run("rollback").await?;
        let started = Instant::now();
        // As the role and the database have it, not as our own commands need it.
        self.run("begin isolation level repeatable read; reset search_path").await?;
        self.session.store(self.pid().await?, Ordering::Relaxed);
        let mut unchanged = Vec::new();
        for (number, Statement { line, text, is_change }) in (1..).zip(statements) {
            self.limits().await?;
            let changed = self.statement_at(Some(*line), text).await?;
            if *is_change && changed == Some(0) {
                unchanged.push(Unchanged { number, line: *line, text: text.clone() });
            }
        }
        self.limits().await?;
        // What a commit would check.
        self.statement_at(None, "set constraints all immediate").await?;
        self.run(
            "reset session authorization; reset role; set local search_path = pg_catalog, pg_temp",
        )
        .await?;
        let locks = self.locks().await?;
        if !self.bind(gateway).await? {
            return Err(StoreError::GatewayUnknown {
                message: format!("there is no gateway {gateway} after the statements"),
                hint: "correct gateway.name".to_owned(),
            });
        }
        let after = self.read().await?;
        self.run(&format!("set local statement_timeout = {INEFFECTIVE_WITHIN_MS}")).await?;
        // Nothing can follow in the transaction: its time may have run out.
        let ineffective = ineffective::read(&self.client).await;
        let ineffective = ineffective.map_err(|error| self.failed(error))??;
        self.leave().await;
        Ok(Rehearsal { before, after, locks, unchanged, ineffective, lasted: started.elapsed() })
    }

    async fn run(&self, statement: &str) -> Result<(), StoreError> {
        self.client.batch_execute(statement).await.map_err(|error| self.failed(error))
    }

    /// Before each statement anew: a statement may have set others.
    async fn limits(&self) -> Result<(), StoreError> {
        let left = self.deadline.saturating_duration_since(Instant::now()).as_millis().max(1);
        self.run(&format!(
            "set local lock_timeout = {LOCK_TIMEOUT_MS}; set local statement_timeout = {left}; \
             set local idle_in_transaction_session_timeout = {left}"
        ))
        .await
    }

    /// Returns how many rows it changed, or found.
    async fn statement_at(
        &self,
        line: Option<usize>,
        text: &str,
    ) -> Result<Option<u64>, StoreError> {
        let refused = |error: tokio_postgres::Error| match server_error(&error) {
            Some(server) => StoreError::Statement { line, why: self.refusal(server) },
            None => self.failed(error),
        };
        let none = std::iter::empty::<(i32, Type)>();
        let rows = self.client.query_typed_raw(text, none).await.map_err(refused)?;
        let mut rows = std::pin::pin!(rows);
        while rows.try_next().await.map_err(refused)?.is_some() {}
        Ok(rows.rows_affected())
    }

    /// Binds the role to the gateway until the rollback. `false`: there is no such gateway.
    async fn bind(&self, gateway: &str) -> Result<bool, StoreError> {
        let bind = "insert into gatepost.gateway_role as r (role_name, gateway_name, gateway_id) \
            select session_user, g.name, g.id from public.gateways g where g.name = $1 \
            on conflict (role_name) do update set gateway_name = excluded.gateway_name, \
                gateway_id = excluded.gateway_id returning 1";
        let name: [(&(dyn ToSql + Sync), Type); 1] = [(&gateway, Type::TEXT)];
        let rows = self.client.query_typed(bind, &name).await;
        Ok(!rows.map_err(|error| self.failed(error))?.is_empty())
    }

    async fn read(&self) -> Result<SnapshotRows, StoreError> {
        let caller = Caller { client: &self.client, token: None };
        let read = snapshot::read(caller, "", "").await;
        Ok(read.map_err(|error| self.failed(error))??.0)
    }

    /// Of the server's process, which behind a pool is one for each transaction.
    async fn pid(&self) -> Result<i32, StoreError> {
        let row = self.client.query_typed_one("select pg_backend_pid()", &[]).await;
        Columns::of(&row.map_err(|error| self.failed(error))?, DOING).get(0)
    }

    async fn locks(&self) -> Result<Vec<HeldLock>, StoreError> {
        let pid = self.session.load(Ordering::Relaxed);
        let rows = self.client.query_typed(LOCKS, &[(&pid, Type::INT4)]).await;
        held(&rows.map_err(|error| self.failed(error))?)
    }

    /// Takes back what outlives a transaction, in one message: behind a pool the next one may go to another
    /// session.
    async fn leave(&self) {
        let unlock = "rollback; select pg_catalog.pg_advisory_unlock_all()";
        // A connection that failed ends with its session.
        let _ = self.client.batch_execute(unlock).await;
    }

    fn failed(&self, error: tokio_postgres::Error) -> StoreError {
        let limits = ["55P03", "57014"];
        if let Some(server) = server_error(&error).filter(|it| limits.contains(&it.code().code())) {
            return StoreError::Statement { line: None, why: self.refusal(server) };
        }
        match StoreError::of(&self.place, DOING, error) {
            StoreError::NoRights { place, .. } => StoreError::NotOwner { place },
            error => error,
        }
    }

    /// The server's message about a refused statement, and the limit that ended it.
    fn refusal(&self, error: &DbError) -> String {
        let mut why = format!("{} ({})", error.message(), error.code().code());
        for more in [error.detail(), error.hint()].into_iter().flatten() {
            why = format!("{why}: {more}");
        }
        match error.code().code() {
            "55P03" => {
                format!("{why}: another transaction holds the lock, and a rehearsal waits for 1 s")
            }
            "57014" => {
                let secs = self.within.as_secs();
                format!("{why}: that is the end of the time for all statements, {secs} s")
            }
            _ => why,
        }
    }
}
