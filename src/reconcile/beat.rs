//! The beats of `last_sync_at` between two complete readings of the kernel.
//!
//! A gateway with so many peers that reading them all at every beat would cost too much reads them
//! less often. A beat in between rests on three things: everything but the peers and the firewall's
//! contents is read back and is as it was; nobody else has changed our table since it was read or
//! written; and since the last complete reading the peers were changed only by writes of
//! ours that the kernel acknowledged, as far as it tells.

use std::time::SystemTime;

use super::Machine;
use super::event::Now;
use super::machine::Proven;
use crate::dataplane::Glance;

impl Machine {
    /// A beat is due: asks for a complete reading if one is near, else for a glance.
    pub(super) fn want_beat(&mut self, now: Now) {
        self.beat_wanted.get_or_insert(now.instant);
        if self.due.compare > now.instant + self.options.timing.heartbeat / 2 {
            self.glance_wanted = true;
        } else {
            self.observe_wanted.get_or_insert_with(|| "heartbeat".into());
        }
    }

    pub(super) fn take_glance(&mut self, glance: Result<Glance, String>, now: Now) {
        let as_known = |glance: Glance| {
            self.observed.as_ref().is_some_and(|observed| {
                let observed = observed.read();
                glance.firewall_is_current
                    && glance.interface == observed.interface
                    && glance.routes == observed.routes
            })
        };
        // Whatever is wrong, a complete reading shows it, and says why if it cannot be had.
        if !glance.is_ok_and(as_known) {
            self.observe_wanted.get_or_insert_with(|| "heartbeat".into());
            return;
        }
        self.glanced = true;
        if self.scope.is_nothing()
            && self.held.is_none()
            && self.proven.is_some()
            && let Some(desired) = &self.desired
        {
            self.glanced = false;
            let as_of = desired.as_of();
            self.proven = Some(Proven { as_of, at: now.wall });
            if self.take_beat() {
                self.tell_synced(as_of);
            }
        }
    }

    /// The kernel is proven to be what the rows of this time say: that is told, unless these are not
    /// what decides now, may be old, or may lack a change that nobody told.
    pub(super) fn tell_synced(&mut self, as_of: SystemTime) {
        if self.is_told() && !self.rows_in_doubt {
            self.ledger.synced(as_of);
        }
    }

    /// Whether the rows decide, and none of their changes goes untold.
    pub(super) fn is_told(&self) -> bool {
        !self.suspends() && self.unwatched.is_empty()
    }

    /// Whether a beat is due, and the rows were read for it. The kernel was read back: this is it.
    pub(super) fn take_beat(&mut self) -> bool {
        let due = self.beat_wanted.is_some_and(|since| self.rows_read_at >= since);
        if due {
            self.beat_wanted = None;
        }
        due
    }
}
