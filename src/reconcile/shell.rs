//! The thin shell: carries out what the [`Machine`] asks for, and tells it what happened.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::ask::Ask;
use super::attach::{ATTACH_EVERY, InUse};
use super::cache::{Cache, Keeper};
use super::database::{Cause, Connection, Reader, chain, send};
use super::end::begins_anew;
use super::event::{Action, Event, Mode, ReadKind, Sent};
use super::kernel::{KERNEL_IS_STUCK, KernelJob};
use super::mode::SyncMode;
use super::say::say;
use super::status::{State, Status, Timestamp};
use super::summary::clock;
use super::{Machine, MachineOptions, Obstacle};
use crate::dataplane::{Dataplane, DataplaneHandle};
use crate::model::BuildError;
use crate::store::{Attached, Store};

/// The data plane of a host.
pub trait Host: Dataplane + 'static {}

impl<D: Dataplane + 'static> Host for D {}

/// Everything the loop needs.
pub struct Options<D> {
    pub machine: MachineOptions,
    pub store: Store,
    pub mode: SyncMode,
    pub dataplane: DataplaneHandle<D>,
    /// Says why to look at the kernel again.
    pub kernel_events: mpsc::Receiver<String>,
    /// Where the last good rows are kept; `None`: nowhere.
    pub cache: Option<Cache>,
    /// `gateways.name`, from the configuration.
    pub gateway: String,
    pub version: &'static str,
}

/// Change marks are kept this long: a reader that was away for longer reads everything.
const KEEP_MARKS: Duration = Duration::from_secs(24 * 3_600);
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the pass did not converge: {0}")]
    NotConverged(String),
    /// [`BuildError::NoPskKeys`]
    #[error(transparent)]
    NoPskKeys(BuildError),
    #[error("role acts for gateway {bound:?}, but [gateway] name is {configured:?}: correct one")]
    OtherGateway { bound: String, configured: String },
    #[error("the thread that speaks to the kernel has ended: start the agent anew")]
    DataplaneGone,
    #[error("stopped before the pass had ended")]
    Stopped,
}

/// A quiet loop goes round this often: who watches its pulse must not take quiet for dead.
pub const ROUND_AT_MOST: Duration = Duration::from_secs(10);

/// Runs the loop until `stop` says so. Leaves the kernel as it is.
///
/// `status` always holds the latest; `alive` is called each time round, at least every
/// [`ROUND_AT_MOST`], unless the kernel does not answer any more.
///
/// # Errors
/// [`RunError::DataplaneGone`]: nothing could be done any more.
pub async fn run<D: Host>(
    mut options: Options<D>,
    mut asks: mpsc::Receiver<Ask>,
    status: watch::Sender<Status>,
    mut stop: watch::Receiver<bool>,
    alive: impl Fn(),
) -> Result<(), RunError> {
    let (_, silent) = mpsc::channel(1);
    let mut kernel_events = std::mem::replace(&mut options.kernel_events, silent);
    let (mut shell, mut events) = Shell::new(options, status);
    let mut prune = tokio::time::interval_at(Instant::now() + PRUNE_EVERY / 4, PRUNE_EVERY);
    let mut attach = tokio::time::interval_at(Instant::now() + ATTACH_EVERY, ATTACH_EVERY);
    attach.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    shell.tell(Event::Tick);
    while !shell.dataplane_gone {
        if !shell.kernel_job.is_stuck(clock().instant) {
            alive();
        }
        shell.publish();
        shell.answer_resyncs();
        let wakeup = shell.next_round();
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            Some(event) = events.recv() => shell.take(event),
            Some(why) = kernel_events.recv() => shell.tell(Event::KernelChanged { why }),
            Some(ask) = asks.recv() => shell.answer(ask),
            _ = prune.tick() => shell.prune(),
            _ = attach.tick() => shell.attach(),
            () = tokio::time::sleep_until(wakeup) => shell.tell(Event::Tick),
        }
    }
    shell.wind_up(&mut events).await;
    if shell.dataplane_gone { Err(RunError::DataplaneGone) } else { Ok(()) }
}

/// Makes one full pass, reports, and returns.
///
/// # Errors
/// [`RunError::NotConverged`] with the obstacle; [`RunError::Stopped`].
pub async fn run_once<D: Host>(
    options: Options<D>,
    status: watch::Sender<Status>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), RunError> {
    let (mut shell, mut events) = Shell::new(options, status);
    shell.mode = None;
    let ended = shell.make_one_pass(&mut events, &mut stop).await;
    shell.wind_up(&mut events).await;
    // The process ends next, which frees all at once; piece by piece it would take as long as to
    // compare everything.
    std::mem::forget(shell.machine);
    ended
}

/// `run --once` gives up when so many tries in a row to read the database have failed, or to report.
const TRIES_ONCE: u32 = 3;

pub(super) enum Inner {
    Event(Event),
    Connected(Box<Connection>),
    DataplaneGone,
    Attached(Attached),
}

pub(super) struct Shell<D> {
    pub(super) machine: Machine,
    pub(super) store: Store,
    /// `None`: no change is to be learnt of.
    pub(super) mode: Option<SyncMode>,
    pub(super) in_use: Option<InUse>,
    pub(super) dataplane: DataplaneHandle<D>,
    pub(super) dataplane_gone: bool,
    pub(super) kernel_job: KernelJob,
    /// Who asked for a resync and waits for its end.
    pub(super) resyncs: Vec<(u64, oneshot::Sender<Result<(), String>>)>,
    cache: Option<Cache>,
    pub(super) keeper: Option<Keeper>,
    /// The end has come: what is under way is brought to its end, and nothing else is begun.
    pub(super) winding_up: bool,
    pub(super) gateway: String,
    pub(super) template: Status,
    reader: Arc<Mutex<Reader>>,
    /// A notification came that no read has answered yet.
    notified: bool,
    pub(super) listening: Option<JoinHandle<()>>,
    pub(super) events: mpsc::UnboundedSender<Inner>,
    status: watch::Sender<Status>,
    /// In a row, without a read in between that succeeded.
    failed_reads: u32,
    failed_reports: u32,
    last_error: String,
}

impl<D: Host> Shell<D> {
    fn new(
        options: Options<D>,
        status: watch::Sender<Status>,
    ) -> (Self, mpsc::UnboundedReceiver<Inner>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let now = clock();
        let keeper = options.cache.clone().map(Cache::into_keeper);
        let mut template = Status::default();
        template.gateway.name.clone_from(&options.gateway);
        template.agent.version = options.version.to_owned();
        template.agent.started_at = Some(Timestamp(now.wall));
        let shell = Self {
            machine: Machine::new(options.machine, now),
            store: options.store,
            mode: Some(options.mode),
            in_use: None,
            dataplane: options.dataplane,
            dataplane_gone: false,
            kernel_job: KernelJob::default(),
            resyncs: Vec::new(),
            gateway: options.gateway,
            template,
            cache: options.cache,
            reader: Arc::new(Mutex::new(Reader::new(keeper.clone()))),
            keeper,
            winding_up: false,
            notified: false,
            listening: None,
            events,
            status,
            failed_reads: 0,
            failed_reports: 0,
            last_error: String::new(),
        };
        (shell, receiver)
    }

    pub(super) fn take(&mut self, inner: Inner) {
        match inner {
            Inner::Event(event) => self.tell(event),
            Inner::Connected(connection) => self.connected(*connection),
            Inner::Attached(attached) => self.attached(attached),
            Inner::DataplaneGone => self.dataplane_gone = true,
        }
    }

    async fn make_one_pass(
        &mut self,
        events: &mut mpsc::UnboundedReceiver<Inner>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), RunError> {
        self.tell(Event::Tick);
        loop {
            self.publish();
            if self.machine.is_at_rest() {
                return Ok(());
            }
            if let Some(why) = self.machine.is_stuck().or_else(|| self.gives_up()) {
                return Err(match self.machine.obstacle() {
                    Some(Obstacle::Build(error @ BuildError::NoPskKeys { .. })) => {
                        RunError::NoPskKeys(error.clone())
                    }
                    _ => RunError::NotConverged(why),
                });
            }
            let wakeup = self.next_round();
            tokio::select! {
                biased;
                _ = stop.changed() => return Err(RunError::Stopped),
                Some(event) = events.recv() => self.take(event),
                () = tokio::time::sleep_until(wakeup) => self.tell(Event::Tick),
            }
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.kernel_job.hears(&event);
        match &event {
            Event::Disconnected { error } => {
                self.failed_reads += 1;
                self.last_error.clone_from(error);
                self.template.database.last_error = Some(error.clone());
                self.in_use = None;
                self.stop_listening();
            }
            Event::Notified => self.notified = true,
            Event::Read(Ok(_)) => self.failed_reads = 0,
            Event::Reported(Sent { error: Some(error), .. }) => {
                self.failed_reports += 1;
                self.last_error.clone_from(error);
            }
            Event::Reported(_) => self.failed_reports = 0,
            _ => {}
        }
        for action in self.machine.handle(event, clock()) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            action if self.winding_up && begins_anew(&action) => {}
            Action::Say(note) => say(&note),
            Action::Connect => self.spawn_connect(),
            Action::Read(kind) => self.spawn_read(kind),
            Action::Restore => self.spawn_restore(),
            Action::Keep(keep) => {
                if let Some(keeper) = &self.keeper {
                    keeper.judge(keep);
                }
            }
            Action::Observe => self.observe(),
            Action::Glance => self.glance(),
            Action::Apply(plan, observed) => self.apply(plan, observed),
            Action::Report(report) => {
                let store = self.store.clone();
                self.spawn_inner(async move {
                    Inner::Event(Event::Reported(send(&store, report).await))
                });
            }
        }
    }

    fn spawn_read(&mut self, kind: ReadKind) {
        let notified = std::mem::take(&mut self.notified);
        let cause = if notified { Cause::Notification } else { Cause::Other };
        let (store, reader) = (self.store.clone(), self.reader.clone());
        let events = self.events.clone();
        let mode = self.in_use.map_or(Mode::Poll, |in_use| in_use.mode);
        tokio::spawn(async move {
            let answer = reader.lock().await.read(&store, kind, mode, cause).await;
            let answer = answer.map_err(|error| chain(&error));
            // A read may be the first to find that the database is gone, or is not ours any more.
            let lost = answer.as_ref().err().cloned();
            drop(events.send(Inner::Event(Event::Read(answer))));
            if let Some(error) = lost {
                drop(events.send(Inner::Event(Event::Disconnected { error })));
            }
        });
    }

    fn spawn_restore(&self) {
        let Some(cache) = self.cache.clone() else { return };
        let (events, gateway) = (self.events.clone(), self.gateway.clone());
        tokio::task::spawn_blocking(move || match cache.load(&gateway) {
            Ok(Some((rows, changes))) => {
                drop(events.send(Inner::Event(Event::Restored(Box::new(rows), changes))));
            }
            Ok(None) => {}
            Err(error) => warn!("the last good rows are not used: {}", chain(&error)),
        });
    }

    pub(super) fn spawn_inner(&self, job: impl Future<Output = Inner> + Send + 'static) {
        let events = self.events.clone();
        // The loop may have ended meanwhile; then nobody waits for the answer.
        tokio::spawn(async move { drop(events.send(job.await)) });
    }

    /// When to go round again, if nothing happens.
    fn next_round(&self) -> Instant {
        let now = clock();
        self.machine.next_wakeup(now).min(now.instant + ROUND_AT_MOST).into()
    }

    /// Why one pass will not end, if it will not.
    fn gives_up(&self) -> Option<String> {
        if self.dataplane_gone {
            return Some(RunError::DataplaneGone.to_string());
        }
        if self.kernel_job.is_stuck(clock().instant) {
            return Some(KERNEL_IS_STUCK.into());
        }
        let failed = self.failed_reads.max(self.failed_reports);
        (failed >= TRIES_ONCE).then(|| self.last_error.clone())
    }

    fn prune(&self) {
        let (store, connected) = (self.store.clone(), self.in_use.is_some());
        tokio::spawn(async move {
            loop {
                match store.prune(KEEP_MARKS).await {
                    Ok(0) => return,
                    Ok(marks) => debug!(marks, "pruned {marks} change marks"),
                    // That the database is away is said already.
                    Err(error) if error.is_transient() && !connected => return,
                    Err(error) => {
                        return warn!("change marks were not pruned: {}", chain(&error));
                    }
                }
            }
        });
    }

    fn publish(&self) {
        let mut status = self.machine.status();
        if self.kernel_job.is_stuck(clock().instant) {
            status.state = State::NotReady { why: KERNEL_IS_STUCK.into() };
        }
        let template = &self.template;
        status.gateway.name.clone_from(&template.gateway.name);
        status.sync.mode_why.clone_from(&template.sync.mode_why);
        status.agent = template.agent.clone();
        status.database.last_error.clone_from(&template.database.last_error);
        status.database.schema_version = template.database.schema_version;
        self.status.send_if_modified(|held| {
            let changed = *held != status;
            *held = status;
            changed
        });
    }
}
