//! Checks how a stolen login can affect others, because the server or PUBLIC allows it, or because it has changed
//! its role. Gatepost takes none of these rights away: other programs may need them.

use tokio_postgres::types::{ToSql, Type};

use super::connect::single;
use super::decode::Columns;
use super::grant::POOL_SETTINGS;
use super::{ConnectOptions, Store, StoreError};

/// What PUBLIC may do, and so a role of many gateways.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PublicRights {
    pub database: String,
    /// The role may fill temporary tables (`TEMP`).
    pub makes_temporary_tables: bool,
    /// It may cancel statements and end sessions of its own (`pg_cancel_backend`, `pg_terminate_backend`).
    pub ends_sessions: bool,
}

/// The rights that the server gives a role of many gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRole {
    pub role: String,
    pub public: PublicRights,
    /// The settings that are not 0 and let the server log parameters, with their values: tokens are parameters.
    pub logged_parameters: Vec<String>,
    /// Statements are logged.
    pub logs_statements: bool,
    /// Settings of the role that differ from those that [`grant_token`](super::grant_token) gave it, each with
    /// the value that it should have.
    pub spoiled: Vec<String>,
}

const DOING: &str = "ask what the role may";

const PUBLIC_RIGHTS: &str = "select pg_catalog.current_database()::pg_catalog.text,
    pg_catalog.has_database_privilege($1::pg_catalog.name, pg_catalog.current_database(), 'TEMP'),
    exists (select from pg_catalog.pg_proc p
        where p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace
            and p.proname in ('pg_cancel_backend', 'pg_terminate_backend')
            and pg_catalog.has_function_privilege($1::pg_catalog.name, p.oid, 'EXECUTE'))";

const LOGGING: &str = "select session_user::pg_catalog.text,
    array(select s.name || ' = ' || s.setting from pg_catalog.pg_settings s
        where s.name in ('log_parameter_max_length', 'log_parameter_max_length_on_error')
            and s.setting <> '0' order by s.name),
    pg_catalog.current_setting('log_statement') <> 'none'
        or pg_catalog.current_setting('log_min_duration_statement') <> '-1'
        or pg_catalog.current_setting('log_min_duration_sample') <> '-1'
        or pg_catalog.current_setting('log_transaction_sample_rate') <> '0'";

/// What a session has after `RESET ALL`, whatever this one has set.
const SETTINGS: &str = "select s.name, coalesce(s.reset_val, '') from pg_catalog.pg_settings s \
    where s.name = any ($1)";

/// The schemas in which the control plane's triggers look for names, as `gatepost.path_of_database()` says,
/// and in which this role may create something.
const WRITABLE: &str = "select array(
    select n.nspname::pg_catalog.text from pg_catalog.pg_namespace n
    where pg_catalog.has_schema_privilege(session_user, n.oid, 'CREATE')
        and n.nspname in (
            select pg_catalog.btrim(p, ' \"')
            from pg_catalog.unnest(pg_catalog.string_to_array(coalesce((
                select pg_catalog.substr(s, 13)
                from pg_catalog.pg_db_role_setting r
                cross join pg_catalog.unnest(r.setconfig) s
                where r.setrole = 0 and s like 'search\\_path=%'
                    and r.setdatabase in (
                        0, (select d.oid from pg_catalog.pg_database d
                            where d.datname = pg_catalog.current_database())
                    )
                order by r.setdatabase = 0
                limit 1
            ), 'public'), ',')) p
        )
    order by 1
)";

impl Store {
    /// The rights that the server gives this role; `None`: it is the role of one gateway.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection.
    pub async fn shared_role(&self) -> Result<Option<SharedRole>, StoreError> {
        if !self.is_pooled() {
            return Ok(None);
        }
        let lease = self.lease(DOING).await?;
        let logging = self.within(DOING, lease.query_typed_one(LOGGING, &[])).await?;
        let logging = Columns::of(&logging, DOING);
        let role: String = logging.get(0)?;
        let name: [(&(dyn ToSql + Sync), Type); 1] = [(&role, Type::TEXT)];
        let public = self.within(DOING, lease.query_typed_one(PUBLIC_RIGHTS, &name)).await?;
        let names: Vec<&str> = POOL_SETTINGS.iter().map(|(name, ..)| *name).collect();
        let names: [(&(dyn ToSql + Sync), Type); 1] = [(&names, Type::TEXT_ARRAY)];
        let settings = self.within(DOING, lease.query_typed(SETTINGS, &names)).await?;
        lease.done();
        let mut spoiled = Vec::new();
        for row in &settings {
            let columns = Columns::of(row, DOING);
            spoiled.extend(spoiled_setting(columns.get(0)?, columns.get(1)?));
        }
        Ok(Some(SharedRole {
            role,
            public: public_rights(&Columns::of(&public, DOING))?,
            logged_parameters: logging.get(1)?,
            logs_statements: logging.get(2)?,
            spoiled,
        }))
    }

    /// The schemas in which this role may create something that reports, which are merged with the rights of
    /// `gatepost_owner`, could then call.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection.
    pub async fn writable_schemas(&self) -> Result<Vec<String>, StoreError> {
        let lease = self.lease(DOING).await?;
        let row = self.within(DOING, lease.query_typed_one(WRITABLE, &[])).await?;
        lease.done();
        Columns::of(&row, DOING).get(0)
    }
}

/// What PUBLIC may do, and so this role. To be asked as an owner of the database.
///
/// # Errors
/// Any [`StoreError`] of the connection.
pub async fn rights_of_public(
    options: &ConnectOptions,
    role: &str,
) -> Result<PublicRights, StoreError> {
    let target = options.target()?;
    let client = single(&target).await?;
    let asked = client.query_typed_one(PUBLIC_RIGHTS, &[(&role, Type::TEXT)]).await;
    let row = asked.map_err(|error| StoreError::of(&target.place, DOING, error))?;
    public_rights(&Columns::of(&row, DOING))
}

fn public_rights(columns: &Columns<'_>) -> Result<PublicRights, StoreError> {
    Ok(PublicRights {
        database: columns.get(0)?,
        makes_temporary_tables: columns.get(1)?,
        ends_sessions: columns.get(2)?,
    })
}

fn spoiled_setting(name: &str, value: &str) -> Option<String> {
    let (_, needed, shown) = POOL_SETTINGS.iter().find(|(it, ..)| *it == name)?;
    (value != *shown).then(|| format!("{name} = {value:?} instead of {needed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_of_the_pool_that_was_changed_is_named_with_what_it_was() {
        assert_eq!(spoiled_setting("statement_timeout", "35000"), None);
        assert_eq!(
            spoiled_setting("statement_timeout", "0").as_deref(),
            Some("statement_timeout = \"0\" instead of '35s'")
        );
        assert_eq!(spoiled_setting("work_mem", "1"), None);
    }
}
