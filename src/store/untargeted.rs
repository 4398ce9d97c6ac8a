//! Policies without a target. For an owner of the database: a gateway sees only
//! policies that concern it.

use tokio_postgres::Client;

use super::connect::single;
use super::decode::{Columns, Text};
use super::error::StoreError;
use super::options::ConnectOptions;

/// So many are named.
const FIRST: usize = 20;

const QUERY: &str = "select p.name::text from public.policies p \
    where p.is_active and p.deleted_at is null \
        and not exists (select from public.policy_targets t where t.policy_id = p.id) \
        and (p.full_tunnel \
            or exists (select from public.policy_destinations d where d.policy_id = p.id)) \
    order by 1 limit ";

/// The names of active policies that have destinations and no target, so that they decide nothing. The
/// first twenty.
///
/// # Errors
/// Any [`StoreError`] of the connection or of the role's rights.
pub async fn untargeted_policies(options: &ConnectOptions) -> Result<Vec<String>, StoreError> {
    const DOING: &str = "look for policies without a target";
    let target = options.target()?;
    let names = read(&single(&target).await?).await;
    names.map_err(|error| StoreError::of(&target.place, DOING, error))?
}

/// As [`untargeted_policies`], in the transaction of this connection.
pub(super) async fn read(
    client: &Client,
) -> Result<Result<Vec<String>, StoreError>, tokio_postgres::Error> {
    const DOING: &str = "look for policies without a target";
    let rows = client.query_typed(&format!("{QUERY}{FIRST}"), &[]).await?;
    let name = |row| Columns::of(row, DOING).get::<Text<'_>>(0).map(|text| text.0.into_owned());
    Ok(rows.iter().map(name).collect())
}
