//! What gateways that share the sessions of one role can do to each other, because the server or PUBLIC
//! allows it. None of it is ours to take away: other programs may need it.

use super::decode::Columns;
use super::{Store, StoreError};

/// What the server allows a role of many gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedRole {
    pub role: String,
    pub database: String,
    /// It may fill temporary tables (`TEMP`).
    pub makes_temporary_tables: bool,
    /// It may cancel statements and end sessions of its own (`pg_cancel_backend`, `pg_terminate_backend`).
    pub ends_sessions: bool,
    /// `log_parameter_max_length` as the role has it, if it is not 0: tokens are parameters.
    pub logged_parameters: Option<String>,
    /// Statements are logged.
    pub logs_statements: bool,
}

impl Store {
    /// What the server allows this role; `None`: it is the role of one gateway.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection.
    pub async fn shared_role(&self) -> Result<Option<SharedRole>, StoreError> {
        const DOING: &str = "ask what the role may";
        const QUERY: &str = "select session_user::text, current_database()::text,
                has_database_privilege(current_database(), 'TEMP'),
                has_function_privilege('pg_cancel_backend(integer)', 'EXECUTE')
                    or coalesce(has_function_privilege(to_regprocedure('pg_terminate_backend(integer)'), 'EXECUTE'), false)
                    or coalesce(has_function_privilege(
                        to_regprocedure('pg_terminate_backend(integer, bigint)'), 'EXECUTE'), false),
                nullif(current_setting('log_parameter_max_length'), '0'),
                current_setting('log_statement') <> 'none'
                    or current_setting('log_min_duration_statement') <> '-1'
                    or current_setting('log_min_duration_sample') <> '-1'
                    or current_setting('log_transaction_sample_rate') <> '0'";
        if !self.is_pooled() {
            return Ok(None);
        }
        let lease = self.lease(DOING).await?;
        let rows = self.within(DOING, lease.query_typed(QUERY, &[])).await?;
        lease.done();
        let role = |row| {
            let columns = Columns::of(row, DOING);
            Ok(SharedRole {
                role: columns.get(0)?,
                database: columns.get(1)?,
                makes_temporary_tables: columns.get(2)?,
                ends_sessions: columns.get(3)?,
                logged_parameters: columns.get(4)?,
                logs_statements: columns.get(5)?,
            })
        };
        rows.first().map(role).transpose()
    }
}
