//! Who must stay out whatever the rows say: peers whose revocation the database or the last good rows
//! lost, and everybody once the rows are stale.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use gatepost::model::PublicKey;
use gatepost::reconcile::{Event, StalePolicy, Withdrawal};

use super::reach::Reach;
use super::world::World;

#[derive(Default)]
pub struct Out {
    /// Withdrawals that a failover lost, since when.
    lost: Option<(Duration, BTreeMap<PublicKey, Withdrawal>)>,
    /// Peers that were withdrawn before the agent began, which follows the last good rows now.
    until_rows_are_read: BTreeSet<PublicKey>,
    /// When rows were read last that can be used, or the agent began.
    good_at: Duration,
    /// A read failed since then, or there was none.
    in_doubt: bool,
}

impl Out {
    pub fn agent_began(&mut self, at: Duration) {
        (self.good_at, self.in_doubt) = (at, true);
        self.until_rows_are_read.clear();
    }

    pub fn rows_come(&mut self, are_usable: bool, at: Duration) {
        if are_usable {
            self.until_rows_are_read.clear();
            self.good_at = at;
        }
        self.in_doubt = !are_usable;
    }

    pub const fn hears(&mut self, event: &Event) {
        if let Event::Disconnected { .. } | Event::Read(Err(_)) = event {
            self.in_doubt = true;
        }
    }

    /// An operator lets in everybody who is shown.
    pub fn confirmed(&mut self) {
        self.lost = None;
    }
}

impl World {
    /// The database lost commits: what the agent has carried out of them holds.
    pub fn commits_were_lost(&mut self) {
        let admits = |key: &PublicKey| {
            let view = self.agent.machine.view();
            view.desired().is_some_and(|desired| desired.peers().contains_key(key))
        };
        let former = self.oracle.out.lost.take().map(|(_, former)| former);
        // An admission that was read since then is the last word, also if it is lost in turn.
        let mut withdrawals = former.unwrap_or_default();
        withdrawals.retain(|key, _| !admits(key));
        let remembered = self.disk.withdrawals.peers.iter();
        let out = remembered.filter(|(key, _)| !self.has(key) && !admits(key));
        withdrawals.extend(out.map(|(key, it)| (*key, it.clone())));
        self.oracle.out.lost = Some((self.elapsed, withdrawals));
    }

    /// The agent begins to follow rows that an earlier run kept.
    pub fn last_good_rows_come(&mut self) {
        let withdrawn = self.disk.withdrawals.peers.keys();
        self.oracle.out.until_rows_are_read =
            withdrawn.filter(|key| !self.has(key)).copied().collect();
    }

    fn has(&self, key: &PublicKey) -> bool {
        let peer = self.host.kernel.state.peers.get(key);
        peer.is_some_and(|peer| !peer.allowed_ips.is_empty())
    }

    pub fn check_who_is_out(&mut self) {
        if let Some(key) = self.oracle.out.until_rows_are_read.iter().find(|key| self.has(key)) {
            let what = format!("{key} is back by the last good rows, and was withdrawn");
            return self.fail(what);
        }
        let Some((since, withdrawals)) = &self.oracle.out.lost else { return };
        if self.elapsed >= *since + self.options.lost_history {
            self.oracle.out.lost = None;
            return;
        }
        if !withdrawals.keys().any(|key| self.has(key)) {
            return;
        }
        let lost = self.database.lost(withdrawals);
        if let Some(key) = lost.iter().find(|key| self.has(key)) {
            self.fail(format!("{key} is back, and its withdrawal was lost"));
        }
    }

    /// Whether `stale.policy` suspends everybody.
    pub fn suspends_all(&self) -> bool {
        let out = &self.oracle.out;
        let stale = &self.options.stale;
        stale.policy == StalePolicy::Down
            && out.in_doubt
            && self.elapsed >= out.good_at + stale.after
    }

    /// What passes although everybody is suspended.
    pub fn passes_while_suspended(&self) -> Reach {
        Reach::of_kernel(&self.host.kernel.state)
    }
}
