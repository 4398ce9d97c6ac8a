//! The marks behind withdrawals, and which of them the database has lost.

use std::time::SystemTime;

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::decode::Columns;
use super::token::Caller;
use super::{Cursor, Store, StoreError};
use crate::model::{DeviceId, Mark, MarkId, UserId};

/// A mark that the database is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedMark {
    pub mark: MarkId,
    /// The device whose peer it withdrew.
    pub device_id: DeviceId,
    pub user_id: UserId,
    /// The database's time of the read that saw the mark; that read saw no later marks.
    pub read_at: SystemTime,
}

const DOING: &str = "read the marks";

impl Store {
    /// The numbers, from 0, of the marks that a database of this epoch has lost: those that are gone although they
    /// were not pruned, unless a later mark concerns the same device or user. `None`: the session led to a server of
    /// another epoch, as may one that is older than a failover, and is given up.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn lost_marks(
        &self,
        epoch: &str,
        asked: &[AskedMark],
    ) -> Result<Option<Vec<usize>>, StoreError> {
        const DOING: &str = "ask for marks of before a failover";
        let xids: Vec<String> = asked.iter().map(|it| it.mark.xid.to_string()).collect();
        let kinds: Vec<&str> = asked.iter().map(|it| &*it.mark.kind).collect();
        let ids: Vec<Option<Uuid>> = asked.iter().map(|it| it.mark.id).collect();
        let devices: Vec<Uuid> = asked.iter().map(|it| it.device_id.0).collect();
        let users: Vec<Uuid> = asked.iter().map(|it| it.user_id.0).collect();
        let read_at: Vec<SystemTime> = asked.iter().map(|it| it.read_at).collect();
        let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
            (&xids, Type::TEXT_ARRAY),
            (&kinds, Type::TEXT_ARRAY),
            (&ids, Type::UUID_ARRAY),
            (&devices, Type::UUID_ARRAY),
            (&users, Type::UUID_ARRAY),
            (&read_at, Type::TIMESTAMPTZ_ARRAY),
        ];
        // One statement, so that the epoch is that of the server which compares the marks.
        let query = "select epoch, array(select gatepost.lost_marks($1, $2, $3, $4, $5, $6)) \
                     from gatepost.hello()";
        let lease = self.lease(DOING).await?;
        let row = self.within(DOING, lease.query_typed_one(query, &parameters)).await?;
        let columns = Columns::of(&row, DOING);
        if columns.get::<String>(0)? != epoch {
            return Ok(None);
        }
        let numbers: Vec<i32> = columns.get(1)?;
        lease.done();
        Ok(Some(numbers.into_iter().filter_map(|n| usize::try_from(n - 1).ok()).collect()))
    }
}

/// Asks for the marks of [`Store::snapshot_with_marks`], in the transaction that reads the rows: a session of
/// its own may reach another server, which does not know what the first one has lost.
pub(super) async fn ask(
    client: Caller<'_>,
    since: Option<&Cursor>,
) -> Result<Vec<Row>, tokio_postgres::Error> {
    let (snapshot, epoch) = since.map(|it| (&*it.snapshot, &*it.epoch)).unzip();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&snapshot, Type::TEXT), (&epoch, Type::TEXT)];
    client.query_typed("select xid, kind, ids from gatepost.marks($1, $2)", &parameters).await
}

pub(super) fn decode(row: &Row) -> Result<Mark, StoreError> {
    let columns = Columns::of(row, DOING);
    let xid: String = columns.get(0)?;
    let kind: String = columns.get(1)?;
    // An id of a transaction is a number.
    Ok(Mark { xid: xid.parse().unwrap_or_default(), kind: kind.into(), ids: columns.get(2)? })
}

/// Marks that came in columns of one row: their ids are separated by commas.
pub(super) fn of_columns(
    xids: Vec<String>,
    kinds: Vec<String>,
    ids: Vec<Option<String>>,
) -> Vec<Mark> {
    let listed = |ids: String| ids.split(',').filter_map(|id| id.parse().ok()).collect();
    let marks = xids.into_iter().zip(kinds).zip(ids);
    marks
        .map(|((xid, kind), ids)| Mark {
            // An id of a transaction is a number.
            xid: xid.parse().unwrap_or_default(),
            kind: kind.into(),
            ids: ids.map(listed),
        })
        .collect()
}
