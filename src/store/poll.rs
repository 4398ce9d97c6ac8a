//! The cheap question of an agent that polls, and what a database that many poll must know of them.

use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::decode::Columns;
use super::{Cursor, Store, StoreError};

/// What [`Store::poll`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Polled {
    /// Nothing that was committed before this time of the database concerns this gateway; the next
    /// cursor.
    Quiet(Cursor, SystemTime),
    /// Ask [`Store::changes`].
    News,
}

/// What [`Store::attach`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attached {
    /// So many gateways' agents follow this database.
    pub gateways: i64,
    /// Tables of whose changes nobody tells.
    pub unwatched: Vec<String>,
}

impl Store {
    /// Asks whether anything changed since, in one exchange and outside a transaction: what a
    /// thousand gateways can ask. Addresses what writers left unaddressed, and notifies whom it
    /// concerns, if nobody has done so just now; until somebody has, it tells nothing of it.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn poll(&self, since: &Cursor) -> Result<Polled, StoreError> {
        self.explain(self.ask_poll(since)).await
    }

    async fn ask_poll(&self, since: &Cursor) -> Result<Polled, StoreError> {
        const DOING: &str = "poll for changes";
        let lease = self.lease(DOING).await?;
        let query = "select news, cursor, quiet_until from gatepost.poll($1, $2)";
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

    /// Says that this gateway's agent follows the database, and whether it waits for the
    /// writers' notifications: where nobody does, they are spared them. To be said again every minute.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn attach(&self, listens: bool) -> Result<Attached, StoreError> {
        const DOING: &str = "say that this agent follows the database";
        let lease = self.lease(DOING).await?;
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 1] =
            [(&listens, Type::BOOL)];
        let query = "select gatepost.attach($1), gatepost.unwatched()";
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        lease.done();
        let columns = Columns::of(&row, DOING);
        Ok(Attached { gateways: columns.get(0)?, unwatched: columns.get(1)? })
    }
}
