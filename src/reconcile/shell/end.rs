//! The end of the loop: what is under way comes to its end, what is known is written, and no other
//! work begins.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::cache::Keeper;
use super::state::{Inner, Shell};
use super::withdrawals::Rememberer;
use crate::dataplane::Dataplane;
use crate::reconcile::clock;
use crate::reconcile::event::Event;

/// A dead database, a slow disk or a large plan does not hold up a stop. What is left then is read
/// from the kernel and from the database at the next start.
const PATIENCE: Duration = Duration::from_secs(2);

impl<D: Dataplane + 'static> Shell<D> {
    /// Waits for the kernel's answers, reports them, and waits until the last good rows are on disk: a
    /// revocation that was applied must not be forgotten.
    pub(super) async fn wind_up(&mut self, events: &mut mpsc::UnboundedReceiver<Inner>) {
        self.winding_up = true;
        let end = Instant::now() + PATIENCE;
        let works = |shell: &Self| shell.kernel_job.is_under_way() && !shell.dataplane_gone;
        while works(self) && self.take_next(events, end).await {}
        self.machine.leave(clock::now());
        while !self.machine.view().is_reported() && self.take_next(events, end).await {}
        if let Some(written) = self.keeper.as_ref().map(Keeper::written) {
            // Without its thread there is nothing to wait for.
            drop(tokio::time::timeout_at(end, written).await);
        }
        if let Some(written) = self.rememberer.as_ref().map(Rememberer::written) {
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
            Some(event) = events.recv() => self.receive(event),
            () = tokio::time::sleep(tick) => self.handle(Event::Tick),
        }
        true
    }
}
