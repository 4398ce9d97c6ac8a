//! Glances: everything except the peers and the firewall's contents is read, which does not grow with them.

use std::time::Instant;

use super::Mirror;
use super::due::gap_after;
use super::work::{Job, Trust, Wanted};
use crate::dataplane::Glance;
use crate::model::ObservedState;
use crate::reconcile::clock::is_due;
use crate::reconcile::event::Action;

/// Why the kernel is read when the gate's rules are not as they should be.
const ROUTING_CHANGED: &str = "the routing rules or source checks changed";

impl Mirror {
    /// The kernel announced a change of the host's routing, which a glance shows: on a large gateway a
    /// complete reading for each change of another program would leave no time for anything else.
    pub fn routing_changed(&mut self) {
        self.awaits_look();
        if self.wanted == Wanted::Nothing {
            self.wanted = Wanted::Glance;
        }
    }

    /// Begins a glance, if one is wanted and may begin.
    pub fn begin_glance(&mut self, now: Instant) -> Option<Action> {
        if !is_due(self.glance_due(), now) {
            return None;
        }
        self.wanted = Wanted::Nothing;
        self.announced = false;
        self.glance_began_at = now;
        self.job = Job::Look;
        Some(Action::Glance)
    }

    /// A glance ended. Says whether everything is as it is known to be, but for the host's routing, which is known
    /// from now on. If not, or if the `gate_differs` beside that routing, a complete reading will show what changed,
    /// and say why if it cannot be had.
    pub fn end_glance(
        &mut self,
        glance: Option<Glance>,
        gate_differs: impl FnOnce(&ObservedState) -> bool,
        now: Instant,
    ) -> bool {
        self.job = Job::None;
        self.glances_from = now + gap_after(now.duration_since(self.glance_began_at));
        let as_known = |glance: &Glance| {
            self.observed().is_some_and(|observed| {
                glance.firewall_is_current
                    && glance.interface == observed.interface
                    && glance.routes == observed.routes
            })
        };
        let (Some(glance), Some(observed)) = (glance.filter(as_known), &self.observed) else {
            self.announced = true;
            self.want_reading("heartbeat");
            return false;
        };
        if self.trust == Trust::Kept && !self.wants_reading() {
            self.trust = Trust::Glanced;
        }
        let is_same = glance.routing == observed.read().routing;
        if !is_same {
            observed.set_routing(glance.routing);
        }
        let is_as_known = is_same || !gate_differs(&observed.read());
        if !is_as_known {
            self.kernel_changed(ROUTING_CHANGED.into());
        }
        is_as_known
    }
}
