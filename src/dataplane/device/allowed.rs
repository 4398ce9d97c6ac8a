//! Which peer of a userspace device has which prefixes: each prefix one peer. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::successors;

use ipnet::IpNet;

use crate::model::{AllowedIps, PublicKey};

/// The prefixes of all peers, as the kernel's WireGuard keeps them: who is given a prefix takes it from
/// the peer that has it.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    peers: BTreeMap<PublicKey, AllowedIps>,
    owners: BTreeMap<IpNet, PublicKey>,
    /// Prefixes that no peer may have yet, not even a peer with a prefix around them.
    reserved: BTreeSet<IpNet>,
}

impl Allowed {
    /// The prefixes of the peer; `None`: there is no such peer.
    pub fn of(&self, key: &PublicKey) -> Option<&AllowedIps> {
        self.peers.get(key)
    }

    /// All peers.
    pub fn peers(&self) -> impl Iterator<Item = &PublicKey> {
        self.peers.keys()
    }

    /// The prefixes by which packets go to the peer: its own, without reserved ones.
    pub fn in_force(&self, key: &PublicKey) -> Vec<IpNet> {
        let has = self.of(key).into_iter().flat_map(AllowedIps::iter);
        has.flat_map(|prefix| self.reserved.iter().fold(vec![prefix], without)).collect()
    }

    /// Whether another peer has a prefix around this one.
    pub fn is_within_anothers(&self, prefix: IpNet, key: &PublicKey) -> bool {
        self.around(prefix).any(|owner| owner != *key)
    }

    /// Keeps from all peers those of these prefixes that none has. Returns the peers that have a prefix
    /// around one of them.
    pub fn reserve(&mut self, prefixes: &BTreeSet<IpNet>) -> BTreeSet<PublicKey> {
        let free = prefixes.iter().filter(|prefix| !self.owners.contains_key(prefix));
        let reserved: Vec<(IpNet, Vec<PublicKey>)> =
            free.map(|prefix| (*prefix, self.around(*prefix).collect())).collect();
        let nested = reserved.into_iter().filter(|(_, around)| !around.is_empty());
        let (reserved, around): (Vec<_>, Vec<_>) = nested.unzip();
        self.reserved.extend(reserved);
        around.into_iter().flatten().collect()
    }

    pub fn has_reserved(&self) -> bool {
        !self.reserved.is_empty()
    }

    /// Ends all that [`reserve`](Self::reserve) did. Returns the peers that have a prefix around that.
    pub fn release(&mut self) -> BTreeSet<PublicKey> {
        let reserved = std::mem::take(&mut self.reserved);
        reserved.into_iter().flat_map(|prefix| self.around(prefix)).collect()
    }

    /// The peers that have the prefixes around this one.
    fn around(&self, prefix: IpNet) -> impl Iterator<Item = PublicKey> {
        let around = successors(prefix.supernet(), IpNet::supernet);
        around.filter_map(|prefix| self.owners.get(&prefix).copied())
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

    /// Forgets the peer. Returns what it had; `None`: there was no such peer.
    pub fn remove(&mut self, key: &PublicKey) -> Option<AllowedIps> {
        self.disown(key);
        self.peers.remove(key)
    }

    fn disown(&mut self, key: &PublicKey) {
        for prefix in self.peers.get(key).into_iter().flat_map(AllowedIps::iter) {
            self.owners.remove(&prefix);
        }
    }
}

/// These prefixes without this one.
fn without(prefixes: Vec<IpNet>, hole: &IpNet) -> Vec<IpNet> {
    let halves = |prefix: IpNet| prefix.subnets(prefix.prefix_len() + 1).into_iter().flatten();
    let mut left = Vec::new();
    let mut todo = prefixes;
    while let Some(prefix) = todo.pop() {
        match prefix {
            prefix if prefix == *hole => {}
            prefix if prefix.contains(hole) => todo.extend(halves(prefix)),
            prefix => left.push(prefix),
        }
    }
    left
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
    fn a_prefix_has_one_peer_and_moves_to_the_next_one() {
        let mut allowed = Allowed::default();
        assert!(allowed.set(key(1), ips(&["10.0.0.0/8", "10.1.0.0/16"])).is_empty());
        // A longer prefix within is another one.
        assert!(allowed.set(key(2), ips(&["10.1.1.0/24"])).is_empty());
        assert_eq!(allowed.set(key(2), ips(&["10.1.0.0/16"])), [key(1)].into());
        assert_eq!(allowed.of(&key(1)), Some(&ips(&["10.0.0.0/8"])));
        assert_eq!(allowed.of(&key(2)), Some(&ips(&["10.1.0.0/16"])));
        assert_eq!(allowed.remove(&key(2)), Some(ips(&["10.1.0.0/16"])));
        assert_eq!(allowed.remove(&key(2)), None);
        assert!(allowed.set(key(3), ips(&["10.1.0.0/16", "10.1.1.0/24"])).is_empty());
        assert_eq!(allowed.peers().count(), 2);
    }

    #[test]
    fn a_reserved_prefix_belongs_to_no_peer_until_it_is_released() {
        let mut allowed = Allowed::default();
        allowed.set(key(1), ips(&["10.0.0.0/8", "10.1.2.0/24", "fd00::/16"]));
        allowed.set(key(2), ips(&["10.1.0.0/16", "192.168.1.0/24"]));
        allowed.set(key(3), ips(&["10.1.2.4/30", "fd00::1/128"]));
        let inner: BTreeSet<IpNet> = allowed.of(&key(3)).unwrap().iter().collect();
        assert!(allowed.is_within_anothers("10.1.2.4/30".parse().unwrap(), &key(3)));
        assert!(!allowed.is_within_anothers("10.0.0.0/8".parse().unwrap(), &key(1)));
        // As long as a peer has it, it cannot be reserved.
        assert!(allowed.reserve(&inner).is_empty());
        allowed.remove(&key(3));
        assert_eq!(allowed.reserve(&inner), [key(1), key(2)].into());
        let reaches = |allowed: &Allowed, number: u8, address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            allowed.in_force(&key(number)).iter().any(|prefix| prefix.contains(&address))
        };
        for (address, owners) in [
            ("10.1.2.4", vec![]),
            ("10.1.2.7", vec![]),
            ("10.1.2.3", vec![1, 2]),
            ("10.1.2.8", vec![1, 2]),
            ("10.200.0.1", vec![1]),
            ("fd00::1", vec![]),
            ("fd00::2", vec![1]),
            ("192.168.1.1", vec![2]),
        ] {
            let found: Vec<u8> =
                [1, 2].into_iter().filter(|it| reaches(&allowed, *it, address)).collect();
            assert_eq!(found, owners, "{address}");
        }
        assert_eq!(allowed.release(), [key(1), key(2)].into());
        assert!(allowed.release().is_empty());
        let all = allowed.in_force(&key(1));
        assert_eq!(all, allowed.of(&key(1)).unwrap().iter().collect::<Vec<_>>());
    }

    #[test]
    fn a_prefix_outside_all_others_is_not_reserved() {
        let mut allowed = Allowed::default();
        allowed.set(key(1), ips(&["10.7.0.2/32"]));
        assert!(allowed.reserve(&["10.7.0.3/32".parse().unwrap()].into()).is_empty());
        assert!(allowed.release().is_empty());
    }
}
