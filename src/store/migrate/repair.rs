//! Makes objects of schema gatepost again that were lost: functions, tables, views, types.
//!
//! The migrations that were applied are applied once more, to an empty schema of that name, in a
//! transaction. What they make there is compared with what is there, and moved where it is missing.

use tokio_postgres::{Client, Transaction};

use super::embedded::{self, HISTORY};
use super::failure::failed;
use crate::store::error::{Place, StoreError};

const LOST: &str = include_str!("../../../migrations/lost.sql");
const REPAIR: &str = include_str!("../../../migrations/repair.sql");

/// The result of a comparison.
struct Lost {
    objects: Vec<String>,
    /// The flaws that only an operator can mend, and how.
    broken: Vec<String>,
}

/// Makes lost objects again. Their rows are lost: agents read everything, and gateways must be granted
/// again where the table of grants was lost.
///
/// # Errors
/// [`StoreError::Differs`]: a table of ours has lost a column, or the history of the migrations is gone.
pub(super) async fn repair(client: &mut Client, place: &Place) -> Result<(), StoreError> {
    let repaired = async {
        let applied = applied(client).await?;
        let transaction = client.transaction().await?;
        let lost = compare(&transaction, &applied).await?;
        if lost.broken.is_empty() && !lost.objects.is_empty() {
            transaction.batch_execute(REPAIR).await?;
            transaction.commit().await?;
        }
        Ok(lost)
    };
    let lost: Lost = repaired.await.map_err(|error| failed(place, "repair", error))?;
    for object in &lost.objects {
        tracing::warn!(object, "{object} was lost and is made again");
    }
    if lost.broken.is_empty() { Ok(()) } else { Err(StoreError::Differs(lost.broken)) }
}

/// The objects that [`repair`] would make again, as comments; empty: none.
pub(super) async fn lost(
    client: &mut Client,
    applied: &[i32],
) -> Result<String, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    let lost = compare(&transaction, applied).await?;
    Ok(lost.objects.iter().map(|object| format!("-- {object} was lost\n")).collect())
}

async fn applied(client: &Client) -> Result<Vec<i32>, tokio_postgres::Error> {
    let query = "select to_regclass('gatepost.schema_history') is not null";
    if !client.query_typed_one(query, &[]).await?.get::<_, bool>(0) {
        return Ok(Vec::new());
    }
    let query = format!("select version from {HISTORY}");
    Ok(client.query_typed(&query, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// Leaves schema gatepost_wanted behind, in the transaction.
async fn compare(
    transaction: &Transaction<'_>,
    applied: &[i32],
) -> Result<Lost, tokio_postgres::Error> {
    if applied.is_empty() {
        let query = "select to_regclass('gatepost.state') is not null";
        let orphaned = transaction.query_typed_one(query, &[]).await?.get::<_, bool>(0);
        let broken = orphaned.then(|| {
            "table gatepost.schema_history is missing: run `drop schema gatepost cascade`, then `gatepost \
             migrate` and, for each gateway, `gatepost grant`"
                .to_owned()
        });
        return Ok(Lost { objects: Vec::new(), broken: broken.into_iter().collect() });
    }
    transaction
        .batch_execute(
            // They may name a column that is gone: then agents name it.
            "set local check_function_bodies = off;
             alter schema gatepost rename to gatepost_present;
             create schema gatepost authorization gatepost_owner;
             create table gatepost.schema_history (like gatepost_present.schema_history)",
        )
        .await?;
    let runner = embedded::migrations::runner();
    let mut migrations: Vec<_> = runner.get_migrations().iter().collect();
    migrations.sort_unstable_by_key(|migration| migration.version());
    for migration in migrations {
        // The first makes the control plane's tables.
        if migration.version() > 1 && applied.contains(&migration.version()) {
            transaction.batch_execute(migration.sql().unwrap_or_default()).await?;
        }
    }
    transaction
        .batch_execute(
            "set local search_path = pg_catalog, pg_temp;
             alter schema gatepost rename to gatepost_wanted;
             alter schema gatepost_present rename to gatepost",
        )
        .await?;
    let mut lost = Lost { objects: Vec::new(), broken: Vec::new() };
    for row in transaction.query_typed(LOST, &[]).await? {
        let to = if row.get(1) { &mut lost.objects } else { &mut lost.broken };
        to.push(row.get(0));
    }
    Ok(lost)
}
