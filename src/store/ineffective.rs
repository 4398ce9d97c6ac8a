//! Rows that change nothing, although their author may expect it. For an owner of the database: a
//! gateway sees only what concerns it.

use std::fmt;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Row};

use super::connect::single;
use super::decode::{Columns, Text};
use super::error::StoreError;
use super::options::ConnectOptions;
use crate::model::policy::{Plain, Quoted};

const DOING: &str = "look for rows without effect";
/// How many of a kind are named.
const FIRST: usize = 20;

const POLICIES: &str = "select p.name::text, null::text from public.policies p \
    where p.is_active and p.deleted_at is null \
        and not exists (select from public.policy_targets t where t.policy_id = p.id) \
        and (p.full_tunnel \
            or exists (select from public.policy_destinations d where d.policy_id = p.id)) \
    order by 1 limit ";
/// Names `devices.public_key` as text: no other query of ours reads it, and a migration may take it away.
const KEYS: &str = "select u.username::text, d.name::text from public.devices d \
        join public.users u on u.id = d.user_id \
    where d.status = 'active' and d.deleted_at is null \
        and exists (select from public.wireguard_peers p \
            where p.device_id = d.id and p.deleted_at is null) \
        and to_jsonb(d) ->> 'public_key' <> all (select p.public_key from public.wireguard_peers p \
            where p.device_id = d.id and p.deleted_at is null) \
    order by 1, 2 limit ";

/// A row without effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ineffective {
    /// An active policy that has destinations and no target.
    Policy { name: String },
    /// An active device whose `public_key` is the key of none of its peers.
    DeviceKey { user: String, device: String },
}

/// The first twenty of each kind, ordered by name.
///
/// # Errors
/// Any [`StoreError`] of the connection or of the role's rights.
pub async fn ineffective_rows(options: &ConnectOptions) -> Result<Vec<Ineffective>, StoreError> {
    let target = options.target()?;
    let rows = read(&single(&target).await?).await;
    rows.map_err(|error| StoreError::of(&target.place, DOING, error))?
}

/// Like [`ineffective_rows`], in the transaction of this connection. What its `statement_timeout` ends is left
/// out, with what comes after it.
pub(super) async fn read(
    client: &Client,
) -> Result<Result<Vec<Ineffective>, StoreError>, tokio_postgres::Error> {
    let Some(policies) = rows_in_time(client, POLICIES).await? else { return Ok(Ok(Vec::new())) };
    let keys = rows_in_time(client, KEYS).await?.unwrap_or_default();
    Ok(policies.iter().map(policy).chain(keys.iter().map(device_key)).collect())
}

async fn rows_in_time(
    client: &Client,
    query: &str,
) -> Result<Option<Vec<Row>>, tokio_postgres::Error> {
    match client.query_typed(&format!("{query}{FIRST}"), &[]).await {
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => Ok(None),
        rows => rows.map(Some),
    }
}

fn policy(row: &Row) -> Result<Ineffective, StoreError> {
    Ok(Ineffective::Policy { name: text(row, 0)? })
}

fn device_key(row: &Row) -> Result<Ineffective, StoreError> {
    Ok(Ineffective::DeviceKey { user: text(row, 0)?, device: text(row, 1)? })
}

fn text(row: &Row, column: usize) -> Result<String, StoreError> {
    Columns::of(row, DOING).get::<Text<'_>>(column).map(|text| text.0.into_owned())
}

impl fmt::Display for Ineffective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy { name } => write!(
                f,
                "policy {} has destinations and no target, so it decides nothing: add a row to \
                 policy_targets",
                Quoted(name)
            ),
            Self::DeviceKey { user, device } => write!(
                f,
                "devices.public_key of {}/{} is the key of none of its peers, and gateways do not read \
                 it: write a changed key to wireguard_peers.public_key, too",
                Plain(user),
                Plain(device)
            ),
        }
    }
}
