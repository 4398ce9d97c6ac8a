//! How messages name a peer.

use crate::model::PeerRow;
use crate::model::policy::Plain;

/// "alice/laptop": how every message names that peer, and by which commands find it.
pub(super) fn peer_name(row: &PeerRow) -> String {
    name_of(&row.username, &row.device_name)
}

/// As [`peer_name`], for names without a row. Always on one line.
pub(super) fn name_of(username: &str, device_name: &str) -> String {
    format!("{}/{}", Plain(username), Plain(device_name))
}
