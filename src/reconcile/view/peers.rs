//! Every peer with what the rows and the kernel say about it.

use super::View;
use super::status::{self, PeerState, PeerStatus, Timestamp};
use crate::model::{
    Absence, Departed, DesiredState, KeyText, ObservedState, PeerRow, PublicKey, Standing, Traffic,
};
use crate::plan::HeldPeer;

/// Why a peer is left out that was withdrawn before the database had another epoch, or while the last
/// good rows are followed.
const BEING_ASKED: &str = "it was withdrawn, and these rows may be older: it stays out until the database \
                           says that it may connect";

impl View<'_> {
    /// Every peer of this gateway, by the id of its row; then the held peers that no row names.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerStatus> {
        let rows = self.rows.desired.into_iter();
        let named = rows.flat_map(|desired| {
            desired.rows().map(|(row, standing)| self.peer(desired, row, standing))
        });
        let mut peers: Vec<_> = named.collect();
        let is_named = |key: &&PublicKey| {
            let absence = self.rows.desired.map(|desired| desired.absence(key));
            absence.is_some_and(|absence| !matches!(absence, Absence::Gone { .. }))
        };
        let unnamed = self.hold.staying.peers().keys().filter(|key| !is_named(key));
        peers.extend(unnamed.filter_map(|key| self.unnamed(key)));
        peers
    }

    /// The held peers, in the order of their keys.
    pub(super) fn held_peers(&self) -> impl Iterator<Item = status::HeldPeer> {
        let observed = self.mirror.observed.as_deref();
        self.hold.staying.peers().iter().map(move |(key, held)| {
            held_peer(self.rows.followed, self.work.departed.get(key), observed, key, held)
        })
    }

    fn peer(&self, desired: &DesiredState, row: &PeerRow, standing: Standing<'_>) -> PeerStatus {
        let observed = self.mirror.observed.as_ref();
        let key = match &row.public_key {
            KeyText::Key(key) => Some(key),
            KeyText::Bad { .. } => None,
        };
        let held = key.and_then(|key| self.hold.staying.peers().get(key));
        let present = || key.and_then(|key| observed?.peers.get(key));
        let traffic = || key.and_then(|key| self.mirror.traffic.get(key)).copied();
        let asked_for = || vec![row.assigned_ip];
        let lost = || key.and_then(|key| self.rows.lost.get(key));
        let (state, traffic, addresses) = match (held, standing) {
            (Some(held), _) => {
                let addresses = present().map(|peer| peer.allowed_ips.iter().collect());
                (held_state(held), traffic(), addresses.unwrap_or_default())
            }
            (None, Standing::Admitted(key)) => {
                let wanted = desired.peers().get(key);
                let equal = present().is_some_and(|present| match wanted {
                    Some(wanted) if desired.is_sealed(key) => {
                        present.allowed_ips == wanted.allowed_ips
                    }
                    wanted => Some(present) == wanted,
                });
                let state = if equal { PeerState::InKernel } else { PeerState::Pending };
                let addresses = wanted.map(|peer| peer.allowed_ips.iter().collect());
                (state, traffic(), addresses.unwrap_or_default())
            }
            (None, Standing::Ineligible(why)) => {
                let reason = why.to_string();
                let state = match lost() {
                    _ if why.blocked => PeerState::Blocked { reason },
                    _ if !why.is_only_kept_out() => PeerState::Ineligible { reason },
                    Some(lost) => PeerState::KeptOut { reason, since: lost.since },
                    None => PeerState::Ineligible { reason: BEING_ASKED.to_owned() },
                };
                (state, None, asked_for())
            }
            (None, Standing::Quarantined(reason)) => {
                (PeerState::Quarantined { reason: reason.to_string() }, None, asked_for())
            }
        };
        let traffic = traffic.unwrap_or_default();
        PeerStatus {
            state,
            peer_id: Some(row.id),
            user: row.username.to_string(),
            user_id: Some(row.user_id),
            device: row.device_name.to_string(),
            device_id: Some(row.device_id),
            public_key: match &row.public_key {
                KeyText::Key(key) => key.to_string(),
                KeyText::Bad { text, .. } => text.to_string(),
            },
            addresses,
            policies: policy_names(desired, row),
            read_at: self.mirror.read_at.map(Timestamp),
            ..of_traffic(traffic)
        }
    }

    /// A held peer that no row names.
    fn unnamed(&self, key: &PublicKey) -> Option<PeerStatus> {
        let held = self.hold.staying.peers().get(key)?;
        let observed = self.mirror.observed.as_deref();
        let who = held_peer(self.rows.followed, self.work.departed.get(key), observed, key, held);
        Some(PeerStatus {
            state: held_state(held),
            peer_id: who.peer_id,
            user: who.user,
            user_id: who.user_id,
            device: who.device,
            device_id: who.device_id,
            public_key: key.to_string(),
            addresses: who.addresses,
            read_at: self.mirror.read_at.map(Timestamp),
            ..of_traffic(self.mirror.traffic.get(key).copied().unwrap_or_default())
        })
    }
}

/// A held peer, with the names from its row or, where that is gone, from what `departed`.
pub(super) fn held_peer(
    desired: Option<&DesiredState>,
    departed: Option<&Departed>,
    observed: Option<&ObservedState>,
    key: &PublicKey,
    held: &HeldPeer,
) -> status::HeldPeer {
    let named = match desired.map(|desired| desired.absence(key)) {
        Some(Absence::Barred(row, _) | Absence::Quarantined(row, _)) => Some(Departed::from(row)),
        _ => departed.cloned(),
    };
    let present = observed.and_then(|observed| observed.peers.get(key));
    let addresses = present.map_or_else(|| held.allowed_ips(), |peer| peer.allowed_ips.clone());
    let (reason, since) = (held.cause().to_string(), held.since());
    let named = named.as_ref();
    status::HeldPeer {
        peer_id: named.map(|it| it.peer_id),
        user: named.map(|it| it.username.to_string()).unwrap_or_default(),
        user_id: named.map(|it| it.user_id),
        device: named.map(|it| it.device_name.to_string()).unwrap_or_default(),
        device_id: named.map(|it| it.device_id),
        public_key: *key,
        addresses: addresses.iter().collect(),
        reason,
        since,
    }
}

fn held_state(held: &HeldPeer) -> PeerState {
    PeerState::Held { reason: held.cause().to_string(), since: held.since() }
}

/// The status of a peer of which only the kernel's counters are known.
fn of_traffic(traffic: Traffic) -> PeerStatus {
    PeerStatus {
        state: PeerState::Pending,
        peer_id: None,
        user: String::new(),
        user_id: None,
        device: String::new(),
        device_id: None,
        public_key: String::new(),
        addresses: Vec::new(),
        read_at: None,
        endpoint: traffic.endpoint,
        last_handshake_at: traffic.last_handshake.map(Timestamp),
        rx_bytes: traffic.rx_bytes,
        tx_bytes: traffic.tx_bytes,
        policies: Vec::new(),
    }
}

fn policy_names(desired: &DesiredState, row: &PeerRow) -> Vec<String> {
    let policies = desired.policies().policies_of(row.user_id, row.device_id);
    policies.into_iter().map(|policy| policy.name.to_string()).collect()
}
