//! Runs statements in a transaction that is rolled back, and reads what a gateway would read after them.
//! For an owner of the database.

use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use tokio_postgres::error::DbError;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CancelToken, Client};

use super::connect::single;
use super::decode::Columns;
use super::error::{Place, StoreError, server_error};
use super::options::{ConnectOptions, Target};
use super::script::Statement;
use super::snapshot;
use super::token::Caller;
use super::untargeted;
use crate::model::SnapshotRows;

/// The statements and the reading after them take no longer.
pub const REHEARSAL_WITHIN: Duration = Duration::from_secs(30);
/// How long a statement waits for a lock: who waits for a lock keeps others waiting.
const LOCK_TIMEOUT_MS: u64 = 1_000;

const DOING: &str = "rehearse the statements";

/// What statements would do. Nothing of it was committed.
#[derive(Debug)]
pub struct Rehearsal {
    /// Without the statements; `None`: the gateway had no row.
    pub before: Option<SnapshotRows>,
    pub after: SnapshotRows,
    /// The tables that were locked, the strongest lock of each.
    pub locks: Vec<HeldLock>,
    /// Policies that decide nothing after the statements, because no target is named.
    pub untargeted: Vec<String>,
    /// From the first statement to the rollback.
    pub lasted: Duration,
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
    let client = single(&target).await?;
    let cancel = client.cancel_token();
    let deadline = Instant::now() + within;
    let desk = Desk { client, place: target.place.clone(), within, deadline };
    match tokio::time::timeout(within, desk.rehearse(gateway, statements)).await {
        Ok(done) => done,
        Err(_) => {
            end(cancel, &target).await;
            let why = format!("the statements took longer than {} s", within.as_secs());
            Err(StoreError::Statement { line: None, why })
        }
    }
}

/// Ends what still runs. The connection closes with its client, and with it the transaction.
async fn end(cancel: CancelToken, target: &Target) {
    let cancelling = cancel.cancel_query(target.tls.clone());
    let _ = tokio::time::timeout(Duration::from_secs(5), cancelling).await;
}

struct Desk {
    client: Client,
    place: Place,
    /// The time for all statements, and its end.
    within: Duration,
    deadline: Instant,
}

impl Desk {
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
        for statement in statements {
            self.limits().await?;
            self.statement_at(Some(statement.line), &statement.text).await?;
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
        let untargeted = untargeted::read(&self.client).await;
        let untargeted = untargeted.map_err(|error| self.failed(error))??;
        self.run("rollback").await?;
        Ok(Rehearsal { before, after, locks, untargeted, lasted: started.elapsed() })
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

    async fn statement_at(&self, line: Option<usize>, text: &str) -> Result<(), StoreError> {
        let refused = |error: tokio_postgres::Error| match server_error(&error) {
            Some(server) => StoreError::Statement { line, why: self.refusal(server) },
            None => self.failed(error),
        };
        let none = std::iter::empty::<(i32, Type)>();
        let rows = self.client.query_typed_raw(text, none).await.map_err(refused)?;
        let mut rows = std::pin::pin!(rows);
        while rows.try_next().await.map_err(refused)?.is_some() {}
        Ok(())
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

    async fn locks(&self) -> Result<Vec<HeldLock>, StoreError> {
        let query = "select case n.nspname when 'public' then c.relname::text \
                else n.nspname || '.' || c.relname end, l.mode from pg_locks l \
            join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace \
            where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.granted \
                and c.relkind in ('r', 'p', 'm', 'v') and n.nspname !~ '^pg_' \
                and n.nspname not in ('information_schema', 'gatepost') \
            order by 1";
        let rows = self.client.query_typed(query, &[]).await.map_err(|error| self.failed(error))?;
        let mut locks: Vec<HeldLock> = Vec::new();
        for row in &rows {
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

    /// What the server says of a statement that it refuses, and which limit ended it.
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
