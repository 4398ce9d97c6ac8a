//! Whole agents in this process: the loop, the store and the sessions are the real ones, the kernel
//! is a model of it.

use std::time::{Duration, Instant};

use futures_util::future::{join_all, select_all};
use gatepost::dataplane::nft::ProfileCounters;
use gatepost::dataplane::{
    BackendInUse, Dataplane, DataplaneError, DataplaneHandle, Glance, Outcome, Reading,
    SharedObserved,
};
use gatepost::model::{BlockList, ObservedState, ProfileId, PublicKey};
use gatepost::plan::guard::MaxRemoved;
use gatepost::plan::{Plan, Step};
use gatepost::reconcile::status::{Mode, Status};
use gatepost::reconcile::{
    BlockFile, Hints, MachineOptions, Options, StaleOptions, StalePolicy, SyncMode, Timing,
    Withdrawals, run,
};
use gatepost::store::{ConnectOptions, Store, Tls};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::fleet::{local, name};

/// How long agents may take to be ready, or to end.
const PATIENCE: Duration = Duration::from_secs(180);

/// The agents of gateways 1, 2, ..., in order.
pub struct Crowd {
    pub agents: Vec<Agent>,
    /// Of all of them.
    pub writes: mpsc::UnboundedReceiver<Write>,
}

pub struct Agent {
    pub status: watch::Receiver<Status>,
    stop: watch::Sender<bool>,
    ended: JoinHandle<()>,
}

/// One plan that the model kernel obeyed.
pub struct Write {
    pub at: Instant,
    /// Peers that came or went.
    pub peers: Vec<PublicKey>,
}

/// How an agent reaches its database, and how it learns of changes.
pub struct Member {
    pub connect: ConnectOptions,
    pub mode: SyncMode,
    pub hints: Option<Hints>,
    /// `report.heartbeat`
    pub heartbeat: Duration,
}

impl Member {
    /// With the configuration's defaults and one session.
    pub fn new(url: String, mode: SyncMode) -> Self {
        // The pooler, which is reached over TCP, asks for nothing.
        let require_auth =
            url.contains("@127.0.0.1:").then(|| "none".parse().expect("it is a method"));
        let mut connect = ConnectOptions::new(url);
        connect.require_auth = require_auth;
        connect.pool_size = 1;
        connect.tls = Tls::Disable;
        Self { connect, mode, hints: None, heartbeat: Duration::from_secs(10) }
    }
}

impl Crowd {
    /// Starts the agents, and waits until the kernel of each is proven equal.
    pub async fn attach(members: impl IntoIterator<Item = Member>) -> Self {
        let (tell, writes) = mpsc::unbounded_channel();
        let started = members
            .into_iter()
            .enumerate()
            .map(|(index, member)| Agent::start(index + 1, member, tell.clone()));
        let mut crowd = Self { agents: started.collect(), writes };
        let all = join_all(crowd.agents.iter_mut().map(Agent::ready));
        tokio::time::timeout(PATIENCE, all).await.expect("every agent gets ready");
        let agreed = tokio::time::timeout(PATIENCE, crowd.agree()).await;
        agreed.expect("all choose the same mode");
        for agent in &crowd.agents {
            // One that is not told of changes measures something else: it reads everything instead.
            assert_eq!(agent.status.borrow().warnings, [""; 0]);
        }
        while crowd.writes.try_recv().is_ok() {}
        crowd
    }

    /// Waits until all chose the same mode: the first ones may have known of few others.
    async fn agree(&mut self) {
        loop {
            let first = self.mode();
            let mode = |agent: &Agent| agent.status.borrow().sync.mode;
            if self.agents.iter().all(|agent| mode(agent) == Some(first)) {
                return;
            }
            let changes = self.agents.iter_mut().map(|agent| Box::pin(agent.status.changed()));
            select_all(changes).await.0.unwrap();
        }
    }

    /// The mode they chose.
    pub fn mode(&self) -> Mode {
        let status = self.agents.first().map(|agent| agent.status.borrow().sync.mode);
        status.flatten().expect("an agent that is ready has a mode")
    }

    pub async fn detach(self) {
        for agent in &self.agents {
            let _ = agent.stop.send(true);
        }
        let all = join_all(self.agents.into_iter().map(|agent| agent.ended));
        let ended = tokio::time::timeout(PATIENCE, all).await.expect("every agent ends");
        ended.into_iter().for_each(|end| end.unwrap());
    }
}

impl Agent {
    fn start(gateway: usize, member: Member, writes: mpsc::UnboundedSender<Write>) -> Self {
        let Member { connect, mode, hints, heartbeat } = member;
        let kernel = Kernel { state: ObservedState::default(), writes };
        let (_, kernel_events) = mpsc::channel(1);
        let options = Options {
            machine: machine(gateway, heartbeat),
            store: Store::connect(&connect).unwrap(),
            mode,
            dataplane: DataplaneHandle::spawn(move || Ok(kernel)).unwrap(),
            kernel_events,
            hints,
            cache: None,
            block_file: BlockFile::new("/nonexistent/blocked".into()),
            gateway: name(gateway),
            version: "bench",
        };
        let (_, asks) = mpsc::channel(1);
        let (say, status) = watch::channel(Status::default());
        let (stop, stopped) = watch::channel(false);
        let ended = tokio::spawn(async move {
            run(options, asks, say, stopped, || ()).await.unwrap();
        });
        Self { status, stop, ended }
    }

    async fn ready(&mut self) {
        self.status.wait_for(|status| status.state.is_ready()).await.unwrap();
    }
}

/// The defaults of the configuration but for the heartbeat.
fn machine(gateway: usize, heartbeat: Duration) -> MachineOptions {
    MachineOptions {
        local: local(),
        block_list: BlockList::default(),
        timing: Timing {
            poll_interval: Duration::from_secs(1),
            safety_poll_interval: Duration::from_secs(10),
            resync_interval: Duration::from_secs(600),
            report_interval: Duration::from_secs(15),
            heartbeat,
            heartbeat_among_many: heartbeat,
            seed: gateway as u64,
        },
        max_removed: MaxRemoved::default(),
        lost_history: Duration::from_secs(3_600),
        withdrawals: Withdrawals::default(),
        stale: StaleOptions { policy: StalePolicy::Keep, after: Duration::from_secs(86_400) },
    }
}

/// Obeys every step, and says when.
struct Kernel {
    state: ObservedState,
    writes: mpsc::UnboundedSender<Write>,
}

impl Dataplane for Kernel {
    fn observe(&mut self) -> Result<Reading, DataplaneError> {
        let backend = Some(BackendInUse::Kernel);
        Ok(Reading { state: self.state.clone(), backend, ..Reading::default() })
    }

    fn glance(&mut self) -> Result<Glance, DataplaneError> {
        let ObservedState { interface, routes, routing, .. } = &self.state;
        Ok(Glance {
            interface: interface.clone(),
            routes: routes.clone(),
            routing: routing.clone(),
            firewall_is_current: true,
        })
    }

    /// It forwards nothing.
    fn counters_of(&mut self, _: ProfileId) -> Result<Option<ProfileCounters>, DataplaneError> {
        Ok(None)
    }

    fn apply(&mut self, plan: &Plan, observed: &SharedObserved) -> Outcome {
        let mut peers = Vec::new();
        for step in plan.steps() {
            self.state.apply(step);
            observed.apply(step);
            if let Step::AddPeer { key, .. } | Step::RemovePeer { key } = step {
                peers.push(*key);
            }
        }
        // The benchmark may have stopped listening.
        let _ = self.writes.send(Write { at: Instant::now(), peers });
        Outcome { applied: plan.steps().len(), ..Outcome::default() }
    }
}
