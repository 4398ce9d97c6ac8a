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

/// Whether an operator means a user of this name by `who`.
pub(super) fn is_user(username: &str, who: &str) -> bool {
    username.eq_ignore_ascii_case(who)
}

/// Whether an operator means a device of this name by `who`: `device` or `user/device`.
pub(super) fn is_device(username: &str, device_name: &str, who: &str) -> bool {
    let by_both = who
        .split_once('/')
        .is_some_and(|(user, device)| is_user(username, user) && device_name == device);
    by_both || device_name == who
}

/// Whether an operator means this peer, its device or its user by `who`.
pub(super) fn is_named(peer: &Departed, who: &str) -> bool {
    let ids = [peer.peer_id.0, peer.device_id.0, peer.user_id.0];
    is_user(&peer.username, who)
        || is_device(&peer.username, &peer.device_name, who)
        || who.parse().is_ok_and(|id| ids.contains(&id))
}
