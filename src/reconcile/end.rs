//! The end of the loop: what is under way comes to its end, what is known is written, and nothing
//! else is begun.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::event::Action;
use super::shell::{Host, Inner, Shell};
use super::summary::clock;

/// A dead database, a slow disk or a large plan does not hold up a stop. What is left then is read
/// from the kernel and from the database at the next start.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether it is new work on the kernel or on the database.
pub(super) const fn begins_anew(action: &Action) -> bool {
    match action {
        Action::Connect
        | Action::Read(_)
        | Action::Observe
        | Action::Glance
        | Action::Apply(..)
        | Action::Restore => true,
        Action::Keep(_) | Action::Report(_) | Action::Say(_) => false,
    }
}

impl<D: Host> Shell<D> {
    /// Waits for the kernel's answer to what it was told, reports it, and sees the last good rows on
    /// disk: a revocation that was obeyed must not be forgotten.
    pub(super) async fn wind_up(&mut self, events: &mut mpsc::UnboundedReceiver<Inner>) {
        self.winding_up = true;
        let end = Instant::now() + PATIENCE;
        let works = |shell: &Self| shell.kernel_job.is_under_way() && !shell.dataplane_gone;
        while works(self) && self.take_next(events, end).await {}
        self.machine.leave(clock());
        while !self.machine.is_reported() && self.take_next(events, end).await {}
        if let Some(written) = self.keeper.as_ref().map(super::cache::Keeper::written) {
            // Without its thread there is nobody to wait for.
            drop(tokio::time::timeout_at(end, written).await);
        }
    }

    /// Whether there is time left.
    async fn take_next(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Inner>,
        end: Instant,
    ) -> bool {
        let tick = Duration::from_millis(50);
        tokio::select! {
            () = tokio::time::sleep_until(end) => return false,
            Some(event) = events.recv() => self.take(event),
            () = tokio::time::sleep(tick) => self.tell(super::Event::Tick),
        }
        true
    }
}
