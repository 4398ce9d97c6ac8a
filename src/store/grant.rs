//! Binds roles to gateways.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use super::connect::single;
use super::error::{Place, StoreError, server_error};
use super::options::{ConnectOptions, Password};
use super::token::Token;

/// Whether [`grant`] may create the role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CreateRole {
    No,
    /// If absent, with this password, which is sent as a SCRAM verifier, never in clear text. The role may
    /// have ten connections: an agent takes four, and commands beside it one each.
    IfAbsent(Option<Password>),
}

/// The result of [`grant`].
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

/// The other gateway that `role` acts for, by its present name: [`grant`] would take the role from it.
///
/// # Errors
/// The errors of [`grant`].
pub async fn bound_elsewhere(
    options: &ConnectOptions,
    gateway: &str,
    role: &str,
) -> Result<Option<String>, StoreError> {
    let target = options.target()?;
    let bound = "select n.name from gatepost.gateway_role r
        left join public.gateways g on g.id = r.gateway_id
        cross join lateral (select coalesce(g.name::text, r.gateway_name::text) as name) n
        where r.role_name = $1::name and n.name <> $2";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&role, Type::TEXT), (&gateway, Type::TEXT)];
    let client = single(&target).await?;
    let rows = client.query_typed(bound, &parameters).await;
    let rows = rows.map_err(|error| missing_is_unmigrated(&target.place, error))?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Lets a role that [`grant`] has bound change its gateway's row once more by [`Store::enroll`](super::Store::enroll).
///
/// # Errors
/// The errors of [`grant`].
pub async fn allow_enrollment(options: &ConnectOptions, role: &str) -> Result<(), StoreError> {
    let target = options.target()?;
    let allow = "update gatepost.gateway_role set may_enroll = true where role_name = $1::name";
    let client = single(&target).await?;
    match client.query_typed(allow, &[(&role, Type::TEXT)]).await {
        Ok(_) => Ok(()),
        Err(error) => Err(StoreError::of(&target.place, DOING, error)),
    }
}

/// Lets `role` ring: see `gatepost bell`. To be run as an owner of the database. Returns whether the role
/// was created.
///
/// # Errors
/// The errors of [`grant`].
pub async fn grant_bell(
    options: &ConnectOptions,
    role: &str,
    create: &CreateRole,
) -> Result<bool, StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    let failed = |error| StoreError::of(&target.place, DOING, error);
    let transaction = client.transaction().await.map_err(failed)?;
    let created = ensure_role(&transaction, &target.place, role, create).await?;
    let member = "select pg_has_role($1::name, 'gatepost_bell', 'member'), \
                  format('grant gatepost_bell to %I', $1)";
    let member = transaction.query_typed_one(member, &[(&role, Type::TEXT)]).await;
    let member = member.map_err(|error| missing_is_unmigrated(&target.place, error))?;
    if !member.get::<_, bool>(0) {
        transaction.batch_execute(member.get(1)).await.map_err(failed)?;
    }
    log_in(&transaction, &target.place, role, "gatepost_bell").await?;
    transaction.commit().await.map_err(failed)?;
    Ok(created)
}

/// The result of [`grant_token`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantedToken {
    pub role_created: bool,
    /// Earlier tokens of the gateway that are still valid.
    pub others: i64,
}

/// Makes a token act for `gateway`, and lets `role`, if one is named, call with tokens: the role that the
/// gateways behind a pool log in as. The database keeps the token's SHA-256 alone. To be run as an owner of
/// the database.
///
/// # Errors
/// [`StoreError::GatewayUnknown`]: the gateway has no row. Else as [`grant`].
pub async fn grant_token(
    options: &ConnectOptions,
    gateway: &str,
    token: &Token,
    role: Option<&str>,
    create: &CreateRole,
) -> Result<GrantedToken, StoreError> {
    let target = options.target()?;
    let mut client = single(&target).await?;
    let failed = |error| StoreError::of(&target.place, DOING, error);
    let transaction = client.transaction().await.map_err(failed)?;
    let insert = "with bound as (
            insert into gatepost.gateway_token (digest, gateway_name, gateway_id)
            select $2, g.name, g.id from public.gateways g where g.name = $1 and g.deleted_at is null
            returning gateway_id
        )
        select (
            select count(*) from gatepost.gateway_token t
            where t.gateway_id = b.gateway_id and t.revoked_at is null
        )
        from bound b";
    let digest = token.digest();
    let bound = transaction
        .query_typed(insert, &[(&gateway, Type::TEXT), (&digest, Type::BYTEA)])
        .await
        .map_err(|error| missing_is_unmigrated(&target.place, error))?;
    let Some(bound) = bound.first() else {
        return Err(StoreError::GatewayUnknown {
            message: format!("there is no gateway named {gateway}"),
            hint: "run `gatepost enroll` first, with the database's owner in database.url".into(),
        });
    };
    let others = bound.get(0);
    let mut role_created = false;
    if let Some(role) = role {
        role_created = ensure_role(&transaction, &target.place, role, create).await?;
        let limit = if role_created { UNLIMITED } else { "" };
        let settings = format!("{limit}{}", pool_settings());
        let allow = "select format('grant gatepost_gateway to %1$I; ' || $2, $1)";
        let allow = transaction
            .query_typed_one(allow, &[(&role, Type::TEXT), (&settings, Type::TEXT)])
            .await
            .map_err(failed)?;
        transaction.batch_execute(allow.get(0)).await.map_err(failed)?;
        log_in(&transaction, &target.place, role, "gatepost_gateway").await?;
    }
    transaction.commit().await.map_err(failed)?;
    Ok(GrantedToken { role_created, others })
}

/// A pooler resets what a session has set to what its role has.
/// Each with its value, and with how `pg_settings` shows that.
pub(super) const POOL_SETTINGS: [(&str, &str, &str); 6] = [
    ("statement_timeout", "'35s'", "35000"),
    ("lock_timeout", "'500ms'", "500"),
    ("idle_in_transaction_session_timeout", "'60s'", "60000"),
    ("search_path", "pg_catalog, pg_temp", "pg_catalog, pg_temp"),
    ("default_transaction_isolation", "'read committed'", "read committed"),
    ("default_transaction_read_only", "off", "off"),
];

fn pool_settings() -> String {
    let set = |(name, value, _)| format!("alter role %1$I set {name} = {value}; ");
    POOL_SETTINGS.map(set).concat()
}

/// Of a role that was made for the pool: the pooler limits its connections.
const UNLIMITED: &str = "alter role %1$I connection limit -1; ";

/// Notes that `role` logs in for many, as a member of `group`, so that a migration can restore that.
///
/// # Errors
/// [`StoreError::GatewayUnknown`]: the role is bound to a gateway, or belongs to the other group. Such a
/// session may remember what those who share one must not believe.
async fn log_in(
    transaction: &Transaction<'_>,
    place: &Place,
    role: &str,
    group: &str,
) -> Result<(), StoreError> {
    let failed = |error| missing_is_unmigrated(place, error);
    let taken = "select exists (select from gatepost.gateway_role where role_name = $1::name) \
        or exists (select from gatepost.login where role_name = $1::name and member_of <> $2::name)";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&role, Type::TEXT), (&group, Type::TEXT)];
    let taken = transaction.query_typed_one(taken, &parameters).await.map_err(failed)?;
    if taken.get(0) {
        return Err(taken_role(role));
    }
    let note = "insert into gatepost.login (role_name, member_of) values ($1::name, $2::name) \
        on conflict do nothing";
    transaction.query_typed(note, &parameters).await.map_err(failed)?;
    Ok(())
}

fn taken_role(role: &str) -> StoreError {
    StoreError::GatewayUnknown {
        message: format!(
            "role {role} is already in use; a role serves one gateway, a pool of gateways or a bell"
        ),
        hint: "name another role, or one that does not exist, with --create".into(),
    }
}

/// Revokes the tokens of `gateway`, with `keep_newest` all but the last one granted. Returns how many.
///
/// # Errors
/// The errors of [`grant`].
pub async fn revoke_tokens(
    options: &ConnectOptions,
    gateway: &str,
    keep_newest: bool,
) -> Result<u64, StoreError> {
    let target = options.target()?;
    let client = single(&target).await?;
    // By its present name, or, if it is gone, by the one that it had.
    let revoke = "update gatepost.gateway_token k set revoked_at = now()
        where k.gateway_id = coalesce(
            (select g.id from public.gateways g where g.name = $1),
            (
                select t.gateway_id from gatepost.gateway_token t where t.gateway_name = $1
                order by t.granted_at desc limit 1
            )
        ) and k.revoked_at is null and not ($2 and k.digest = (
            select t.digest from gatepost.gateway_token t
            where t.gateway_id = k.gateway_id and t.revoked_at is null
            order by t.granted_at desc limit 1
        ))";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&gateway, Type::TEXT), (&keep_newest, Type::BOOL)];
    let revoked = client
        .query_typed(
            &format!("with r as ({revoke} returning 1) select count(*) from r"),
            &parameters,
        )
        .await;
    let rows = revoked.map_err(|error| missing_is_unmigrated(&target.place, error))?;
    let count: i64 = rows.first().map_or(0, |row| row.get(0));
    if count == 0 {
        return Err(StoreError::GatewayUnknown {
            message: format!("no gateway named {gateway} has a valid token to revoke"),
            hint: "see gatepost.gateway_token for the names".into(),
        });
    }
    Ok(u64::try_from(count).unwrap_or_default())
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
    let shared = "select exists (select from gatepost.login where role_name = $1::name)";
    let shared = transaction
        .query_typed_one(shared, &[(&role, Type::TEXT)])
        .await
        .map_err(|error| missing_is_unmigrated(place, error))?;
    if shared.get(0) {
        return Err(taken_role(role));
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
