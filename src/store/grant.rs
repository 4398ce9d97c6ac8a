//! Binds roles to gateways.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Transaction};

use super::connect::single;
use super::error::{Place, StoreError, server_error};
use super::options::{ConnectOptions, Password};

/// Whether [`grant`] may create the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateRole {
    No,
    /// If absent, with this password, which is sent as a SCRAM verifier, never in clear text. The role may
    /// have ten connections: an agent takes four, and commands beside it one each.
    IfAbsent(Option<Password>),
}

/// What [`grant`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub role_created: bool,
    /// The other gateway that this role was bound to before, if any.
    pub formerly: Option<String>,
    /// `false`: the gateway has no row yet. The role can create it by `gatepost enroll`.
    pub gateway_exists: bool,
}

const DOING: &str = "grant a gateway";

/// Attempts while other commands create or grant the same role.
const TRIES: usize = 10;

/// Binds `role` to `gateway`: from then on it acts for that gateway and no other. To be run as an
/// owner of the database, in one transaction: a failure leaves no role behind.
///
/// # Errors
/// [`StoreError::RoleUnknown`]: the role does not exist and was not to be created. Any other
/// [`StoreError`] of the connection or of the rights of the role that runs it.
pub async fn grant(
    options: &ConnectOptions,
    gateway: &str,
    role: &str,
    create: &CreateRole,
) -> Result<Granted, StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt(&mut client, &target.place, gateway, role, create).await {
            Err(error) if tries < TRIES && is_race(&error) => {}
            outcome => return outcome,
        }
    }
}

/// Lets a role that [`grant`] has bound change its gateway's row once more by [`Store::enroll`](super::Store::enroll).
///
/// # Errors
/// As [`grant`].
pub async fn allow_enrollment(options: &ConnectOptions, role: &str) -> Result<(), StoreError> {
    let target = options.target()?;
    let allow = "update gatepost.gateway_role set may_enroll = true where role_name = $1::name";
    let client = single(&target).await?;
    match client.query_typed(allow, &[(&role, Type::TEXT)]).await {
        Ok(_) => Ok(()),
        Err(error) => Err(StoreError::of(&target.place, DOING, error)),
    }
}

/// Another command creates or grants the same role at this moment. Its end was waited for.
fn is_race(error: &StoreError) -> bool {
    let races = [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_OBJECT];
    server_error(error).is_some_and(|error| {
        races.contains(error.code()) || error.message().starts_with("tuple concurrently")
    })
}

async fn attempt(
    client: &mut Client,
    place: &Place,
    gateway: &str,
    role: &str,
    create: &CreateRole,
) -> Result<Granted, StoreError> {
    let failed = |error| StoreError::of(place, DOING, error);
    let transaction = client.transaction().await.map_err(failed)?;
    // In a schema where any role may create functions, none of these must run as the caller.
    transaction
        .batch_execute("set local search_path = pg_catalog, pg_temp")
        .await
        .map_err(failed)?;
    let role_created = ensure_role(&transaction, place, role, create).await?;
    let member = transaction
        .query_typed_one(
            "select pg_has_role($1::name, 'gatepost_gateway', 'member'), \
             format('grant gatepost_gateway to %I', $1)",
            &[(&role, Type::TEXT)],
        )
        .await
        .map_err(|error| missing_is_unmigrated(place, error))?;
    if !member.get::<_, bool>(0) {
        transaction.batch_execute(member.get(1)).await.map_err(failed)?;
    }
    let bound = transaction
        .query_typed_one(
            "with former as (
                 select gateway_name from gatepost.gateway_role where role_name = $2::name
             ), bound as (
                 insert into gatepost.gateway_role as r (role_name, gateway_name, gateway_id)
                 values ($2::name, $1, (select id from public.gateways where name = $1))
                 on conflict (role_name) do update set gateway_name = excluded.gateway_name,
                     gateway_id = excluded.gateway_id, granted_at = now(),
                     may_enroll = r.may_enroll and (r.gateway_name, r.gateway_id)
                         is not distinct from (excluded.gateway_name, excluded.gateway_id)
                 returning r.gateway_id is not null as gateway_exists
             )
             select (select gateway_name from former where gateway_name <> $1),
                 (select gateway_exists from bound)",
            &[(&gateway, Type::TEXT), (&role, Type::TEXT)],
        )
        .await
        .map_err(|error| missing_is_unmigrated(place, error))?;
    transaction.commit().await.map_err(failed)?;
    Ok(Granted { role_created, formerly: bound.get(0), gateway_exists: bound.get(1) })
}

/// Returns whether the role was created.
async fn ensure_role(
    transaction: &Transaction<'_>,
    place: &Place,
    role: &str,
    create: &CreateRole,
) -> Result<bool, StoreError> {
    let failed = |error| StoreError::of(place, DOING, error);
    let password = match create {
        CreateRole::IfAbsent(Some(password)) => {
            Some(postgres_protocol::password::scram_sha_256(password.expose().as_bytes()))
        }
        CreateRole::No | CreateRole::IfAbsent(None) => None,
    };
    let row = transaction
        .query_typed_one(
            "select exists (select from pg_roles where rolname = $1::name),
                 format('create role %I login connection limit 10', $1) || coalesce(format(' password %L', $2), '')",
            &[(&role, Type::TEXT), (&password, Type::TEXT)],
        )
        .await
        .map_err(failed)?;
    if row.get(0) {
        return Ok(false);
    }
    if *create == CreateRole::No {
        return Err(StoreError::RoleUnknown { role: role.to_owned() });
    }
    transaction.batch_execute(row.get(1)).await.map_err(failed)?;
    Ok(true)
}

/// Before the migrations the group role does not exist, which makes `pg_has_role` fail, or, where another
/// database of the server has it, the table of the grants, or one of its columns.
fn missing_is_unmigrated(place: &Place, error: tokio_postgres::Error) -> StoreError {
    let missing =
        [SqlState::UNDEFINED_OBJECT, SqlState::UNDEFINED_TABLE, SqlState::UNDEFINED_COLUMN];
    if error.code().is_some_and(|code| missing.contains(code)) {
        return StoreError::Unmigrated { place: Box::new(place.clone()) };
    }
    StoreError::of(place, DOING, error)
}
