//! Which peer of a userspace device has which prefixes: each prefix one peer. Pure.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::model::{AllowedIps, PublicKey};

/// The prefixes of all peers, as the kernel's WireGuard keeps them: who is given a prefix takes it from
/// the peer that has it.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    peers: BTreeMap<PublicKey, AllowedIps>,
    owners: BTreeMap<IpNet, PublicKey>,
}

impl Allowed {
    /// What the peer has; `None`: there is no such peer.
    pub fn of(&self, key: &PublicKey) -> Option<&AllowedIps> {
        self.peers.get(key)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.keys()
    }

    /// Gives the peer these prefixes and no others. Returns the peers that lost some of them.
    pub fn set(&mut self, key: PublicKey, prefixes: AllowedIps) -> BTreeSet<PublicKey> {
        self.disown(&key);
        let mut losers = BTreeSet::new();
        for prefix in prefixes.iter() {
            if let Some(owner) = self.owners.insert(prefix, key)
                && let Some(had) = self.peers.get_mut(&owner)
            {
                *had = had.iter().filter(|held| *held != prefix).collect();
                losers.insert(owner);
            }
        }
        self.peers.insert(key, prefixes);
        losers
    }

    /// Forgets the peer. Returns whether there was one.
    pub fn remove(&mut self, key: &PublicKey) -> bool {
        self.disown(key);
        self.peers.remove(key).is_some()
    }

    fn disown(&mut self, key: &PublicKey) {
        for prefix in self.peers.get(key).into_iter().flat_map(AllowedIps::iter) {
            self.owners.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    fn ips(prefixes: &[&str]) -> AllowedIps {
        prefixes.iter().map(|prefix| prefix.parse::<IpNet>().unwrap()).collect()
    }

    #[test]
    fn a_prefix_has_one_peer_and_moves_to_who_is_given_it() {
        let mut allowed = Allowed::default();
        assert!(allowed.set(key(1), ips(&["10.0.0.0/8", "10.1.0.0/16"])).is_empty());
        // A longer prefix within is another one.
        assert!(allowed.set(key(2), ips(&["10.1.1.0/24"])).is_empty());
        assert_eq!(allowed.set(key(2), ips(&["10.1.0.0/16"])), [key(1)].into());
        assert_eq!(allowed.of(&key(1)), Some(&ips(&["10.0.0.0/8"])));
        assert_eq!(allowed.of(&key(2)), Some(&ips(&["10.1.0.0/16"])));
        assert!(allowed.remove(&key(2)) && !allowed.remove(&key(2)));
        assert!(allowed.set(key(3), ips(&["10.1.0.0/16", "10.1.1.0/24"])).is_empty());
        assert_eq!(allowed.peers().count(), 2);
    }
}
