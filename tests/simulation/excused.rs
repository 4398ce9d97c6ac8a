//! Who may be in the kernel, or out of it, although the rows say otherwise. The product says whom it holds
//! and keeps out; here is worked out whether it has a reason.

use std::collections::BTreeSet;
use std::time::SystemTime;

use gatepost::model::{BarredBy, KeyText, PeerRow, PublicKey};

use super::tables::Tables;
use super::world::{Errand, World};

impl World {
    /// The peers that stay in or out although the rows say otherwise, for a good reason.
    pub fn excused(&self) -> BTreeSet<PublicKey> {
        let view = self.agent.machine.view();
        let mut excused: BTreeSet<_> = view.held().peers().keys().copied().collect();
        // The last good rows release no peer.
        if let Some(followed) = self.agent.followed.as_ref().filter(|it| it.versions > 0) {
            let at = self.time_known_for_sure();
            excused.retain(|key| may_be_missing_by_mistake(&followed.tables, key, at));
        }
        let remembered = self.remembered();
        let kept_out = view.desired().into_iter().flat_map(|desired| desired.kept_out());
        excused.extend(kept_out.filter(|key| remembered.contains(key)));
        excused
    }

    /// Whose withdrawal the agent has written to its disk, or is about to.
    fn remembered(&self) -> BTreeSet<PublicKey> {
        let about_to = self.agent.errands.iter().filter_map(|errand| match errand {
            Errand::Remember(withdrawals) => Some(withdrawals),
            _ => None,
        });
        let all = about_to.chain([&self.disk.withdrawals, &self.options.withdrawals]);
        all.flat_map(|it| it.peers.keys().chain(it.lost.keys())).copied().collect()
    }
}

/// Whether the rows may lack a peer by mistake: no row names it, or those that do are deleted or their users
/// not active, and nothing says that it was revoked. Of the reasons why a row is quarantined, none that many
/// rows may share occurs here.
fn may_be_missing_by_mistake(tables: &Tables, key: &PublicKey, at: SystemTime) -> bool {
    let is_deleted = |row: &PeerRow| {
        !row.bars.is_empty()
            && row.bars.without(BarredBy::DELETIONS).is_empty()
            && row.revoked_at.is_none_or(|revoked| revoked > at)
    };
    let mut rows = tables.peers.values().filter(|row| row.public_key == KeyText::Key(*key));
    tables.gateway.active && rows.all(is_deleted)
}
