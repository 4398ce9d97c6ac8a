//! Takes everything of Gatepost's out of a database again.

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use super::failure::{failed, of};
use super::{FORMER_INDEXES, Index, Turns, begin, embedded};
use crate::store::connect::single;
use crate::store::error::{Place, StoreError};
use crate::store::options::ConnectOptions;

const STATEMENTS: &str = include_str!("../../../migrations/unmigrate.sql");
const FOREIGN: &str = include_str!("../../../migrations/foreign.sql");
/// These lock a table of the control plane: each gets a transaction of its own.
const ALONE: [&str; 2] = ["drop trigger ", "drop index "];
const DROP_ROLE: &str = "drop role ";

/// The effects of [`unmigrate`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unmigration {
    /// In order; empty: nothing of Gatepost's is there.
    pub statements: Vec<String>,
    /// Gateways whose agents were connected in the last five minutes.
    pub gateways: Vec<String>,
    /// Roles that gateways log in as. They are kept, because other databases may use them.
    pub login_roles: Vec<String>,
}

/// Describes what [`unmigrate`] would do. Changes nothing.
///
/// # Errors
/// The errors of [`unmigrate`].
pub async fn unmigration(options: &ConnectOptions) -> Result<Unmigration, StoreError> {
    let target = options.target()?;
    let client = single(&target).await?;
    refuse_foreign(&client, &target.place).await?;
    describe(&client).await.map_err(|error| of(&target.place, error))
}

/// Drops triggers and indexes one by one, so that it never holds two tables of the control plane, then the
/// schema, the rights, and the three roles that [`migrate`](super::migrate) created, unless another database
/// uses them. Returns what it did, and why it kept a role that it meant to drop.
///
/// # Errors
/// [`StoreError::Migration`]: the schema has objects that no migration made, or something else depends on
/// one: nothing was changed. Or a table stayed in use: call it again.
pub async fn unmigrate(options: &ConnectOptions) -> Result<(Unmigration, Vec<String>), StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    begin(&client).await.map_err(|error| of(&target.place, error))?;
    refuse_foreign(&client, &target.place).await?;
    let found = describe(&client).await.map_err(|error| of(&target.place, error))?;
    let is_alone = |it: &&String| ALONE.iter().any(|start| it.starts_with(start));
    let alone = found.statements.iter().take_while(is_alone).count();
    let (alone, together) = found.statements.split_at(alone);
    for statement in alone.chunks(1) {
        in_turns(&mut client, &target.place, statement).await?;
    }
    let kept = in_turns(&mut client, &target.place, together).await?;
    Ok((found, kept))
}

/// The names of what the migrations make in schema gatepost, or comment on: they derive one function from
/// another.
fn made() -> Vec<String> {
    let mut made = vec!["schema_history".to_owned()];
    for migration in embedded::migrations::runner().get_migrations() {
        let words: Vec<&str> = migration.sql().unwrap_or_default().split_whitespace().collect();
        for window in words.windows(3) {
            let &[verb, kind, object] = window else { continue };
            let makes = ["create", "replace", "on"].contains(&verb)
                && ["table", "view", "function", "type"].contains(&kind);
            if let (true, Some(name)) = (makes, object.strip_prefix("gatepost.")) {
                made.push(name.split('(').next().unwrap_or_default().to_owned());
            }
        }
    }
    made
}

async fn refuse_foreign(client: &Client, place: &Place) -> Result<(), StoreError> {
    let found = async {
        client.batch_execute("set search_path = pg_catalog, pg_temp").await?;
        client.query_typed(FOREIGN, &[(&made(), Type::TEXT_ARRAY)]).await
    };
    let found = found.await.map_err(|error| of(place, error))?;
    if found.is_empty() {
        return Ok(());
    }
    let objects: Vec<String> = found.iter().map(|row| row.get(0)).collect();
    let message = format!(
        "Gatepost did not make these, and they are in schema gatepost or depend on it; nothing was \
         changed. Drop them or move them to another schema first:\n  {}",
        objects.join("\n  ")
    );
    Err(StoreError::Migration { name: "back".into(), source: message.clone().into(), message })
}

async fn describe(client: &Client) -> Result<Unmigration, tokio_postgres::Error> {
    client.batch_execute("set search_path = pg_catalog, pg_temp").await?;
    let indexes: Vec<&str> = Index::all().map(|index| index.name).chain(FORMER_INDEXES).collect();
    let first = async |query: &str| -> Result<Vec<String>, tokio_postgres::Error> {
        let rows = client.query_typed(query, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    let names: [(&(dyn ToSql + Sync), Type); 2] =
        [(&indexes, Type::TEXT_ARRAY), (&made(), Type::TEXT_ARRAY)];
    let rows = client.query_typed(STATEMENTS, &names).await?;
    let statements = rows.iter().map(|row| row.get(0)).collect();
    let mut found = Unmigration { statements, ..Unmigration::default() };
    let exists = async |table: &str| -> Result<bool, tokio_postgres::Error> {
        let query = "select to_regclass($1) is not null";
        Ok(client.query_typed_one(query, &[(&table, Type::TEXT)]).await?.get(0))
    };
    if exists("gatepost.gateway_role").await? {
        let roles = "select r.role_name::text from gatepost.gateway_role r
             join pg_roles p on p.rolname = r.role_name where not p.rolsuper order by 1";
        found.login_roles = first(roles).await?;
        if exists("gatepost.attached").await? {
            let gateways = "select distinct r.gateway_name from gatepost.gateway_role r
                 join gatepost.attached a using (gateway_id)
                 where a.at > now() - interval '5 minutes' order by 1";
            found.gateways = first(gateways).await?;
        }
    }
    Ok(found)
}

/// Runs these in one transaction, and again while it meets a lock.
async fn in_turns(
    client: &mut Client,
    place: &Place,
    statements: &[String],
) -> Result<Vec<String>, StoreError> {
    let mut turns = Turns::new();
    loop {
        match attempt(client, place, statements).await {
            Err(error) => turns.wait(error, &|_| ()).await?,
            outcome => return outcome,
        }
    }
}

/// Returns which roles were kept, and why.
async fn attempt(
    client: &mut Client,
    place: &Place,
    statements: &[String],
) -> Result<Vec<String>, StoreError> {
    let failed = |error| failed(place, "back", error);
    let mut transaction = client.transaction().await.map_err(failed)?;
    // Nothing queues for long behind this session.
    transaction.batch_execute("set local lock_timeout = '500ms'").await.map_err(failed)?;
    let mut kept = Vec::new();
    for statement in statements {
        let Some(role) = statement.strip_prefix(DROP_ROLE) else {
            transaction.batch_execute(statement).await.map_err(failed)?;
            continue;
        };
        let savepoint = transaction.savepoint("role").await.map_err(failed)?;
        match savepoint.batch_execute(statement).await {
            Ok(()) => savepoint.commit().await.map_err(failed)?,
            Err(error) => {
                let why =
                    error.as_db_error().map_or_else(|| error.to_string(), |it| it.to_string());
                kept.push(format!("{role}: {why}"));
                savepoint.rollback().await.map_err(failed)?;
            }
        }
    }
    transaction.commit().await.map_err(failed)?;
    Ok(kept)
}
