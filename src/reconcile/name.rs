//! How messages name a peer.

use std::fmt;

use crate::model::policy::Plain;
use crate::model::{Departed, PeerRow};

/// "alice/laptop": how every message names that peer, and by which commands find it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct PeerName {
    pub user: Box<str>,
    pub device: Box<str>,
}

impl PeerName {
    /// The name of a row's peer.
    #[must_use]
    pub fn of(row: &PeerRow) -> Self {
        Self { user: row.username.clone(), device: row.device_name.clone() }
    }
}

impl From<&Departed> for PeerName {
    fn from(departed: &Departed) -> Self {
        Self { user: departed.username.clone(), device: departed.device_name.clone() }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&name_of(&self.user, &self.device))
    }
}

/// "alice/laptop", of a row.
pub(super) fn peer_name(row: &PeerRow) -> String {
    name_of(&row.username, &row.device_name)
}

/// Like [`peer_name`], for names without a row. Always on one line.
pub(super) fn name_of(username: &str, device_name: &str) -> String {
    format!("{}/{}", Plain(username), Plain(device_name))
}

/// Whether `who` names this peer, its device or its user.
pub(super) fn is_named(peer: &Departed, who: &str) -> bool {
    let by_name = peer.username.eq_ignore_ascii_case(who) || *peer.device_name == *who;
    let by_both = who.split_once('/').is_some_and(|(user, device)| {
        peer.username.eq_ignore_ascii_case(user) && *peer.device_name == *device
    });
    let ids = [peer.peer_id.0, peer.device_id.0, peer.user_id.0];
    by_name || by_both || who.parse().is_ok_and(|id| ids.contains(&id))
}
