//! Names of groups and status of devices: for answers to an operator.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::decode::Columns;
use super::{Store, StoreError};
use crate::model::{DeviceId, GroupId};

/// The words of the database for these groups and devices, as far as they concern the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    pub groups: BTreeMap<GroupId, String>,
    pub statuses: BTreeMap<DeviceId, String>,
}

const DOING: &str = "ask for names";
/// The first schema that has them.
const SINCE: i32 = 17;

impl Store {
    /// The names of these groups and the statuses of these devices; nothing from an older schema.
    ///
    /// The caller may stop waiting. A question that was put is then waited for all the same: to break it
    /// off would cost its session, which may be the only one, and which the server counts until it is done.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn words(
        &self,
        groups: &BTreeSet<GroupId>,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<Words, StoreError> {
        if !self.has_schema(SINCE) {
            return Ok(Words::default());
        }
        let groups: Vec<Uuid> = groups.iter().map(|id| id.0).collect();
        let devices: Vec<Uuid> = devices.iter().map(|id| id.0).collect();
        let (store, lease) = (self.clone(), self.lease(DOING).await?);
        let asked = tokio::spawn(async move {
            let parameters: [(&(dyn ToSql + Sync), Type); 2] =
                [(&groups, Type::UUID_ARRAY), (&devices, Type::UUID_ARRAY)];
            let query = "select kind, id, word from gatepost.words($1, $2)";
            let rows = store.within(DOING, lease.query_typed(query, &parameters)).await?;
            lease.done();
            Ok(rows)
        });
        // Only the end of the program breaks it off.
        let Ok(rows) = asked.await else { return Ok(Words::default()) };
        let rows: Vec<Row> = rows?;
        let mut words = Words::default();
        for row in &rows {
            let columns = Columns::of(row, DOING);
            let (kind, id): (String, Uuid) = (columns.get(0)?, columns.get(1)?);
            let word: String = columns.name(2)?;
            match kind.as_str() {
                "group" => drop(words.groups.insert(id.into(), word)),
                _ => drop(words.statuses.insert(id.into(), word)),
            }
        }
        Ok(words)
    }
}
