//! How messages name a peer.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use crate::model::policy::Plain;
use crate::model::{Departed, PeerRow};

/// How many near names are told.
const NEAR_AT_MOST: usize = 8;
/// From here on, of 1,000, a name may be meant by another.
const NEAR: usize = 600;
/// Characters are counted by their last six bits.
const LETTERS: usize = 64;

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

/// The names that `who` may be a slip of, the nearest first: `user/device` where `who` has a slash, else users
/// and devices.
#[must_use]
pub fn near_names<'a>(who: &str, peers: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let (meant, has_both) = (who.to_lowercase(), who.contains('/'));
    let letters = letters(&meant);
    let mut near = BTreeMap::new();
    for (user, device) in peers {
        let names = match has_both {
            true => [Some(format!("{user}/{device}")), None],
            false => [Some(user.to_owned()), Some(device.to_owned())],
        };
        for name in names.into_iter().flatten() {
            if let Some(likeness) = likeness(&meant, &letters, &name.to_lowercase()) {
                near.insert(Plain(&name).to_string(), likeness);
            }
        }
    }
    let mut near: Vec<_> = near.into_iter().collect();
    near.sort_by_key(|(_, likeness)| Reverse(*likeness));
    near.into_iter().take(NEAR_AT_MOST).map(|(name, _)| name).collect()
}

/// "(did you mean alice or alicia?)", to stand behind an unknown name.
#[must_use]
pub fn did_you_mean(names: &[String]) -> String {
    match names.split_last() {
        None => String::new(),
        Some((only, [])) => format!(" (did you mean {only}?)"),
        Some((last, others)) => format!(" (did you mean {} or {last}?)", others.join(", ")),
    }
}

/// How alike they are, of 1,000; `None`: they are not near.
fn likeness(meant: &str, letters: &[usize; LETTERS], name: &str) -> Option<usize> {
    let longer = meant.chars().count().max(name.chars().count());
    // Most names differ by their letters already, which among many peers are compared much faster.
    let shared: usize = letters.iter().zip(self::letters(name)).map(|(a, b)| b.min(*a)).sum();
    if shared * 1_000 < longer * NEAR {
        return None;
    }
    let alike = longer - strsim::damerau_levenshtein(meant, name).min(longer);
    (alike * 1_000 >= longer * NEAR).then(|| alike * 1_000 / longer.max(1))
}

fn letters(text: &str) -> [usize; LETTERS] {
    let mut counts = [0; LETTERS];
    text.chars().for_each(|letter| counts[letter as usize % LETTERS] += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slip_is_answered_with_the_nearest_names() {
        let peers =
            [("alice", "laptop"), ("alice", "phone"), ("alicia", "laptop"), ("bob", "desk")];
        let near = |who| near_names(who, peers.into_iter());
        assert_eq!(near("alcie"), ["alice", "alicia"]);
        assert_eq!(near("LAPTOP1"), ["laptop"]);
        assert_eq!(near("alice/labtop"), ["alice/laptop", "alicia/laptop"]);
        assert_eq!(near("Bob/Desk"), ["bob/desk"]);
        assert_eq!(near("zoë"), [""; 0]);
        assert_eq!(near(""), [""; 0]);
        let many: Vec<String> = (10..99).map(|number| format!("user-{number}")).collect();
        let near = near_names("user-1", many.iter().map(|name| (name.as_str(), "laptop")));
        assert_eq!((near.len(), near[0].as_str()), (NEAR_AT_MOST, "user-10"));
    }

    #[test]
    fn what_was_meant_is_asked_with_all_near_names() {
        let asked = |names: &[&str]| {
            did_you_mean(&names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(asked(&[]), "");
        assert_eq!(asked(&["alice"]), " (did you mean alice?)");
        assert_eq!(asked(&["a", "b", "c"]), " (did you mean a, b or c?)");
    }
}
