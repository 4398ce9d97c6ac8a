//! What the world's database answers.

use std::collections::BTreeMap;

use gatepost::model::{DeviceId, DeviceRow, DeviceRows, GatewayId, GatewayRow, KeyText, PublicKey};
use gatepost::reconcile::{AskedDevice, DeviceStandings, ReadAnswer, ReadKind};

use super::changes::changes;
use super::{Trouble, World};
use crate::rows::gateway;

impl World {
    pub(super) fn answer(&mut self, kind: ReadKind) -> ReadAnswer {
        let taken_at = self.database_now();
        let named = self.tables.peers.values().map(|row| (row.device_id, row.user_id));
        self.devices.extend(named);
        let before = self.read.replace(self.tables.clone());
        self.read_at = taken_at;
        match before {
            Some(before)
                if kind != ReadKind::Everything
                    && before.settings == self.tables.settings
                    && before.gateway_active == self.tables.gateway_active
                    && self.read_epoch == self.epoch =>
            {
                let mut rows = changes(&before, &self.tables, taken_at);
                let new = self.marks.iter().skip(self.marks_read);
                rows.marks = new.map(|(mark, _)| mark.clone()).collect();
                self.marks_read = self.marks.len();
                if before == self.tables {
                    ReadAnswer::Unchanged { taken_at }
                } else {
                    ReadAnswer::Changed(rows)
                }
            }
            _ => {
                (self.read_epoch, self.marks_read) = (self.epoch, self.marks.len());
                let mut rows = self.tables.snapshot();
                rows.taken_at = taken_at;
                self.spoil(&mut rows.gateway);
                ReadAnswer::Everything(Box::new(rows))
            }
        }
    }

    /// What becomes of devices that no row of a peer names.
    pub(super) fn standings(&self, asked: &BTreeMap<PublicKey, AskedDevice>) -> DeviceStandings {
        let row = |id: &DeviceId| {
            let user_id = *self.devices.get(id)?;
            let group_ids = self.tables.memberships.get(&user_id).cloned().unwrap_or_default();
            let revoked = self.revoked_devices.contains(id);
            let barred = self.barred_devices.contains(id);
            Some((*id, DeviceRow { user_id, group_ids, revoked, barred }))
        };
        let rows = DeviceRows {
            settings: self.tables.settings.clone(),
            devices: asked.values().filter_map(|it| row(&it.device_id)).collect(),
            policies: self.tables.policies.values().cloned().collect(),
            taken_at: self.database_now(),
        };
        DeviceStandings::new(&gateway().name, asked, &[rows])
    }

    fn spoil(&self, row: &mut GatewayRow) {
        row.vpn_cidr = self.pool.unwrap_or(row.vpn_cidr);
        for trouble in &self.troubles {
            match trouble {
                Trouble::GatewayRow => row.listen_port = 0,
                Trouble::WrongKey => {
                    row.public_key = KeyText::Key(PublicKey::from_bytes([250; 32]).unwrap());
                }
                Trouble::SmallPool => row.vpn_cidr = "10.64.0.0/32".parse().unwrap(),
                Trouble::NewRow => row.id = GatewayId(crate::rows::id(1, 2)),
                _ => {}
            }
        }
    }
}
