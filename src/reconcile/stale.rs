//! `[stale]`: what becomes of the peers when no rows could be used for long.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::Machine;
use super::event::{Action, Note, Now};
use super::machine::Trust;
use super::session::is_alive;
use crate::dataplane::SharedObserved;
use crate::model::{ObservedState, PublicKey};
use crate::plan::{Plan, Scope, withdraw};

/// `[stale]`: what happens when the database has been out of reach for long.
#[derive(Debug, Clone, Copy)]
pub struct StaleOptions {
    pub policy: StalePolicy,
    pub after: Duration,
}

/// `stale.policy`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StalePolicy {
    /// Everything stays as it was last told.
    #[default]
    Keep,
    /// Peers without a live session are removed: nobody can connect anew.
    DenyNew,
    /// All peers are removed.
    Down,
}

impl Machine {
    pub(super) fn check_stale(&mut self, now: Now, actions: &mut Vec<Action>) {
        let old_for = now.instant.duration_since(self.rows_read_at);
        let stale = self.options.stale;
        if self.stale || !self.rows_in_doubt || old_for < stale.after {
            return;
        }
        self.stale = true;
        actions.push(Action::Say(Note::Stale { since: old_for, policy: stale.policy }));
        match stale.policy {
            StalePolicy::Keep => return,
            StalePolicy::DenyNew => {
                // Who connected since the last reading has a live session, too: nobody is removed
                // before the next, and until then nobody is added.
                self.observe_wanted = Some("stale rows".into());
                if self.trust == Trust::Fresh {
                    self.trust = Trust::Kept;
                }
                let present = self.observed.as_ref().map(SharedObserved::read);
                let present = present.map(|observed| observed.peers.keys().copied().collect());
                if let Some(present) = present {
                    self.suspend_all_but(present);
                }
            }
            StalePolicy::Down => self.suspend_all_but(BTreeSet::new()),
        }
        self.scope = Scope::Everything;
        // What a policy asks for is no drift.
        self.rows_changed = true;
        self.retry_now();
    }

    fn suspend_all_but(&mut self, admitted: BTreeSet<PublicKey>) {
        if let Some(desired) = &mut self.desired {
            let touched = desired.suspend_all_but(Some(admitted));
            self.touch(touched);
        }
    }

    /// While nobody may connect anew: whose session ended is not let in again. The kernel was just
    /// read.
    pub(super) fn suspend_the_disconnected(&mut self, now: Now) {
        if !self.stale || self.options.stale.policy != StalePolicy::DenyNew {
            return;
        }
        let (Some(desired), Some(observed)) = (&self.desired, &self.observed) else { return };
        let connected = self.connected(&observed.read(), now.wall);
        if desired.peers().keys().any(|key| !connected.contains(key)) {
            self.suspend_all_but(connected);
        }
    }

    /// Whose last handshake, as of the last reading, is of a session that goes on.
    fn connected(&self, observed: &ObservedState, now: SystemTime) -> BTreeSet<PublicKey> {
        let alive = |key: &&PublicKey| {
            let traffic = self.traffic.get(*key);
            traffic.and_then(|it| it.last_handshake).is_some_and(|at| is_alive(at, now))
        };
        observed.peers.keys().filter(alive).copied().collect()
    }

    /// What staleness asks for in an agent that never had rows it could use.
    pub(super) fn withdrawal(&self, observed: &ObservedState, now: Now) -> Plan {
        let stay = match self.options.stale.policy {
            StalePolicy::Keep => return Plan::default(),
            // Whose session is alive is known from a reading, and only just after it.
            StalePolicy::DenyNew if self.trust != Trust::Fresh => return Plan::default(),
            StalePolicy::DenyNew => self.connected(observed, now.wall),
            StalePolicy::Down => BTreeSet::new(),
        };
        let local = &self.options.local;
        withdraw(observed, local.private_key.public_key(), &stay, local.flush_conntrack)
    }

    /// Whether the kernel holds less than the rows say, because they are stale.
    pub(super) fn suspends(&self) -> bool {
        self.stale && self.options.stale.policy != StalePolicy::Keep
    }

    pub(super) fn stale_over(&mut self) {
        let suspended = self.suspends();
        self.stale = false;
        if suspended && let Some(desired) = &mut self.desired {
            let touched = desired.suspend_all_but(None);
            self.touch(touched);
        }
    }
}
