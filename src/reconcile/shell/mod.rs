//! The shell: carries out what the [`Machine`](super::Machine) asks for, and tells it what happened.

mod ask;
mod asked_peers;
mod attach;
mod block;
mod block_file;
mod cache;
mod choose;
mod database;
#[cfg(any(test, feature = "fuzzing"))]
mod decoders;
mod end;
mod in_use;
mod journal;
mod kernel;
mod kernel_job;
mod pending_blocks;
mod presence;
mod replace;
mod state;
mod withdrawals;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::clock;
use super::error::RunError;
use super::event::{Event, KernelChange};
use super::view::status::Status;
use crate::dataplane::Dataplane;
use in_use::ATTACH_EVERY;
use state::{Inner, PRUNE_EVERY, Shell};

pub use ask::{Ask, NothingHeldBack};
pub use block_file::{BlockFile, BlockFileError};
pub use cache::{Cache, CacheError};
pub use choose::{Chosen, Present, Until, choose};
#[cfg(any(test, feature = "fuzzing"))]
pub use decoders::DECODERS;
pub use state::{Options, ROUND_AT_MOST};

/// Runs the loop until `stop` says so. Leaves the kernel as it is.
///
/// `status` always holds the latest; `alive` is called each time round, at least every
/// [`ROUND_AT_MOST`], unless the kernel no longer answers.
///
/// # Errors
/// [`RunError::DataplaneGone`]: no work on the kernel is possible any more.
pub async fn run<D: Dataplane + 'static>(
    mut options: Options<D>,
    mut asks: mpsc::Receiver<Ask>,
    status: watch::Sender<Status>,
    mut stop: watch::Receiver<bool>,
    alive: impl Fn(),
) -> Result<(), RunError> {
    let (_, silent) = mpsc::channel(1);
    let mut kernel_events = std::mem::replace(&mut options.kernel_events, silent);
    let hints = options.hints.take();
    let (mut shell, mut events) = Shell::new(options, status);
    let mut heard = shell.expect_hints(hints);
    let mut prune = interval_at(Instant::now() + PRUNE_EVERY / 4, PRUNE_EVERY);
    let mut attach = interval_at(Instant::now() + ATTACH_EVERY, ATTACH_EVERY);
    attach.set_missed_tick_behavior(MissedTickBehavior::Delay);
    shell.handle(Event::Tick);
    while !shell.dataplane_gone {
        if !shell.kernel_job.is_stuck(clock::now().instant) {
            alive();
        }
        shell.publish();
        shell.tell_progress();
        shell.answer_resyncs();
        shell.answer_blocks();
        let connected = shell.in_use.is_some().then_some(&shell.store);
        shell.asked_peers.answer(&shell.machine.view(), connected);
        let wakeup = shell.next_round();
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            Some(event) = events.recv() => shell.receive(event),
            Some(ask) = asks.recv() => shell.answer(ask),
            Some(change) = kernel_events.recv() => {
                let more = std::iter::from_fn(|| kernel_events.try_recv().ok());
                shell.handle(more.fold(change, KernelChange::and).into());
            }
            _ = prune.tick() => shell.prune(),
            _ = attach.tick() => shell.tell_presence(),
            // A flood of hints holds up nothing else.
            Ok(()) = heard.changed() => {
                let news = heard.borrow_and_update().clone();
                shell.heard(news);
            }
            () = sleep_until(wakeup) => shell.handle(Event::Tick),
        }
    }
    shell.wind_up(&mut events).await;
    if shell.dataplane_gone { Err(RunError::DataplaneGone) } else { Ok(()) }
}

/// Makes one full pass, reports, and returns.
///
/// # Errors
/// [`RunError::NotConverged`] with the obstacle; [`RunError::Stopped`].
pub async fn run_once<D: Dataplane + 'static>(
    options: Options<D>,
    status: watch::Sender<Status>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let (mut shell, mut events) = Shell::new(options, status);
    shell.mode = None;
    let ended = shell.make_one_pass(&mut events, &mut stop).await;
    shell.wind_up(&mut events).await;
    shell.forget();
    ended
}

impl<D: Dataplane + 'static> Shell<D> {
    async fn make_one_pass(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Inner>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), RunError> {
        self.handle(Event::Tick);
        loop {
            self.publish();
            if self.machine.view().is_at_rest() {
                return Ok(());
            }
            let stuck = self.machine.view().stuck();
            if let Some(why) = stuck.or_else(|| self.gives_up()) {
                return Err(RunError::NotConverged(why));
            }
            let wakeup = self.next_round();
            tokio::select! {
                biased;
                _ = stop.changed() => return Err(RunError::Stopped),
                Some(event) = events.recv() => self.receive(event),
                () = sleep_until(wakeup) => self.handle(Event::Tick),
            }
        }
    }
}
