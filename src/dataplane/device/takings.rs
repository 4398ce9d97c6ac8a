//! What a change of peers takes away, without what it gives. Pure.

use ipnet::IpNet;

use super::allowed::Allowed;
use super::request::{PeerChange, Set};
use crate::model::PublicKey;

/// The part of a change that gives no peer anything: removals, and prefixes that peers lose.
pub(super) fn takings(set: &Set, allowed: &Allowed) -> Vec<PeerChange> {
    let names = |key: &PublicKey| set.peers.iter().any(|change| change.key == *key);
    let unnamed = allowed.peers().filter(|key| set.replace_peers && !names(key));
    let removal = |key: &PublicKey| PeerChange { remove: true, ..PeerChange::of(*key) };
    let named = set.peers.iter().filter_map(|change| {
        if change.remove {
            return Some(removal(&change.key));
        }
        let replaces = change.replace_allowed_ips || set.replace_peers;
        let is_lost = |prefix: &IpNet| {
            (replaces || change.removed_ips.contains(prefix)) && !change.added_ips.contains(prefix)
        };
        let removed_ips: Vec<IpNet> = allowed.of(&change.key)?.iter().filter(is_lost).collect();
        let narrowing = PeerChange { update_only: true, ..PeerChange::of(change.key) };
        (!removed_ips.is_empty()).then_some(PeerChange { removed_ips, ..narrowing })
    });
    unnamed.map(removal).chain(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::AllowedIps;

    fn key(number: u8) -> PublicKey {
        PublicKey::from_bytes([number; 32]).unwrap()
    }

    fn ips(prefixes: &[&str]) -> Vec<IpNet> {
        prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect()
    }

    fn allowed() -> Allowed {
        let mut allowed = Allowed::default();
        for (number, prefixes) in [
            (1, ips(&["10.7.0.1/32"])),
            (2, ips(&["10.7.0.2/32", "10.9.0.0/16"])),
            (3, ips(&["10.7.0.3/32"])),
        ] {
            allowed.set(key(number), prefixes.into_iter().collect::<AllowedIps>());
        }
        allowed
    }

    #[test]
    fn a_change_that_gives_takes_away_all_the_same() {
        let narrowing = |number, kept: &[&str]| PeerChange {
            update_only: true,
            replace_allowed_ips: true,
            added_ips: ips(kept),
            ..PeerChange::of(key(number))
        };
        let peers = vec![
            PeerChange { remove: true, ..PeerChange::of(key(1)) },
            // The device lacks one of the prefixes that this peer is to keep.
            narrowing(2, &["10.7.0.2/32", "10.8.0.0/16"]),
            narrowing(3, &["10.7.0.3/32"]),
            narrowing(4, &["10.7.0.4/32"]),
            PeerChange { added_ips: ips(&["10.7.0.5/32"]), ..PeerChange::of(key(5)) },
        ];
        let lost = PeerChange {
            update_only: true,
            removed_ips: ips(&["10.9.0.0/16"]),
            ..PeerChange::of(key(2))
        };
        let set = Set { peers, ..Set::default() };
        let removal = PeerChange { remove: true, ..PeerChange::of(key(1)) };
        assert_eq!(takings(&set, &allowed()), [removal, lost]);
    }

    #[test]
    fn peers_that_a_replacement_does_not_name_go_and_others_keep_what_it_names() {
        let peers = vec![PeerChange {
            added_ips: ips(&["10.9.0.0/16", "10.7.0.3/32"]),
            ..PeerChange::of(key(2))
        }];
        let set = Set { replace_peers: true, peers, ..Set::default() };
        let taken = takings(&set, &allowed());
        let keys: Vec<_> = taken.iter().map(|change| (change.key, change.remove)).collect();
        assert_eq!(keys, [(key(1), true), (key(3), true), (key(2), false)]);
        assert_eq!(taken[2].removed_ips, ips(&["10.7.0.2/32"]));
    }
}
