//! When the kernel is proven to be what the rows ask for, and who is told.

use std::time::SystemTime;

use super::Machine;
use crate::dataplane::Glance;
use crate::plan::gate;
use crate::reconcile::audit;
use crate::reconcile::clock::Now;
use crate::reconcile::mirror::Glanced;
use crate::reconcile::proof::Evidence;
use crate::reconcile::rows::Extent;

/// Why the kernel is read when the gate's rules are not as they should be.
const ROUTING_CHANGED: &str = "the routing rules or source checks changed";

impl Machine {
    /// Nothing of this extent differs within the scope: what was a plan is now a proof.
    pub(super) fn prove(&mut self, extent: Extent, now: Now) {
        // While the kernel cannot be read, an older reading proves nothing.
        let readable = self.mirror.is_readable();
        let whole = self.difference.is_everything() && readable;
        let mut settled = self.difference.settle(whole, |key| self.hold.waits(key));
        if extent == Extent::Withdrawals {
            // No policy is known to be in force as it stands now.
            self.difference.policies_wait(std::mem::take(&mut settled.policies));
        }
        let evidence = Evidence {
            rows_read_at: self.rows.read_at(),
            whole,
            read_back: self.mirror.prove(whole),
            ends_pass: self.passes.is_under_way(),
            disturbed: self.mirror.is_disturbed(),
        };
        if whole {
            self.notices.proven(self.difference.blocked_routes().is_empty());
            self.notices.quarantined_policies(self.rows.desired(), true);
        }
        let provable = readable && self.follows_all_rows() && self.rows.are_usable();
        if let Some(desired) = self.rows.desired() {
            self.outbox.started(desired);
            let as_of = desired.as_of();
            if provable && self.proof.prove(as_of, evidence, now.instant) {
                self.report_proof(as_of);
            }
            let looks = self.proof.awaits_look() && self.mirror.is_disturbed();
            if provable && !self.proof.is_current() && !looks {
                // A part extends no proof that was lost, as while the guard held removals back.
                self.mirror.want_reading("verify");
            }
        }
        let changed_since = settled.changed_since.filter(|_| self.proof.is_current());
        let Some(pass) = self.passes.prove(whole, changed_since, now) else { return };
        let changes = pass.changes(&settled.policies, self.rows.desired());
        if let Some(desired) = self.rows.desired() {
            let entries = match extent {
                Extent::Withdrawals if !pass.is_drift() => {
                    audit::withdrawn(&pass, desired.gateway().id)
                }
                _ => audit::finished(&pass, &settled.policies, desired),
            };
            self.outbox.audit(entries, Some(&desired.settings().audit_events));
        }
        self.notices.say(pass.into_note(extent, changes));
    }

    /// Everything except the peers and the firewall's contents was read.
    pub(super) fn glanced(&mut self, glance: Option<Glance>, now: Now) {
        match self.mirror.end_glance(glance, now.instant) {
            Glanced::AsKnown => self.repeat_proof(true),
            Glanced::RoutingChanged if self.gate_differs() => {
                self.mirror.kernel_changed(ROUTING_CHANGED.into());
            }
            Glanced::RoutingChanged => self.repeat_proof(true),
            Glanced::Unknown => {}
        }
    }

    fn gate_differs(&self) -> bool {
        let (desired, observed) = (self.rows.desired(), self.mirror.observed());
        desired.zip(observed).is_some_and(|(desired, observed)| gate::differs(desired, &observed))
    }

    /// Nothing is known to differ: the proof holds as of now. `read_back`: a glance just found the
    /// kernel as it is known to be; else the rows were just read.
    pub(super) fn repeat_proof(&mut self, read_back: bool) {
        // What the kernel announced is not read yet, or is being read.
        let looks = self.mirror.is_disturbed()
            || self.mirror.wants_reading()
            || !read_back && self.mirror.is_busy();
        let differs = !self.difference.is_nothing() || !self.follows_all_rows();
        if looks || differs || !self.proof.may_repeat(read_back) {
            return;
        }
        let Some(as_of) = self.rows.desired().map(|desired| desired.as_of()) else { return };
        if read_back {
            self.mirror.prove(false);
        }
        if self.proof.repeat(as_of, self.rows.read_at(), read_back) {
            self.report_proof(as_of);
        }
    }

    /// Reports the proof, unless the rows may be old or do not decide.
    fn report_proof(&mut self, as_of: SystemTime) {
        if self.shows_proofs() && !self.rows.in_doubt() {
            self.outbox.synced(as_of);
        }
    }

    /// Whether no removal is held back, or was before the last good rows were restored, and no peer is kept
    /// out that the rows admit: else the kernel is not what the database holds.
    pub(super) fn follows_all_rows(&self) -> bool {
        let all_go = self.hold.held_back().is_none() && self.hold.unjudged() == 0;
        all_go && !self.rows.keep_any_out()
    }

    /// Whether the rows decide, and all their changes are announced.
    pub(super) fn shows_proofs(&self) -> bool {
        self.rows.decide() && self.source.announces_all()
    }
}
