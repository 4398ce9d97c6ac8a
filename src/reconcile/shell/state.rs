//! The shell's state, and how it carries out the machine's actions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::asked_peers::AskedPeers;
use super::block_file::{BlockFile, BlockFileError};
use super::cache::{Cache, Keeper, Rows};
use super::database::{Answer, Connection, Found, Reader, ask_about, lost};
use super::in_use::InUse;
use super::journal::say;
use super::kernel_job::{KERNEL_IS_STUCK, KernelJob};
use super::pending_blocks::PendingBlocks;
use super::presence::Presence;
use super::withdrawals::{Rememberer, WithdrawalsFile};
use crate::causes::causes;
use crate::dataplane::{Dataplane, DataplaneHandle};
use crate::model::GatewayId;
use crate::reconcile::clock;
use crate::reconcile::error::{DatabaseError, RunError};
use crate::reconcile::event::{Action, Event, KernelChange, ReadAnswer, ReadKind, Sent};
use crate::reconcile::hints::{Heard, Hints};
use crate::reconcile::history::MARKS_KEPT_FOR;
use crate::reconcile::machine::Machine;
use crate::reconcile::options::{MachineOptions, SyncMode};
use crate::reconcile::view::ResyncError;
use crate::reconcile::view::status::{LastGoodStatus, PeerCounts, State, Status, Timestamp};
use crate::store::{Attached, Proven, Store};

/// Everything the loop needs.
pub struct Options<D> {
    pub machine: MachineOptions,
    pub store: Store,
    pub mode: SyncMode,
    pub dataplane: DataplaneHandle<D>,
    /// Changes that the kernel announces.
    pub kernel_events: mpsc::Receiver<KernelChange>,
    /// News from a broker; `None`: no `[hints]`.
    pub hints: Option<Hints>,
    /// Where the last good rows are kept; `None`: they are not kept.
    pub cache: Option<Cache>,
    /// Where the host's block list is kept.
    pub block_file: BlockFile,
    /// `gateways.name`, from the configuration.
    pub gateway: String,
    pub version: &'static str,
}

pub(super) const PRUNE_EVERY: Duration = Duration::from_secs(3_600);

/// A quiet loop goes round at least this often, so that a watchdog does not take it for dead.
pub const ROUND_AT_MOST: Duration = Duration::from_secs(10);

/// `run --once` gives up when so many tries in a row to read the database have failed, or to report.
const TRIES_ONCE: u32 = 3;

pub(super) enum Inner {
    Event(Event),
    /// A read ended, with a copy of its rows for the cache.
    Read(Result<ReadAnswer, DatabaseError>, Option<Rows>),
    Connected(Box<Connection>),
    DataplaneGone,
    Attached(Attached),
    Present(Proven, Option<Attached>),
    Reported(Box<Answer>),
    BlocksSaved(u64, Result<(), BlockFileError>),
    /// The state of the last good rows.
    Kept(LastGoodStatus),
    /// Why withdrawals are not on disk; `None`: they are.
    Remembered(Option<String>),
}

pub(super) struct Shell<D> {
    pub(super) machine: Machine,
    pub(super) store: Store,
    /// `None`: the agent makes one pass, and follows no changes.
    pub(super) mode: Option<SyncMode>,
    pub(super) in_use: Option<InUse>,
    pub(super) presence: Presence,
    pub(super) dataplane: DataplaneHandle<D>,
    pub(super) dataplane_gone: bool,
    pub(super) kernel_job: KernelJob,
    /// The numbers of the comparisons that operators wait for.
    pub(super) resyncs: Vec<(u64, oneshot::Sender<Result<(), ResyncError>>)>,
    /// The callers that wait for the list of peers.
    pub(super) asked_peers: AskedPeers,
    pub(super) block_file: BlockFile,
    /// The changes of the block list that operators wait for.
    pub(super) blocks: PendingBlocks,
    cache: Option<Cache>,
    pub(super) keeper: Option<Keeper>,
    pub(super) rememberer: Option<Rememberer>,
    on_disk: OnDisk,
    /// The agent stops: what is under way comes to its end, and no other work begins.
    pub(super) winding_up: bool,
    pub(super) gateway: String,
    pub(super) template: Status,
    reader: Arc<Mutex<Reader>>,
    /// For which gateway to hear hints.
    pub(super) hints_for: Option<watch::Sender<Option<GatewayId>>>,
    pub(super) heard: Heard,
    pub(super) listening: Option<JoinHandle<()>>,
    pub(super) events: mpsc::UnboundedSender<Inner>,
    status: watch::Sender<Status>,
    /// In a row, without a read in between that succeeded.
    failed_reads: u32,
    failed_reports: u32,
    last_error: String,
}

/// What is on disk for the next start.
#[derive(Debug, Default)]
struct OnDisk {
    rows: LastGoodStatus,
    /// Why withdrawals are not.
    withdrawals: Option<String>,
}

impl OnDisk {
    fn status(&self) -> LastGoodStatus {
        match &self.withdrawals {
            Some(why) => LastGoodStatus::OutOfDate { why: why.clone() },
            None => self.rows.clone(),
        }
    }
}

impl<D: Dataplane + 'static> Shell<D> {
    pub(super) fn new(
        options: Options<D>,
        status: watch::Sender<Status>,
    ) -> (Self, mpsc::UnboundedReceiver<Inner>) {
        let (events, receiver) = mpsc::unbounded_channel();
        let now = clock::now();
        let keeper = options.cache.clone().map(|cache| {
            let events = events.clone();
            // The loop may have ended meanwhile.
            Keeper::start(cache, move |kept| drop(events.send(Inner::Kept(kept))))
        });
        let mut template = Status::default();
        template.gateway.name.clone_from(&options.gateway);
        template.agent.version = options.version.to_owned();
        template.agent.started_at = Some(Timestamp(now.wall));
        let rememberer = options.cache.as_ref().map(|cache| {
            let events = events.clone();
            let tells = move |why| drop(events.send(Inner::Remembered(why)));
            Rememberer::new(WithdrawalsFile::beside(cache), tells)
        });
        let shell = Self {
            machine: Machine::new(options.machine, now),
            store: options.store,
            mode: Some(options.mode),
            in_use: None,
            presence: Presence::default(),
            dataplane: options.dataplane,
            dataplane_gone: false,
            kernel_job: KernelJob::default(),
            resyncs: Vec::new(),
            asked_peers: AskedPeers::default(),
            block_file: options.block_file,
            blocks: PendingBlocks::default(),
            gateway: options.gateway,
            template,
            cache: options.cache,
            reader: Arc::new(Mutex::new(Reader::default())),
            hints_for: None,
            heard: Heard::default(),
            keeper,
            rememberer,
            on_disk: OnDisk::default(),
            winding_up: false,
            listening: None,
            events,
            status,
            failed_reads: 0,
            failed_reports: 0,
            last_error: String::new(),
        };
        (shell, receiver)
    }

    pub(super) fn receive(&mut self, inner: Inner) {
        match inner {
            Inner::Event(event) => self.handle(event),
            Inner::Read(answer, rows) => {
                if let (Some(keeper), Some(rows)) = (&self.keeper, rows) {
                    keeper.push(rows);
                }
                self.handle(Event::Read(answer));
            }
            Inner::Connected(connection) => self.connected(*connection),
            Inner::Attached(attached) => self.attached(attached),
            Inner::Present(proven, attached) => self.present(proven, attached),
            Inner::Reported(answer) => self.reported(*answer),
            Inner::Kept(kept) => {
                self.on_disk.rows = kept;
                self.kept();
            }
            Inner::Remembered(trouble) => {
                self.on_disk.withdrawals = trouble;
                self.kept();
            }
            Inner::BlocksSaved(number, saved) => self.blocks_saved(number, saved),
            Inner::DataplaneGone => self.dataplane_gone = true,
        }
    }

    fn kept(&mut self) {
        let kept = self.on_disk.status();
        let former = std::mem::replace(&mut self.template.last_good, kept.clone());
        // Said once for each change: a full disk lasts.
        let is_news = std::mem::discriminant(&kept) != std::mem::discriminant(&former);
        match (kept.why(), former.why()) {
            (Some(why), _) if is_news => {
                warn!(message_id = "70b41309d96a496186081850e9dcc08c", why, "{why}");
            }
            (None, Some(_)) => info!(
                message_id = "e95bc44355e4ed4525087ff2a93f8e64",
                "over: the rows in force are on disk again"
            ),
            _ => {}
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        self.kernel_job.hears(&event);
        match &event {
            Event::Disconnected { error } => {
                self.failed_reads += 1;
                self.last_error = error.to_string();
                self.template.database.last_error = Some(error.to_string());
                self.in_use = None;
                self.stop_listening();
            }
            Event::Read(Ok(_)) => self.failed_reads = 0,
            Event::Reported(Sent { error: Some(error), .. }) => {
                self.failed_reports += 1;
                self.last_error = error.to_string();
            }
            Event::Reported(_) => self.failed_reports = 0,
            _ => {}
        }
        for action in self.machine.handle(event, clock::now()) {
            self.carry_out(action);
        }
    }

    fn carry_out(&mut self, action: Action) {
        match action {
            action if self.winding_up && action.begins_work() => {}
            Action::Say(note) => say(&note),
            Action::Connect => self.spawn_connect(),
            Action::Read(kind) => self.spawn_read(kind),
            Action::Restore => self.spawn_restore(),
            Action::AskMarks { epoch, withdrawals } => {
                let store = self.store.clone();
                self.spawn_inner(async move {
                    let lost = lost(&store, &epoch, &withdrawals).await;
                    Inner::Event(Event::MarksAnswered { epoch, lost })
                });
            }
            Action::AskDevices(asked) => {
                let (store, gateway) = (self.store.clone(), self.gateway.clone());
                self.spawn_inner(
                    async move { Inner::Event(ask_about(asked, &gateway, &store).await) },
                );
            }
            Action::Remember(withdrawals) => {
                if let Some(rememberer) = &self.rememberer {
                    rememberer.write(withdrawals);
                }
            }
            Action::Keep(keep, held) => {
                if let Some(keeper) = &self.keeper {
                    keeper.keep(keep, held);
                }
            }
            Action::Observe => self.observe(),
            Action::Glance => self.glance(),
            Action::Apply(plan, observed) => self.apply(plan, observed),
            Action::Report(report) => self.report(report),
        }
    }

    fn spawn_read(&self, kind: ReadKind) {
        let (store, reader) = (self.store.clone(), self.reader.clone());
        let (events, keeps) = (self.events.clone(), self.keeper.is_some());
        let follows = self.mode.is_some();
        tokio::spawn(async move {
            let found = reader.lock().await.read(&store, kind).await;
            let answer = match found {
                Ok(Found { answer, unannounced, epoch }) => {
                    if let Some(epoch) = epoch {
                        drop(events.send(Inner::Event(epoch)));
                    }
                    if let Some(tables) = unannounced.filter(|_| follows) {
                        drop(events.send(Inner::Event(Event::Unannounced { tables })));
                    }
                    Ok(answer)
                }
                Err(error) => Err(DatabaseError::from(error)),
            };
            // A read may be the first to find that the database is gone, or no longer ours.
            let lost = answer.as_ref().err().cloned();
            let rows = answer.as_ref().ok().filter(|_| keeps).and_then(Rows::of);
            drop(events.send(Inner::Read(answer, rows)));
            if let Some(error) = lost {
                drop(events.send(Inner::Event(Event::Disconnected { error })));
            }
        });
    }

    fn spawn_restore(&self) {
        let (cache, events, gateway) =
            (self.cache.clone(), self.events.clone(), self.gateway.clone());
        tokio::task::spawn_blocking(move || {
            let loaded = cache.as_ref().map(|cache| cache.load(&gateway)).transpose();
            if let Err(error) = &loaded {
                warn!("the last good rows are not used: {}", causes(error));
            }
            let restored = match loaded.ok().flatten().flatten() {
                Some(last_good) => Event::Restored {
                    last_good: Box::new(last_good),
                    database_now: cache.as_ref().and_then(Cache::database_now),
                },
                None => Event::NothingRestored,
            };
            // The loop may have ended meanwhile.
            drop(events.send(Inner::Event(restored)));
        });
    }

    pub(super) fn spawn_inner(&self, job: impl Future<Output = Inner> + Send + 'static) {
        let events = self.events.clone();
        // The loop may have ended meanwhile; then the answer is not needed.
        tokio::spawn(async move { drop(events.send(job.await)) });
    }

    /// The process ends next, which frees everything at once: piece by piece that would take as long
    /// as to compare everything.
    pub(super) fn forget(self) {
        std::mem::forget(self.machine);
    }

    /// When to go round again, if nothing happens.
    pub(super) fn next_round(&self) -> Instant {
        let now = clock::now();
        let wakeup = self.machine.next_wakeup(now).min(now.instant + ROUND_AT_MOST);
        // A timer's instant stands still while the host is suspended.
        let wakeup = Instant::now() + wakeup.saturating_duration_since(now.instant);
        self.asked_peers.due().map_or(wakeup, |due| due.min(wakeup))
    }

    /// Why one pass will not end, if it will not.
    pub(super) fn gives_up(&self) -> Option<String> {
        if self.dataplane_gone {
            return Some(RunError::DataplaneGone.to_string());
        }
        if self.kernel_job.is_stuck(clock::now().instant) {
            return Some(KERNEL_IS_STUCK.into());
        }
        let failed = self.failed_reads.max(self.failed_reports);
        (failed >= TRIES_ONCE).then(|| self.last_error.clone())
    }

    pub(super) fn prune(&self) {
        let (store, connected) = (self.store.clone(), self.in_use.is_some());
        tokio::spawn(async move {
            loop {
                match store.prune(MARKS_KEPT_FOR).await {
                    Ok(0) => return,
                    Ok(marks) => debug!(marks, "pruned {marks} change marks"),
                    // That the database is unreachable is said already.
                    Err(error) if error.is_transient() && !connected => return,
                    Err(error) => {
                        return warn!("change marks were not pruned: {}", causes(&error));
                    }
                }
            }
        });
    }

    /// Says how far a job on the kernel is that takes long.
    pub(super) fn tell_progress(&mut self) {
        let PeerCounts { desired, in_kernel, .. } = self.status.borrow().peers;
        if in_kernel < desired && self.kernel_job.tells(clock::now().instant) {
            info!(
                in_kernel,
                desired, "working: {in_kernel} of {desired} peers are in the kernel so far"
            );
        }
    }

    pub(super) fn publish(&self) {
        let mut status = self.machine.view().status();
        status.add_last_good(&self.template.last_good);
        if self.kernel_job.is_stuck(clock::now().instant) {
            status.state = State::NotReady { why: KERNEL_IS_STUCK.into() };
        }
        let template = &self.template;
        status.gateway.name.clone_from(&template.gateway.name);
        if status.sync.mode.is_some() && status.sync.mode_why.is_empty() {
            status.sync.mode_why.clone_from(&template.sync.mode_why);
        }
        status.agent = template.agent.clone();
        status.database.last_error.clone_from(&template.database.last_error);
        status.database.schema_version = template.database.schema_version;
        status.tell_old_schema();
        self.status.send_if_modified(|held| {
            let changed = *held != status;
            *held = status;
            changed
        });
    }
}
