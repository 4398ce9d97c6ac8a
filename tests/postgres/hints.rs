//! An agent that follows hints: from the first sign of life of a bell to its silence, and back.

use std::pin::pin;
use std::time::Duration;

use gatepost::reconcile::status::{Mode, Status};
use gatepost::reconcile::{Hearing, SyncMode, hints};

use crate::agent::{Memory, agent, good_peer};
use crate::running::{PATIENCE, Running};
use crate::world::World;

/// An agent, and what it hears.
struct Follower {
    world: World,
    host: Memory,
    hearing: Hearing,
    running: Running,
}

impl Follower {
    async fn start(mode: SyncMode) -> Self {
        let (world, host) = (World::new().await, Memory::default());
        let mut options = agent(&world, host.clone()).await;
        let (heard, hearing) = hints();
        (options.mode, options.hints) = (mode, Some(heard));
        // What is found, is found because of a hint.
        options.machine.timing.safety_poll_interval = Duration::from_secs(600);
        options.machine.timing.heartbeat = Duration::from_secs(600);
        let mut follower = Self { world, host, hearing, running: Running::start(options) };
        follower.until(|status| status.state.is_ready()).await;
        follower
    }

    async fn until(&mut self, what: impl FnMut(&Status) -> bool) -> Status {
        let reached = tokio::time::timeout(PATIENCE, self.running.status.wait_for(what)).await;
        reached.expect("the status comes to that").unwrap().clone()
    }

    async fn until_mode(&mut self, mode: Mode) -> Status {
        self.until(|status| status.sync.mode == Some(mode)).await
    }

    fn sign_of_life(&self) {
        self.hearing.heard.send_modify(|heard| heard.signs_of_life += 1);
    }

    fn hint(&self) {
        self.hearing.heard.send_modify(|heard| heard.hints += 1);
    }

    /// Waits for this while the bell gives signs of life.
    async fn meanwhile(&self, work: impl Future<Output = ()>) {
        let mut work = pin!(work);
        while tokio::time::timeout(Duration::from_millis(20), &mut work).await.is_err() {
            self.sign_of_life();
        }
    }

    /// Waits for a peer in the kernel, while the bell gives signs of life or is silent.
    async fn until_peers(&self, peers: usize, alive: bool) {
        let found = async {
            while self.host.state().peers.len() != peers {
                if alive {
                    self.sign_of_life();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.expect("the peer is found");
    }
}

#[tokio::test]
async fn an_agent_follows_a_bell_that_it_hears_and_polls_while_it_is_silent() {
    let mut agent = Follower::start(SyncMode::Auto).await;
    assert_eq!(agent.running.status.borrow().sync.mode, Some(Mode::Listen), "no bell is heard");
    let gateway = *agent.hearing.gateway.borrow();
    assert_eq!(gateway.map(|gateway| gateway.0), Some(agent.world.gateway));
    agent.sign_of_life();
    let status = agent.until_mode(Mode::Hints).await;
    assert_eq!((&*status.sync.mode_why, status.sync.poll_interval_ms), ("a bell is heard", None));

    // The agent reads once more for the new mode. What it finds after the second hint, it finds after that.
    for peers in [1, 2] {
        agent.meanwhile(good_peer(&agent.world, peers)).await;
        agent.hint();
        agent.until_peers(peers.into(), true).await;
    }
    // Writers do not notify this agent, and it does not ask before it is told.
    let unasked = async {
        good_peer(&agent.world, 3).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    agent.meanwhile(unasked).await;
    assert_eq!(agent.host.state().peers.len(), 2);
    agent.hint();
    agent.until_peers(3, true).await;

    let trouble = Some("NATS is away".to_owned());
    agent.hearing.heard.send_modify(|heard| heard.trouble = trouble);
    let status = agent.until_mode(Mode::Poll).await;
    let why = &status.sync.mode_why;
    assert!(
        why.starts_with("no bell has been heard since 2") && why.ends_with("(NATS is away)"),
        "{why}"
    );
    assert_eq!(status.sync.poll_interval_ms, Some(1_000));
    assert!(status.state.is_ready() && status.database.connected, "the database is not away");
    assert!(status.warnings.iter().any(|warning| warning.starts_with(why.as_str())), "{status:#?}");
    good_peer(&agent.world, 4).await;
    agent.until_peers(4, false).await;

    agent.sign_of_life();
    let status = agent.until_mode(Mode::Hints).await;
    assert!(!status.warnings.iter().any(|warning| warning.contains("bell")), "{status:#?}");
}

#[tokio::test]
async fn an_agent_that_is_to_follow_hints_polls_until_it_hears_a_bell() {
    let mut agent = Follower::start(SyncMode::Hints).await;
    let status = agent.until(|status| !status.warnings.is_empty()).await;
    assert_eq!(status.sync.mode, Some(Mode::Poll));
    good_peer(&agent.world, 1).await;
    agent.until_peers(1, false).await;
    agent.sign_of_life();
    agent.until_mode(Mode::Hints).await;
}

#[tokio::test]
async fn a_flood_of_hints_holds_nothing_up() {
    let mut agent = Follower::start(SyncMode::Auto).await;
    agent.sign_of_life();
    agent.until_mode(Mode::Hints).await;
    let flood = async {
        loop {
            agent.hint();
            tokio::task::yield_now().await;
        }
    };
    let work = async {
        good_peer(&agent.world, 1).await;
        agent.until_peers(1, true).await;
        agent.world.run("update devices set status = 'blocked'").await;
        agent.until_peers(0, true).await;
    };
    tokio::select! {
        () = flood => unreachable!(),
        () = work => {}
    }
}
