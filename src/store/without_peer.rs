//! What becomes of devices that no row of a peer names.

use std::collections::BTreeSet;

use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::decode::{self, Columns, POLICY_COLUMNS};
use super::snapshot::{BEGIN, COMMIT, REWRITTEN, is_whole, settings_query};
use super::{Store, StoreError};
use crate::model::{DeviceId, DeviceRow, DeviceRows};

const DOING: &str = "ask about devices without a peer";
/// The first schema that can tell.
const SINCE: i32 = 23;
/// The most that one question names.
const AT_ONCE: usize = 100_000;

impl Store {
    /// The rows of these devices that are not those of peers, for each hundred thousand devices as of one instant;
    /// none from an older schema.
    ///
    /// # Errors
    /// Any [`StoreError`] of the connection or of the role's rights.
    pub async fn devices_without_peer(
        &self,
        devices: &BTreeSet<DeviceId>,
    ) -> Result<Vec<DeviceRows>, StoreError> {
        let devices: Vec<Uuid> = devices.iter().map(|id| id.0).collect();
        let mut all = Vec::new();
        if self.has_schema(SINCE) {
            for devices in devices.chunks(AT_ONCE) {
                all.push(self.read_in_turns(|| self.read_devices(devices)).await?);
            }
        }
        Ok(all)
    }

    async fn read_devices(&self, devices: &[Uuid]) -> Result<DeviceRows, StoreError> {
        let lease = self.lease(DOING).await?;
        let parameters: [(&(dyn ToSql + Sync), Type); 1] = [(&devices, Type::UUID_ARRAY)];
        let of_devices =
            "select device_id, user_id, group_ids, revoked, barred from gatepost.devices_by_id($1)";
        let of_policies = format!("select {POLICY_COLUMNS} from gatepost.policies_by_device($1)");
        let of_settings = settings_query();
        let reads = async {
            tokio::try_join!(
                biased;
                lease.batch_execute(BEGIN),
                lease.query_typed_one("select pg_catalog.now()", &[]),
                lease.query_typed(&of_settings, &[]),
                lease.query_typed(of_devices, &parameters),
                lease.query_typed(&of_policies, &parameters),
                lease.query_typed_one(REWRITTEN, &[]),
                lease.batch_execute(COMMIT),
            )
        };
        let ((), taken_at, settings, devices, policies, rewritten, ()) =
            self.within(DOING, reads).await?;
        is_whole(&rewritten, DOING)?;
        lease.done();
        let device = |row| {
            let columns = Columns::of(row, DOING);
            let group_ids: Vec<Uuid> = columns.get(2)?;
            let row = DeviceRow {
                // Of a device that was never this gateway's, nothing else is told than that it is revoked.
                user_id: columns.get::<Option<Uuid>>(1)?.unwrap_or_default().into(),
                group_ids: group_ids.into_iter().map(Into::into).collect(),
                revoked: columns.get(3)?,
                barred: columns.get(4)?,
            };
            Ok((columns.get::<Uuid>(0)?.into(), row))
        };
        Ok(DeviceRows {
            settings: settings
                .iter()
                .map(|row| decode::setting(row, DOING))
                .collect::<Result<_, _>>()?,
            taken_at: Columns::of(&taken_at, DOING).get(0)?,
            devices: devices.iter().map(device).collect::<Result<_, StoreError>>()?,
            policies: policies
                .iter()
                .map(|row| decode::policy(row, DOING))
                .collect::<Result<_, _>>()?,
        })
    }
}
