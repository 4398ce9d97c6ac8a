//! A change as transactions in a row, where one alone would misjudge packets that are on their way through the
//! rules at that moment.
//!
//! Such a packet goes on with the rules of the generation in which it entered the hook, but looks sets up as they
//! are at that instant (`nft_do_chain`, `nft_set_do_lookup`). Where one transaction makes a chain and gives it to a
//! peer, the packet is led to a chain that was empty before; where one takes a chain from a peer and removes it, the
//! packet asks for a chain that is gone. Either way it is denied, although both policies may allow it. So chains are
//! made before a peer gets them, and removed after the last one has left them.

use super::block::Placed;
use crate::model::FirewallChange;

/// A change in three parts that are to be written in this order.
pub struct Stages {
    /// New profiles, which no peer has yet.
    pub made: FirewallChange,
    pub moved: FirewallChange,
    /// Profiles that no peer has any more.
    pub removed: FirewallChange,
}

impl Stages {
    /// `None`: one transaction will do. A table that is made has no packets on their way, and what only takes
    /// places away may deny them.
    pub fn of(change: &FirewallChange) -> Option<Self> {
        let (mut made, mut removed) = (FirewallChange::default(), FirewallChange::default());
        if change.load_base.is_some() || change.assign.is_empty() {
            return None;
        }
        let mut moved = change.clone();
        removed.remove_profiles = std::mem::take(&mut moved.remove_profiles);
        // Members of a block are elements of sets that packets look up already.
        (made.put_profiles, moved.put_profiles) = std::mem::take(&mut moved.put_profiles)
            .into_iter()
            .partition(|(id, (is_new, profile))| {
                *is_new && matches!(Placed::of(*id, profile), Placed::InChain(_))
            });
        let is_one = made.is_empty() && removed.is_empty();
        (!is_one).then_some(Self { made, moved, removed })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::{Profile, ProfileId};

    /// The first profile of a block.
    const IN_BLOCK: u32 = 1_025;

    fn change(put: &[(u32, bool)], assigned: &[u32], removed: &[u32]) -> FirewallChange {
        let put = put
            .iter()
            .map(|(id, is_new)| (ProfileId(*id), (*is_new, Arc::new(Profile::default()))));
        let prefix =
            |id: &u32| (format!("10.0.0.{}/32", id % 200).parse().unwrap(), ProfileId(*id));
        FirewallChange {
            put_profiles: put.collect(),
            assign: assigned.iter().map(prefix).collect(),
            remove_profiles: removed.iter().copied().map(ProfileId).collect(),
            ..FirewallChange::default()
        }
    }

    #[test]
    fn chains_are_made_before_peers_move_and_removed_after() {
        let whole = change(&[(1, true), (2, false), (IN_BLOCK, true)], &[1, 2], &[3]);
        let Stages { made, moved, removed } = Stages::of(&whole).unwrap();
        assert_eq!(made, change(&[(1, true)], &[], &[]));
        assert_eq!(moved, change(&[(2, false), (IN_BLOCK, true)], &[1, 2], &[]));
        assert_eq!(removed, change(&[], &[], &[3]));
    }

    #[test]
    fn what_moves_no_peer_or_makes_and_removes_nothing_is_one_transaction() {
        for whole in [change(&[(1, true)], &[], &[3]), change(&[(2, false)], &[2], &[])] {
            assert!(Stages::of(&whole).is_none());
        }
    }
}
