//! The cheap query of a polling agent, and how agents register with the database.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::decode::Columns;
use super::{Cursor, Store, StoreError};

/// The first version of the schema in which agents ask and do nothing else: before, they took turns.
const NEWS_SINCE: i32 = 13;
/// The first version of the schema that answers what an agent asks each minute in one function.
const FOLLOWS_SINCE: i32 = 27;

/// The result of [`Store::poll`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// The next cursor. Nothing committed before this time, by the database's clock, concerns this
    /// gateway.
    Quiet(Cursor, SystemTime),
    /// [`Store::changes`] has something to read.
    News,
}

/// The result of [`Store::attach`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// Number of gateways whose agents follow this database.
    pub gateways: u32,
    /// Tables whose changes are not announced.
    pub unwatched: Vec<String>,
    /// How many transactions may be prepared for a commit in two phases (`max_prepared_transactions`). A
    /// transaction that notifies cannot be prepared.
    pub prepared_at_most: u32,
}

impl Attached {
    pub(super) fn of(gateways: i64, unwatched: Vec<String>, prepared_at_most: i32) -> Self {
        let gateways = u32::try_from(gateways).unwrap_or(u32::MAX);
        let prepared_at_most = u32::try_from(prepared_at_most).unwrap_or_default();
        Self { gateways, unwatched, prepared_at_most }
    }
}

impl Store {
    /// Asks whether anything changed since, in one exchange and outside a transaction, cheap enough for
    /// a thousand gateways. A mark that names no gateway is news until a bell has addressed it.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn poll(&self, since: &Cursor) -> Result<Polled, StoreError> {
        self.read_in_turns(|| self.ask_poll(since)).await
    }

    async fn ask_poll(&self, since: &Cursor) -> Result<Polled, StoreError> {
        const DOING: &str = "poll for changes";
        let lease = self.lease(DOING).await?;
        let query = if self.is_pooled() || self.has_schema(NEWS_SINCE) {
            "select news, cursor, quiet_until from gatepost.news($1, $2)"
        } else {
            "select news, cursor, quiet_until from gatepost.poll($1, $2)"
        };
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&since.snapshot, Type::TEXT), (&since.epoch, Type::TEXT)];
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        lease.done();
        let columns = Columns::of(&row, DOING);
        if columns.get(0)? {
            return Ok(Polled::News);
        }
        let next = Cursor { snapshot: columns.get(1)?, epoch: since.epoch.clone() };
        Ok(Polled::Quiet(next, columns.get(2)?))
    }

    /// Registers this gateway's agent, and whether it waits for notifications: writers do not notify
    /// if no agent waits. To be repeated every minute.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn attach(&self, listens: bool) -> Result<Attached, StoreError> {
        const DOING: &str = "register with the database";
        let lease = self.lease(DOING).await?;
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 1] =
            [(&listens, Type::BOOL)];
        let query = if self.has_schema(FOLLOWS_SINCE) {
            "select gateways, unwatched, \
                pg_catalog.current_setting('max_prepared_transactions')::integer \
                from gatepost.follow($1)"
        } else {
            "select gatepost.attach($1), gatepost.unwatched(), \
                pg_catalog.current_setting('max_prepared_transactions')::integer"
        };
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        lease.done();
        let columns = Columns::of(&row, DOING);
        Ok(Attached::of(columns.get(0)?, columns.get(1)?, columns.get(2)?))
    }

    /// How many transactions may be prepared on this server for a commit in two phases.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection.
    pub async fn prepared_at_most(&self) -> Result<u32, StoreError> {
        const DOING: &str = "ask whether transactions may be prepared";
        const QUERY: &str =
            "select pg_catalog.current_setting('max_prepared_transactions')::integer";
        let lease = self.lease(DOING).await?;
        let row = self.within(DOING, lease.query_typed_one(QUERY, &[])).await?;
        lease.done();
        Ok(u32::try_from(Columns::of(&row, DOING).get::<i32>(0)?).unwrap_or_default())
    }

    /// Tables whose changes are not announced.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn unwatched(&self) -> Result<Vec<String>, StoreError> {
        const DOING: &str = "ask which changes are announced";
        let lease = self.lease(DOING).await?;
        let asked = lease.query_typed_one("select gatepost.unwatched()", &[]);
        let row = self.within(DOING, asked).await?;
        lease.done();
        Columns::of(&row, DOING).get(0)
    }
}
