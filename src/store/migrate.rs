//! Brings a database to the schema that this version needs. Safe to repeat, next to a running control
//! plane, and on tables with rows.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;

use super::connect::{RIGHTS, single};
use super::error::{Place, StoreError, server_error};
use super::options::ConnectOptions;
use crate::backoff::Backoff;

mod embedded;
mod failure;
mod repair;
mod unmigrate;

use embedded::HISTORY;
use failure::{failed, of, words};
pub use unmigrate::{Unmigration, unmigrate, unmigration};

/// The schema version that this version's `gatepost migrate` makes.
pub const SCHEMA_VERSION: i32 = 29;

/// The oldest schema version that this agent follows. It says that the schema is to be migrated.
pub(super) const OLDEST_SCHEMA: i32 = 10;

const PREPARE: &str = include_str!("../../migrations/prepare.sql");
const COMPARE: &str = include_str!("../../migrations/compare.sql");
const INDEXES: &str = include_str!("../../migrations/indexes.sql");
const ACCESS: &str = include_str!("../../migrations/access.sql");
const TRIGGERS: &str = include_str!("../../migrations/triggers.sql");

/// Indexes of earlier versions, to be dropped: they depend on the type of a column.
const FORMER_INDEXES: [&str; 2] = ["gatepost_peers_by_gateway", "gatepost_allocations_by_host"];

/// Attempts to get locks that a busy control plane holds: about a minute in all.
const TRIES: usize = 12;

/// One migration, or one of the files that run at each migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// The file's name: `V2__feed`, `triggers`.
    pub name: String,
    pub sql: String,
}

/// Receives progress messages.
pub type Telling = dyn Fn(&str) + Sync;

/// Applies and returns what is missing.
///
/// # Errors
/// [`StoreError::Differs`]: existing tables differ from what gatepost reads; nothing was changed.
/// [`StoreError::Migration`]: a step failed, and left no change.
pub async fn migrate(options: &ConnectOptions) -> Result<Vec<Migration>, StoreError> {
    migrate_telling(options, &|_| ()).await
}

/// Like [`migrate`]. `tells` gets each part before it begins: some take minutes in a large database.
///
/// # Errors
/// The errors of [`migrate`].
pub async fn migrate_telling(
    options: &ConnectOptions,
    tells: &Telling,
) -> Result<Vec<Migration>, StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    let mut turns = Turns::new();
    begin(&client).await.map_err(|error| of(&target.place, error))?;
    let alone = single(&target).await?;
    tells("waiting for other migrations of this database");
    wait_for_others(&client, &alone).await.map_err(|error| of(&target.place, error))?;
    let missing = missing(&mut client).await.map_err(|error| of(&target.place, error))?;
    loop {
        match attempt(&mut client, &target.place, tells).await {
            Err(error) => turns.wait(error, tells).await?,
            Ok(()) => return Ok(missing),
        }
    }
}

/// Attempts at what needs locks that a busy control plane holds.
struct Turns {
    tries: usize,
    backoff: Backoff,
}

impl Turns {
    fn new() -> Self {
        Self { tries: 0, backoff: Backoff::new(fastrand::u64(..)) }
    }

    /// Waits before the next attempt, or returns the error if another would not help.
    async fn wait(&mut self, error: StoreError, tells: &Telling) -> Result<(), StoreError> {
        self.tries += 1;
        if self.tries >= TRIES || !is_contention(&error) {
            return Err(error);
        }
        let (tries, wait): (_, Duration) = (self.tries, self.backoff.next_wait());
        tracing::info!(tries, ?wait, %error, "a table is in use, trying again in {wait:?}: {error}");
        tells(&format!("a table is in use, trying again in {wait:.1?}: {error}"));
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The migrations that [`migrate`] would apply. Changes nothing.
///
/// # Errors
/// The errors of [`migrate`].
pub async fn pending(options: &ConnectOptions) -> Result<Vec<Migration>, StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    begin(&client).await.map_err(|error| of(&target.place, error))?;
    compare(&mut client, &target.place).await?;
    missing(&mut client).await.map_err(|error| of(&target.place, error))
}

/// The publications that publish all tables, those of Gatepost too: a subscriber without these stops.
///
/// # Errors
/// Any [`StoreError`] of the connection.
pub async fn publications_of_all_tables(
    options: &ConnectOptions,
) -> Result<Vec<String>, StoreError> {
    let target = options.target()?;
    let query = "select pubname::text from pg_catalog.pg_publication where puballtables order by 1";
    let rows = single(&target).await?.query_typed(query, &[]).await;
    let rows = rows.map_err(|error| of(&target.place, error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn attempt(client: &mut Client, place: &Place, tells: &Telling) -> Result<(), StoreError> {
    tells("comparing the tables");
    compare(client, place).await?;
    at_once(client, PREPARE).await.map_err(|error| failed(place, "prepare", error))?;
    repair::repair(client, place).await?;
    tells("applying migrations");
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    runner.run_async(client).await.map_err(|error| StoreError::Migration {
        name: "of the schema".into(),
        message: words(&error),
        source: Box::new(error),
    })?;
    tells("granting rights and creating triggers");
    at_once(client, ACCESS).await.map_err(|error| failed(place, "access", error))?;
    at_once(client, TRIGGERS).await.map_err(|error| failed(place, "triggers", error))?;
    ensure_indexes(client, tells).await.map_err(|error| failed(place, "indexes", error))
}

/// In one transaction.
async fn at_once(client: &mut Client, statements: &str) -> Result<(), tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(statements).await?;
    transaction.commit().await
}

/// Prepares the session.
async fn begin(client: &Client) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(
            "set client_min_messages = warning;
             select pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', 'public', (
                 select pg_catalog.quote_ident(n.nspname)
                 from pg_extension e join pg_namespace n on n.oid = e.extnamespace
                 where e.extname = 'citext' and n.nspname <> 'public'
             )), false)",
        )
        .await
}

/// Allows one migration at a time for each database, for as long as `alone` is connected: that session
/// locks a row that only the schema's owner may lock. Before the first migration there is none, and no
/// login of a gateway that could hold an advisory lock.
async fn wait_for_others(client: &Client, alone: &Client) -> Result<(), tokio_postgres::Error> {
    let query = format!("select to_regclass('{HISTORY}') is not null");
    let waits = if client.query_typed_one(&query, &[]).await?.get(0) {
        format!("begin; select from {HISTORY} order by version limit 1 for update")
    } else {
        "select pg_catalog.pg_advisory_lock(pg_catalog.hashtext('gatepost.migrate'))".to_owned()
    };
    alone.batch_execute("set idle_in_transaction_session_timeout = 0").await?;
    alone.batch_execute(&waits).await
}

/// Compares existing tables with those that the first migration would create. Sets a `lock_timeout`, so
/// that nothing queues for long behind this session.
async fn compare(client: &mut Client, place: &Place) -> Result<(), StoreError> {
    let runner = embedded::migrations::runner();
    let control_plane = runner.get_migrations().iter().find(|migration| migration.version() == 1);
    let wanted = control_plane.and_then(|migration| migration.sql()).unwrap_or_default();
    let differences = async {
        client.batch_execute("set lock_timeout = '2s'").await?;
        let transaction = client.transaction().await?;
        transaction
            .batch_execute(
                "create schema gatepost_wanted;
                 select pg_catalog.set_config('search_path',
                     'gatepost_wanted, ' || pg_catalog.current_setting('search_path'), true)",
            )
            .await?;
        transaction.batch_execute(wanted).await?;
        transaction.batch_execute(HAS_ROWS).await?;
        let rows = transaction.query_typed(COMPARE, &[]).await?;
        transaction.rollback().await?;
        Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>())
    };
    match differences.await {
        Ok(differences) if differences.is_empty() => Ok(()),
        Ok(differences) => Err(StoreError::Differs(differences)),
        Err(error) => Err(failed(place, "compare", error)),
    }
}

/// For COMPARE. What the migrating role may not see counts as empty.
const HAS_ROWS: &str = "
    create function gatepost_wanted.has_rows(relation regclass) returns boolean
    language plpgsql strict as $$
    declare
        found boolean;
    begin
        execute format('select exists (select from %s)', relation) into found;
        return found;
    exception when insufficient_privilege then
        return false;
    end $$";

/// Migrations that are not in the history, in order, and the other missing parts.
async fn missing(client: &mut Client) -> Result<Vec<Migration>, tokio_postgres::Error> {
    let around = |name: &str, sql: &str| Migration { name: name.into(), sql: sql.into() };
    let known = client
        .query_typed_one("select to_regclass('gatepost.schema_history') is not null", &[])
        .await?;
    let applied: Vec<i32> = if known.get(0) {
        let query = format!("select version from {HISTORY}");
        client.query_typed(&query, &[]).await?.iter().map(|row| row.get(0)).collect()
    } else {
        Vec::new()
    };
    let mut missing: Vec<_> = embedded::migrations::runner()
        .get_migrations()
        .iter()
        .filter(|migration| !applied.contains(&(migration.version())))
        .map(|migration| (migration.version(), migration.to_string(), migration.sql()))
        .map(|(version, name, sql)| (version, name, sql.unwrap_or_default().to_owned()))
        .collect();
    missing.sort_unstable();
    let mut all = Vec::new();
    let rights_are_wrong = !client.query_typed(RIGHTS, &[]).await?.is_empty();
    // Without its roles and rights, the schema cannot be compared.
    let lost =
        if rights_are_wrong { String::new() } else { repair::lost(client, &applied).await? };
    if applied.is_empty() || rights_are_wrong {
        all.push(around("prepare", PREPARE));
    }
    if !lost.is_empty() {
        all.push(around("repair", &lost));
    }
    let watched = !rights_are_wrong
        && lost.is_empty()
        && !missing.iter().any(|(version, ..)| *version == SCHEMA_VERSION);
    all.extend(missing.into_iter().map(|(_, name, sql)| Migration { name, sql }));
    let query = "select gatepost.unwatched() <> '{}'";
    if !watched || client.query_typed_one(query, &[]).await?.get(0) {
        all.extend([around("access", ACCESS), around("triggers", TRIGGERS)]);
    }
    let mut indexes = String::new();
    for index in Index::all() {
        if index.state(client).await? != IndexState::Valid {
            indexes.push_str(index.statement);
        }
    }
    for drop in former_indexes(client).await? {
        indexes.push_str(&drop);
    }
    if !indexes.is_empty() {
        all.push(around("indexes", &indexes));
    }
    Ok(all)
}

/// One of our indexes.
struct Index {
    name: &'static str,
    /// With its schema.
    table: &'static str,
    /// Creates it.
    statement: &'static str,
}

#[derive(PartialEq, Eq)]
enum IndexState {
    Missing,
    Valid,
    /// Its build was interrupted, or it belongs to a table that had this name before.
    Stray,
}

impl Index {
    fn all() -> impl Iterator<Item = Self> {
        let after = |statement: &'static str, word: &str| {
            let mut words = statement.split_whitespace().skip_while(move |it| *it != word);
            words.nth(1).unwrap_or_default()
        };
        let statements = INDEXES.split_inclusive(';').filter(|it| it.contains("create index"));
        statements.map(move |statement| Self {
            name: after(statement, "exists"),
            table: after(statement, "on"),
            statement,
        })
    }

    async fn state(&self, client: &Client) -> Result<IndexState, tokio_postgres::Error> {
        let query = "select i.indisvalid and i.indrelid = to_regclass($2) from pg_index i
                     where i.indexrelid = to_regclass('public.' || $1)";
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&self.name, Type::TEXT), (&self.table, Type::TEXT)];
        let found = client.query_typed(query, &parameters).await?;
        Ok(match found.first().map(|row| row.get(0)) {
            None => IndexState::Missing,
            Some(true) => IndexState::Valid,
            Some(false) => IndexState::Stray,
        })
    }
}

/// Builds indexes without blocking writers, which is impossible in a transaction.
async fn ensure_indexes(client: &Client, tells: &Telling) -> Result<(), tokio_postgres::Error> {
    // The build waits for writers, but blocks none.
    client.batch_execute("set lock_timeout = '1min'").await?;
    for index in Index::all() {
        let state = index.state(client).await?;
        if state == IndexState::Stray {
            client.batch_execute(&format!("drop index concurrently public.{}", index.name)).await?;
        }
        if state != IndexState::Valid {
            tells(&format!(
                "building index {} of {}, while writers go on",
                index.name, index.table
            ));
            match client.batch_execute(index.statement).await {
                // Agents name what is missing. What comes back is indexed by the next migration.
                Err(error) if is_gone(&error) => {
                    tells(&format!("no index {}: {error}", index.name))
                }
                built => built?,
            }
        }
    }
    for drop in former_indexes(client).await? {
        client.batch_execute(&drop).await?;
    }
    Ok(())
}

/// A table or a column is not there.
fn is_gone(error: &tokio_postgres::Error) -> bool {
    let gone = [SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN];
    error.code().is_some_and(|code| gone.contains(code))
}

/// Statements that drop the indexes of earlier versions that are still there.
async fn former_indexes(client: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let mut drops = Vec::new();
    for name in FORMER_INDEXES {
        let query = "select to_regclass('public.' || $1) is not null";
        let found = client.query_typed_one(query, &[(&name, Type::TEXT)]).await?;
        if found.get(0) {
            drops.push(format!("drop index concurrently if exists public.{name};\n"));
        }
    }
    Ok(drops)
}

fn is_contention(error: &StoreError) -> bool {
    server_error(error).is_some_and(|error| {
        [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED].contains(error.code())
            // Two migrations of one cluster alter the same role.
            || error.message().starts_with("tuple concurrently")
    })
}
