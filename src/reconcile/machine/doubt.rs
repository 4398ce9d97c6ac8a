//! Withdrawals after a refused step, while the kernel cannot be read.

use super::Machine;
use crate::reconcile::clock::Now;
use crate::reconcile::event::Action;
use crate::reconcile::rows::Planned;

impl Machine {
    /// Plans withdrawals from the last reading, which is in doubt, before a newer one is tried: that may
    /// fail again, or take long. They give nothing, and so are safe whatever became of what was refused.
    pub(super) fn begin_withdrawals(&mut self, now: Now, actions: &mut Vec<Action>) {
        let is_wanted = self.mirror.can_be_withdrawn_by() && self.has_to_plan();
        if self.mirror.is_busy() || !is_wanted {
            return;
        }
        self.mirror.assume_given();
        let Some(observed) = self.mirror.observed() else { return };
        self.hold.confirmed_by_setting(self.rows.confirmed_at());
        // Only a reading would show which sessions are alive.
        let connected = || None;
        let Planned { plan, held, .. } =
            self.rows.plan_withdrawals(&observed, self.hold.guard(), connected);
        let plan = self.mirror.safe(plan, &observed);
        let update = self.hold.update(held, observed.peers.len(), false);
        drop(observed);
        self.notices.held_back(update.news, self.hold.held_back().is_some());
        self.proof.lose();
        if plan.is_empty() || self.passes.has_too_many_attempts() {
            self.mirror.exhausted();
            self.leave(now);
        } else {
            actions.extend(self.begin_apply(plan, now));
        }
    }
}
