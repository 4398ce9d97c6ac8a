//! Devices that are revoked although no row of a peer names them.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::decode::Columns;
use super::{Store, StoreError};
use crate::model::DeviceId;

const DOING: &str = "ask which devices are revoked";
/// The first schema that can tell.
const SINCE: i32 = 23;
/// The most that one question names.
const AT_ONCE: usize = 100_000;

impl Store {
    /// Those of these devices that are revoked, by their status or by a time of revocation that has come; none from an
    /// older schema.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn revoked_devices(
        &self,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<BTreeSet<DeviceId>, StoreError> {
        let mut revoked = BTreeSet::new();
        if !self.has_schema(SINCE) {
            return Ok(revoked);
        }
        let devices: Vec<Uuid> = devices.iter().map(|id| id.0).collect();
        for devices in devices.chunks(AT_ONCE) {
            let lease = self.lease(DOING).await?;
            let query = "select d from gatepost.revoked_devices($1) d";
            let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&devices, Type::UUID_ARRAY)];
            let rows = self.within(DOING, lease.query_typed(query, &parameters)).await?;
            lease.done();
            for row in &rows {
                revoked.insert(Columns::of(row, DOING).get::<Uuid>(0)?.into());
            }
        }
        Ok(revoked)
    }
}
