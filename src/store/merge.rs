//! Merges reports into the control plane's tables, in a statement of its own.

use tokio_postgres::Row;

use super::connect::single;
use super::decode::Columns;
use super::host::HOSTS_SINCE;
use super::refusal::Refusal;
use super::{ConnectOptions, Store, StoreError};

/// The result of merging the waiting reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Merged {
    pub refusals: Vec<Refusal>,
    /// One reason for each report that is lost because a table refused its content, but not other reports.
    pub lost: Vec<String>,
}

const DOING: &str = "merge the reports";

const TRYING: &str = "try a report";
const TRY: &str = "select gatepost.try_reports()";

impl Store {
    /// Merges this gateway's reports into `gateways`, `devices` and `audit_logs`, except for rows that
    /// another transaction holds: the next call merges these. Does nothing where the schema is of a
    /// version that writes reports at once.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn merge(&self) -> Result<Merged, StoreError> {
        if !self.has_schema(HOSTS_SINCE) {
            return Ok(Merged::default());
        }
        let lease = self.lease(DOING).await?;
        let query = "select why, since, lost from gatepost.merge()";
        let rows = self.within(DOING, lease.query_typed(query, &[])).await?;
        lease.done();
        merged(&rows)
    }

    /// Tries a report to each table, and takes it back. Returns why a table refuses it.
    ///
    /// # Errors
    /// The errors of [`Store::merge`].
    pub async fn try_reports(&self) -> Result<Vec<String>, StoreError> {
        let lease = self.lease(TRYING).await?;
        let row = self.within(TRYING, lease.query_typed_one(TRY, &[])).await?;
        lease.done();
        tried(&row)
    }
}

/// Decodes `why`, `since` and `lost`.
pub(super) fn merged(rows: &[Row]) -> Result<Merged, StoreError> {
    let mut merged = Merged::default();
    for row in rows {
        let columns = Columns::of(row, DOING);
        let why: String = columns.get(0)?;
        match columns.get(1)? {
            Some(since) => merged.refusals.push(Refusal { why: with_way_out(why), since }),
            None => {
                let lost = usize::try_from(columns.get::<i32>(2)?).unwrap_or_default();
                merged.lost.extend(std::iter::repeat_n(why, lost));
            }
        }
    }
    Ok(merged)
}

/// Like [`Store::try_reports`], as the owner of the database and for any gateway.
///
/// # Errors
/// Any [`StoreError`] of the connection or of the role's rights.
pub async fn try_reports(options: &ConnectOptions) -> Result<Vec<String>, StoreError> {
    let target = options.target()?;
    let client = single(&target).await?;
    let answer = client.query_typed_one(TRY, &[]).await;
    tried(&answer.map_err(|error| StoreError::of(&target.place, TRYING, error))?)
}

fn tried(row: &Row) -> Result<Vec<String>, StoreError> {
    let refusals: Vec<String> = Columns::of(row, TRYING).get(0)?;
    Ok(refusals.into_iter().map(with_way_out).collect())
}

/// The functions of the database name the GRANT that mends what a trigger lacks.
fn with_way_out(why: String) -> String {
    if why.contains("row-level security policy") && !why.contains("run `") {
        return format!("{why}: run `alter role gatepost_owner bypassrls` as a superuser");
    }
    why
}
