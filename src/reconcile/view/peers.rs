//! Every peer's row with what the kernel says about it.

use super::View;
use super::status::{PeerState, PeerStatus, Timestamp};
use crate::model::{DesiredState, KeyText, PeerRow, Standing, Traffic};

impl View<'_> {
    /// Every peer of this gateway, by the id of its row.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let Some(desired) = self.rows.desired else { return Vec::new() };
        desired.rows().map(|(row, standing)| self.peer(desired, row, standing)).collect()
    }

    fn peer(&self, desired: &DesiredState, row: &PeerRow, standing: Standing<'_>) -> PeerStatus {
        let (state, traffic, addresses) = match standing {
            Standing::Admitted(key) => {
                let wanted = desired.peers().get(key);
                let observed = self.mirror.observed.as_ref();
                let present = observed.and_then(|observed| observed.peers.get(key));
                let equal = present.is_some() && present == wanted;
                let state = if equal { PeerState::InKernel } else { PeerState::Pending };
                let traffic = self.mirror.traffic.get(key).copied().unwrap_or_default();
                let addresses = wanted.map(|peer| peer.allowed_ips.iter().collect());
                (state, traffic, addresses.unwrap_or_default())
            }
            Standing::Ineligible(why) => {
                let reason = why.to_string();
                let state = if why.blocked {
                    PeerState::Blocked { reason }
                } else {
                    PeerState::Ineligible { reason }
                };
                (state, Traffic::default(), vec![row.assigned_ip])
            }
            Standing::Quarantined(reason) => {
                let reason = reason.to_string();
                (PeerState::Quarantined { reason }, Traffic::default(), vec![row.assigned_ip])
            }
        };
        PeerStatus {
            state,
            peer_id: row.id,
            user: row.username.to_string(),
            user_id: row.user_id,
            device: row.device_name.to_string(),
            device_id: row.device_id,
            public_key: match &row.public_key {
                KeyText::Key(key) => key.to_string(),
                KeyText::Bad { text, .. } => text.to_string(),
            },
            addresses,
            endpoint: traffic.endpoint,
            last_handshake_at: traffic.last_handshake.map(Timestamp),
            rx_bytes: traffic.rx_bytes,
            tx_bytes: traffic.tx_bytes,
            policies: policy_names(desired, row),
        }
    }
}

fn policy_names(desired: &DesiredState, row: &PeerRow) -> Vec<String> {
    let policies = desired.policies().policies_of(row.user_id, row.device_id);
    policies.into_iter().map(|policy| policy.name.to_string()).collect()
}
