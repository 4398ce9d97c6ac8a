//! The configuration changes while the loop runs.

use super::Machine;
use crate::reconcile::clock::Now;
use crate::reconcile::event::ReadKind;
use crate::reconcile::options::Reloaded;

impl Machine {
    /// Follows these options from now on. The next rows are evaluated by them, which are read at once.
    pub(super) fn reload(&mut self, options: Reloaded, now: Now) {
        let Reloaded { local, timing, max_removed, lost_history, stale } = options;
        self.hold.set_limit(max_removed);
        self.outbox.set_report_interval(timing.report_interval);
        self.source.set_timing(timing);
        self.follow_timing();
        let touched = self.rows.reload(local, stale, lost_history);
        self.touch(touched, now.instant);
        self.source.want(ReadKind::Everything);
        // A login that was refused may succeed with another password.
        self.source.retry_now(now);
        self.compare_on_purpose(now);
    }

    /// The heartbeat depends on the number of gateways.
    pub(super) fn follow_timing(&mut self) {
        let timing = self.source.timing();
        self.proof.set_heartbeat(timing.heartbeat);
        self.mirror.set_timing(timing);
    }
}
