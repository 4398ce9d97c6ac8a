//! Withdrawals act whatever stands in the way: real packets for each single obstacle.

mod obstacles;

use std::cell::RefCell;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use obstacles::{Learns, OBSTACLES, Obstacle};

use crate::lab::{
    Agent, BINARY, Backend, Client, Download, Fault, LAN_OTHER, LAN_SERVER, Lab, eventually,
    peer_rows, policy_rows, run,
};

/// Peers whose clients never connect: enough that their removal would be held back.
const OTHERS: usize = 14;
/// Datagrams that must not come after the last one.
pub const TRIED_IN_VAIN: u64 = 100;
/// So many that do not come are the end: on a busy machine a userspace device may rest for a second.
pub const QUIET: u64 = 500;
/// From the commit, or from the time of a scheduled revocation, to the last packet. Without its
/// notification a change would be found 10 s later.
const BOUND: Duration = Duration::from_secs(5);
/// An emulated processor is twenty times slower.
const BOUND_EMULATED: Duration = Duration::from_secs(20);
/// So long before its time a revocation is scheduled.
const AHEAD_SECS: u64 = 20;

/// A gateway whose obstacles come and go, and four clients.
struct Scene {
    agent: RefCell<Option<Agent>>,
    /// Is revoked.
    alice: Client,
    /// Keeps one of its two hosts.
    bob: Client,
    /// Is not concerned.
    carol: Client,
    /// Is let in at the same moment, where anything may be granted.
    dave: Client,
    lab: Lab,
}

/// How long a withdrawal may take.
pub const fn bound(lab: &Lab) -> Duration {
    match lab.backend {
        Backend::Userspace => BOUND,
        Backend::Kernel => BOUND_EMULATED,
    }
}

impl Scene {
    fn open() -> Self {
        let lab = Lab::open();
        let [alice, bob, carol, dave] = ["alice", "bob", "carol", "dave"].map(|it| lab.client(it));
        fs::write(lab.folder.path().join("psk.keys"), format!("k1 {}\n", run("wg", &["genpsk"])))
            .unwrap();
        for client in [&alice, &bob, &carol] {
            lab.database.exec(&client.rows());
            lab.database.exec(&policy_rows(&client.name, &client.name, "10.20.0.0/24"));
        }
        // A device that is not on the gateway yet.
        lab.database.exec(&format!(
            "{}; delete from wireguard_peers where public_key = '{}'",
            dave.rows(),
            dave.key
        ));
        for number in 0..OTHERS {
            let (name, address) = (format!("other{number}"), format!("10.99.1.{number}"));
            let key = lab.database.value(&format!("select encode(sha256('{name}'), 'base64')"));
            lab.database.exec(&peer_rows(&name, &key, &address));
        }
        lab.database.exec("create table right_row as select * from gateways");
        let agent = RefCell::new(Some(lab.start()));
        carol.connect();
        Self { agent, alice, bob, carol, dave, lab }
    }

    fn sql(&self, sql: &str) {
        self.lab.database.exec(sql);
    }

    /// Kills the agent, does this, and starts the next one.
    fn restart(&self, between: impl FnOnce()) {
        let agent = self.agent.take().unwrap();
        agent.end(Signal::SIGKILL);
        between();
        self.agent.replace(Some(self.lab.launch(BINARY.as_ref())));
    }

    fn reread_configuration(&self) {
        self.agent.borrow().as_ref().unwrap().signal(Signal::SIGHUP);
    }

    /// Why the agent is not ready.
    fn why(&self) -> String {
        match self.lab.ask_status() {
            Ok(status) if status["state"] == "not_ready" => {
                status["why"].as_str().unwrap_or_default().to_owned()
            }
            _ => String::new(),
        }
    }

    /// Everyone is connected, and both that will lose something download.
    fn downloads(&self) -> [Download; 2] {
        [&self.alice, &self.bob].map(|client| {
            client.connect();
            eventually("the LAN answers", || {
                client.reaches(LAN_SERVER) && client.reaches(LAN_OTHER)
            });
            let download = Download::start(client, &self.lab.lan);
            download.await_more(20);
            download
        })
    }

    /// Revokes one device and narrows the policy of another, and returns when.
    fn withdraw_by_rows(&self) -> Instant {
        self.sql(&format!(
            "{}; update policy_destinations set destination = '{LAN_OTHER}/32'
                 where policy_id = (select id from policies where name = 'bob');
             insert into wireguard_peers (device_id, gateway_id, public_key, assigned_ip)
                 select d.id, g.id, d.public_key, '{}' from devices d, gateways g
                 where device_fingerprint = 'dave'",
            self.alice.revocation(),
            self.dave.address
        ));
        Instant::now()
    }

    /// Schedules the revocation of one device, before any obstacle, and returns for when.
    fn schedule(&self) -> Instant {
        self.sql(&format!(
            "update devices set revoked_at = clock_timestamp() + '{AHEAD_SECS} s'
                 where device_fingerprint = '{}'",
            self.alice.name
        ));
        let at = Instant::now() + Duration::from_secs(AHEAD_SECS);
        let proven =
            self.lab.database.value("select bool_and(is_proven) from gatepost.await_sync()");
        assert_eq!(proven, "t", "the agent knows of it");
        at
    }

    fn grant_again(&self) {
        self.sql(&format!(
            "update devices set status = 'active', revoked_at = null;
             update policy_destinations set destination = '10.20.0.0/24';
             delete from wireguard_peers where public_key = '{}'",
            self.dave.key
        ));
    }

    /// One obstacle, from the beginning to the end.
    fn pass(&self, obstacle: &Obstacle) {
        let Obstacle { what, set, in_force, remove, learns, grants } = obstacle;
        let lab = &self.lab;
        let [of_alice, of_bob] = self.downloads();
        let scheduled = (*learns == Learns::NoRows).then(|| self.schedule());
        let before = lab.log().len();
        set(self);
        eventually(what, || in_force(self, &lab.log()[before..]));
        let fault = match learns {
            Learns::Rows => {
                format!("{what}, while a revocation and a narrowed policy are committed")
            }
            Learns::NoRows => {
                format!("{what}, while a scheduled revocation comes and a user is blocked")
            }
        };
        let expected = "withdrawals act at once; other peers lose no packet";
        let mut fault = Fault::new(lab, &fault, expected).spares(self.carol.ping(LAN_SERVER, 20));
        if *learns == Learns::Rows {
            fault = fault.spares(self.bob.ping(LAN_OTHER, 20));
        }
        let (alice_since, bob_since) = match scheduled {
            None => {
                let committed = self.withdraw_by_rows();
                (committed, committed)
            }
            Some(at) => {
                assert!(Instant::now() < at, "{what}: the revocation came before the obstacle");
                let (code, out, err) = lab.gatepost(&["block", "bob"]);
                assert_eq!(code, 0, "{what}: {out}{err}");
                (at, Instant::now())
            }
        };
        eventually(what, || Instant::now() > alice_since);
        let ends = Download::await_ends([&of_alice, &of_bob], QUIET);
        of_alice.await_sent(TRIED_IN_VAIN);
        assert_eq!([&of_alice, &of_bob].map(|it| it.came().last), ends.map(Some), "{what}");
        let [alice_took, bob_took] = [(ends[0], alice_since), (ends[1], bob_since)]
            .map(|(end, since)| end.saturating_duration_since(since));
        println!("{what}: last packets after {alice_took:?} and {bob_took:?}");
        let took = alice_took.max(bob_took);
        assert!(took < bound(&self.lab), "{what}: the last packet came after {took:?}");
        eventually(&format!("{what} is still there"), || in_force(self, &lab.log()[before..]));
        if !grants {
            assert!(!lab.kernel_peers().contains(&self.dave.key), "{what}: a peer was added");
        }
        fault.converged(took);
        drop((of_alice, of_bob));
        remove(self);
        self.grant_again();
        lab.gatepost(&["unblock", "bob"]);
        lab.await_ready();
    }
}

#[test]
fn revoked_and_narrowed_peers_lose_their_packets_whatever_stands_in_the_way() {
    let scene = Scene::open();
    for obstacle in OBSTACLES {
        scene.pass(obstacle);
    }
}
