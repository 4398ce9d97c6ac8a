//! The thin shell: carries out what the [`Machine`] asks for, and tells it what happened.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::attach::{ATTACH_EVERY, InUse};
use super::cache::Cache;
use super::database::{Connection, Reader, chain, send};
use super::event::{Action, Event, Mode, ReadKind};
use super::mode::SyncMode;
use super::say::say;
use super::status::{Explanation, PeerStatus, Status, Timestamp};
use super::summary::clock;
use super::{Machine, MachineOptions};
use crate::dataplane::{Dataplane, DataplaneError, DataplaneHandle};
use crate::store::Store;

/// The data plane of a host.
pub trait Host: Dataplane<Error = DataplaneError> + 'static {}

impl<D: Dataplane<Error = DataplaneError> + 'static> Host for D {}

/// What an operator asks of the loop. A dropped answer means that the loop has ended.
#[derive(Debug)]
pub enum Ask {
    /// Every peer, by its id.
    Peers(oneshot::Sender<Vec<PeerStatus>>),
    /// The verdict for what `who` sends to `destination`.
    Explain {
        who: String,
        destination: String,
        answer: oneshot::Sender<Result<Explanation, String>>,
    },
    /// Compare everything anew; answered when that has ended, with its error if it failed.
    Resync(oneshot::Sender<Result<(), String>>),
    /// Let the removal that the guard holds back go ahead; the error says if there is none.
    Confirm(oneshot::Sender<Result<(), String>>),
}

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
    #[error("role acts for gateway {bound:?}, but [gateway] name is {configured:?}: correct one")]
    OtherGateway { bound: String, configured: String },
}

/// Runs the loop until `stop` says so. Leaves the kernel as it is.
///
/// `status` always holds the latest; `alive` is called each time round.
pub async fn run<D: Host>(
    mut options: Options<D>,
    mut asks: mpsc::Receiver<Ask>,
    status: watch::Sender<Status>,
    mut stop: watch::Receiver<bool>,
    alive: impl Fn(),
) {
    let (_, silent) = mpsc::channel(1);
    let mut kernel_events = std::mem::replace(&mut options.kernel_events, silent);
    let (mut shell, mut events) = Shell::new(options, status);
    let mut prune = tokio::time::interval_at(Instant::now() + PRUNE_EVERY / 4, PRUNE_EVERY);
    let mut attach = tokio::time::interval_at(Instant::now() + ATTACH_EVERY, ATTACH_EVERY);
    attach.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    shell.tell(Event::Tick);
    loop {
        alive();
        shell.publish();
        shell.answer_resyncs();
        let wakeup = shell.machine.next_wakeup(clock());
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            Some(event) = events.recv() => shell.take(event),
            Some(why) = kernel_events.recv() => shell.tell(Event::KernelChanged { why }),
            Some(ask) = asks.recv() => shell.answer(ask),
            _ = prune.tick() => shell.prune(),
            _ = attach.tick() => shell.attach(),
            () = tokio::time::sleep_until(wakeup.into()) => shell.tell(Event::Tick),
        }
    }
    shell.last_report(&mut events).await;
}

/// Makes one full pass, reports, and returns.
///
/// # Errors
/// [`RunError::NotConverged`] with the obstacle.
pub async fn run_once<D: Host>(
    options: Options<D>,
    status: watch::Sender<Status>,
) -> Result<(), RunError> {
    let (mut shell, mut events) = Shell::new(options, status);
    shell.tell(Event::Tick);
    loop {
        if shell.machine.is_at_rest() {
            return Ok(());
        }
        let away = shell.failed_connects >= CONNECTS_ONCE;
        if let Some(why) = shell.machine.is_stuck().or(away.then(|| shell.last_error.clone())) {
            return Err(RunError::NotConverged(why));
        }
        shell.publish();
        let wakeup = shell.machine.next_wakeup(clock());
        tokio::select! {
            biased;
            Some(event) = events.recv() => shell.take(event),
            () = tokio::time::sleep_until(wakeup.into()) => shell.tell(Event::Tick),
        }
    }
}

/// `run --once` gives up on a database that refused this often.
const CONNECTS_ONCE: u32 = 3;

pub(super) enum Inner {
    Event(Event),
    Connected(Box<Connection>),
    /// So many gateways share the database.
    Attached(i64),
}

pub(super) struct Shell<D> {
    machine: Machine,
    pub(super) store: Store,
    pub(super) mode: SyncMode,
    pub(super) in_use: Option<InUse>,
    dataplane: DataplaneHandle<D>,
    /// Who asked for a resync and waits for its end.
    resyncs: Vec<oneshot::Sender<Result<(), String>>>,
    cache: Option<Cache>,
    pub(super) gateway: String,
    pub(super) template: Status,
    reader: Arc<Mutex<Reader>>,
    pub(super) listening: Option<JoinHandle<()>>,
    pub(super) events: mpsc::UnboundedSender<Inner>,
    status: watch::Sender<Status>,
    pub(super) failed_connects: u32,
    last_error: String,
}

impl<D: Host> Shell<D> {
    fn new(
        options: Options<D>,
        status: watch::Sender<Status>,
    ) -> (Self, mpsc::UnboundedReceiver<Inner>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let now = clock();
        let mut template = Status::default();
        template.gateway.name.clone_from(&options.gateway);
        template.agent.version = options.version.to_owned();
        template.agent.started_at = Some(Timestamp(now.wall));
        let shell = Self {
            machine: Machine::new(options.machine, now),
            store: options.store,
            mode: options.mode,
            in_use: None,
            dataplane: options.dataplane,
            resyncs: Vec::new(),
            gateway: options.gateway,
            template,
            cache: options.cache.clone(),
            reader: Arc::new(Mutex::new(Reader::new(options.cache.map(Cache::into_keeper)))),
            listening: None,
            events,
            status,
            failed_connects: 0,
            last_error: String::new(),
        };
        (shell, receiver)
    }

    fn take(&mut self, inner: Inner) {
        match inner {
            Inner::Event(event) => self.tell(event),
            Inner::Connected(connection) => self.connected(*connection),
            Inner::Attached(gateways) => self.attached(gateways),
        }
    }

    pub(super) fn tell(&mut self, event: Event) {
        if let Event::Disconnected { error } = &event {
            self.failed_connects += 1;
            self.last_error.clone_from(error);
            self.template.database.last_error = Some(error.clone());
            self.in_use = None;
            self.stop_listening();
        }
        for action in self.machine.handle(event, clock()) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            Action::Say(note) => say(&note),
            Action::Connect => self.spawn_connect(),
            Action::Read(kind) => self.spawn_read(kind),
            Action::Restore => self.spawn_restore(),
            Action::Observe => {
                let dataplane = self.dataplane.clone();
                self.spawn(async move {
                    let reading = dataplane.observe().await;
                    Event::Observed(reading.map(Box::new).map_err(|error| chain(&error)))
                });
            }
            Action::Glance => {
                let dataplane = self.dataplane.clone();
                self.spawn(async move {
                    Event::Glanced(dataplane.glance().await.map_err(|error| chain(&error)))
                });
            }
            Action::Apply(plan, observed) => {
                for step in plan.steps() {
                    debug!(phase = ?step.phase(), "{step}");
                }
                let dataplane = self.dataplane.clone();
                self.spawn(async move {
                    match dataplane.apply(plan, observed).await {
                        Ok(outcome) => Event::Applied(outcome),
                        // What the kernel holds is in doubt: read it.
                        Err(error) => Event::Observed(Err(chain(&error))),
                    }
                });
            }
            Action::Report(report) => {
                let store = self.store.clone();
                self.spawn(async move { Event::Reported(send(&store, report).await) });
            }
        }
    }

    fn spawn_read(&self, kind: ReadKind) {
        let (store, reader) = (self.store.clone(), self.reader.clone());
        let events = self.events.clone();
        let mode = self.in_use.map_or(Mode::Poll, |in_use| in_use.mode);
        tokio::spawn(async move {
            let answer = reader.lock().await.read(&store, kind, mode).await;
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
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || match cache.load() {
            Ok(Some((rows, changes))) => {
                drop(events.send(Inner::Event(Event::Restored(Box::new(rows), changes))));
            }
            Ok(None) => {}
            Err(error) => warn!("the last good rows are not used: {}", chain(&error)),
        });
    }

    fn spawn(&self, job: impl Future<Output = Event> + Send + 'static) {
        self.spawn_inner(async move { Inner::Event(job.await) });
    }

    pub(super) fn spawn_inner(&self, job: impl Future<Output = Inner> + Send + 'static) {
        let events = self.events.clone();
        // The loop may have ended meanwhile; then nobody waits for the answer.
        tokio::spawn(async move { drop(events.send(job.await)) });
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Peers(answer) => drop(answer.send(self.machine.peers())),
            Ask::Explain { who, destination, answer } => {
                match self.machine.explain(&who, &destination) {
                    Ok(answers) => {
                        let dataplane = self.dataplane.clone();
                        tokio::spawn(async move {
                            drop(answer.send(Ok(answers.counted(&dataplane).await)));
                        });
                    }
                    Err(why) => drop(answer.send(Err(why))),
                }
            }
            Ask::Resync(answer) => {
                self.tell(Event::Resync);
                self.resyncs.push(answer);
            }
            Ask::Confirm(answer) => {
                let held = self.machine.held().is_some();
                if held {
                    self.tell(Event::ConfirmRemovals);
                }
                drop(answer.send(if held {
                    Ok(())
                } else {
                    Err("no removal is held back".into())
                }));
            }
        }
    }

    /// Tells those who asked for a resync how it ended.
    fn answer_resyncs(&mut self) {
        if self.resyncs.is_empty() {
            return;
        }
        if let Some(end) = self.machine.settled() {
            for answer in self.resyncs.drain(..) {
                drop(answer.send(end.clone()));
            }
        }
    }

    fn prune(&self) {
        let store = self.store.clone();
        tokio::spawn(async move {
            match store.prune(KEEP_MARKS).await {
                Ok(marks) => debug!(marks, "pruned {marks} change marks"),
                Err(error) => debug!("change marks were not pruned: {}", chain(&error)),
            }
        });
    }

    fn publish(&self) {
        let mut status = self.machine.status();
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

    /// What is known is written before the end, but a dead database does not hold up a stop.
    async fn last_report(&mut self, events: &mut mpsc::UnboundedReceiver<Inner>) {
        let patience = tokio::time::sleep(Duration::from_secs(2));
        tokio::pin!(patience);
        while !self.machine.is_reported() {
            tokio::select! {
                () = &mut patience => return,
                Some(Inner::Event(event)) = events.recv() => self.tell(event),
                () = tokio::time::sleep(Duration::from_millis(50)) => self.tell(Event::Tick),
            }
        }
    }
}
