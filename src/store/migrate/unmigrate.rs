//! Takes everything of Gatepost's out of a database again.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::{FORMER_INDEXES, Index, Turns, begin, failed, of};
use crate::store::connect::single;
use crate::store::error::{Place, StoreError};
use crate::store::options::ConnectOptions;

const STATEMENTS: &str = include_str!("../../../migrations/unmigrate.sql");
const DROP_ROLE: &str = "drop role ";

/// What [`unmigrate`] does.
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
/// Any [`StoreError`] of the connection.
pub async fn unmigration(options: &ConnectOptions) -> Result<Unmigration, StoreError> {
    let target = options.target()?;
    let client = single(&target).await?;
    describe(&client).await.map_err(|error| of(&target.place, error))
}

/// Drops triggers, indexes, rights and the schema, in one transaction, and the two roles that
/// [`migrate`](super::migrate) created, unless another database uses them. Returns what it did, and
/// why it kept a role that it meant to drop.
///
/// # Errors
/// [`StoreError::Migration`]: something else depends on an object of Gatepost's, or a table stayed in use.
/// Nothing was changed.
pub async fn unmigrate(options: &ConnectOptions) -> Result<(Unmigration, Vec<String>), StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    begin(&client).await.map_err(|error| of(&target.place, error))?;
    let mut turns = Turns::new();
    loop {
        match attempt(&mut client, &target.place).await {
            Err(error) => turns.wait(error).await?,
            outcome => return outcome,
        }
    }
}

async fn describe(client: &Client) -> Result<Unmigration, tokio_postgres::Error> {
    client.batch_execute("set search_path = pg_catalog, pg_temp").await?;
    let indexes: Vec<&str> = Index::all().map(|index| index.name).chain(FORMER_INDEXES).collect();
    let first = async |query: &str| -> Result<Vec<String>, tokio_postgres::Error> {
        let rows = client.query_typed(query, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    let rows = client.query_typed(STATEMENTS, &[(&indexes, Type::TEXT_ARRAY)]).await?;
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

async fn attempt(
    client: &mut Client,
    place: &Place,
) -> Result<(Unmigration, Vec<String>), StoreError> {
    let failed = |error| failed(place, "back", error);
    let found = describe(client).await.map_err(failed)?;
    let mut transaction = client.transaction().await.map_err(failed)?;
    // Nothing queues for long behind this session.
    transaction.batch_execute("set local lock_timeout = '500ms'").await.map_err(failed)?;
    let mut kept = Vec::new();
    for statement in &found.statements {
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
    Ok((found, kept))
}
