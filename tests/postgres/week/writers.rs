//! A portal that writes all the time, the same to both databases.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::servers::{OURS, Servers, TWIN};

/// Devices that come, go and get new keys.
const DEVICES: usize = 24;
/// Of each writer after each step. Enough that both databases answer as they then always do.
const ROUNDS: usize = 6;
/// Between two rounds of a writer: a portal has other things to do, too.
const PAUSE: Duration = Duration::from_millis(15);
/// In which a writer gets through its rounds.
const PATIENCE: Duration = Duration::from_secs(60);

type Writes = fn(usize) -> String;

/// Each in a session of its own.
const WRITERS: [(&str, Writes); 6] = [
    ("enrols devices", enrol),
    ("revokes devices", revoke),
    ("rotates keys", rotate),
    ("edits policies", edit_policies),
    ("moves members of groups", move_members),
    ("switches users off and on", switch_users),
];

/// The identifier of the thing of this kind and number, as an SQL expression.
pub fn id(kind: &str, number: usize) -> String {
    format!("md5('{kind}{number}')::uuid")
}

fn key(number: usize, version: usize) -> String {
    format!("encode(sha256('key {number} {version}'), 'base64')")
}

fn enrol(round: usize) -> String {
    let number = round % DEVICES;
    let (device, user) = (id("device", number), id("user", number % 8));
    let (peer, gateway) = (id("peer", number), id("gateway", 1));
    let (key, address) = (key(number, 0), number + 10);
    format!(
        "insert into devices (id, user_id, name, platform, device_fingerprint, public_key, approved_at)
             values ({device}, {user}, 'device-{number}', 'linux', 'print-{number}', 'none', now())
             on conflict (id) do update set status = 'active', revoked_at = null;
         insert into wireguard_peers (id, device_id, gateway_id, public_key, assigned_ip)
             values ({peer}, {device}, {gateway}, {key}, '10.8.0.{address}')
             on conflict (id) do nothing"
    )
}

fn revoke(round: usize) -> String {
    let device = id("device", (7 * round + 3) % DEVICES);
    format!("update devices set status = 'revoked', revoked_at = now() where id = {device}")
}

fn rotate(round: usize) -> String {
    let number = (5 * round) % DEVICES;
    let (key, peer) = (key(number, round), id("peer", number));
    format!("update wireguard_peers set public_key = {key}, updated_at = now() where id = {peer}")
}

fn edit_policies(round: usize) -> String {
    let (policy, destination) = (id("policy", round % 4), id("destination", round % 4));
    match round % 3 {
        0 => format!(
            "insert into policy_destinations (id, policy_id, destination)
             values ({destination}, {policy}, '10.60.{}.0/24') on conflict (id) do nothing",
            2 * (round % 4)
        ),
        1 => format!("update policies set is_active = not is_active where id = {policy}"),
        _ => format!("delete from policy_destinations where id = {destination}"),
    }
}

fn move_members(round: usize) -> String {
    let (member, group) = (id("member", round % 5), id("group", round % 2));
    let user = id("user", round % 5);
    if round % 10 < 5 {
        format!(
            "insert into group_memberships (id, group_id, user_id)
             values ({member}, {group}, {user}) on conflict (id) do nothing"
        )
    } else {
        format!("delete from group_memberships where id = {member}")
    }
}

fn switch_users(round: usize) -> String {
    let (user, is_active) = (id("user", round % 3), round.is_multiple_of(2));
    format!("update users set is_active = {is_active}, updated_at = now() where id = {user}")
}

/// What the writers met.
#[derive(Default)]
struct Tally {
    /// How often each writer met the same in both databases.
    agreed: [usize; WRITERS.len()],
    /// Why statements failed, where Gatepost is and in the twin.
    ours: BTreeSet<String>,
    twin: BTreeSet<String>,
    /// What each writer met last.
    last: [String; WRITERS.len()],
}

pub struct Portal {
    tally: Arc<Mutex<Tally>>,
    progress: watch::Receiver<()>,
    gate: Arc<RwLock<()>>,
    writers: Vec<JoinHandle<()>>,
}

impl Portal {
    pub fn start(servers: &Servers) -> Self {
        let (tally, gate) = (Arc::<Mutex<Tally>>::default(), Arc::<RwLock<()>>::default());
        let (says, progress) = watch::channel(());
        let says = Arc::new(says);
        let writers = WRITERS.into_iter().enumerate().map(|(number, (name, writes))| {
            let (tally, gate, says) = (tally.clone(), gate.clone(), says.clone());
            let mut sessions = [OURS, TWIN].map(|name| Session::new(servers.url("portal", name)));
            tokio::spawn(async move {
                for round in 0.. {
                    let passes = gate.read().await;
                    let statement = writes(round);
                    let [ours, twin] = &mut sessions;
                    let (ours, twin) = tokio::join!(ours.runs(&statement), twin.runs(&statement));
                    drop(passes);
                    tally.lock().unwrap().note(number, name, &ours, &twin);
                    says.send_replace(());
                    tokio::time::sleep(PAUSE).await;
                }
            })
        });
        let writers = writers.collect();
        Self { tally, progress, gate, writers }
    }

    /// Forgets what failed before.
    pub fn begin(&self, _event: &str) {
        let mut tally = self.tally.lock().unwrap();
        tally.ours.clear();
        tally.twin.clear();
    }

    /// Waits until each writer has met the same in both databases a few times.
    pub async fn goes_on(&mut self, event: &str) {
        let before = self.tally.lock().unwrap().agreed;
        let all_went_on = || {
            let now = self.tally.lock().unwrap().agreed;
            before.iter().zip(now).all(|(before, now)| now >= before + ROUNDS)
        };
        let goes_on = async {
            while !all_went_on() {
                self.progress.changed().await.unwrap();
            }
        };
        let went_on = tokio::time::timeout(PATIENCE, goes_on).await.is_ok();
        assert!(went_on, "{event}: a writer is held up: {:?}", self.tally.lock().unwrap().last);
    }

    /// No statement is under way, and none begins until the guard is dropped.
    pub async fn pause(&self) -> OwnedRwLockWriteGuard<()> {
        self.gate.clone().write_owned().await
    }

    /// Failures that the twin did not have, except for these SQLSTATEs.
    pub fn failed_here_alone(&self, tolerated: &[&str]) -> BTreeSet<String> {
        let tally = self.tally.lock().unwrap();
        // A session of the twin may have been idle when its server went away.
        let is_tolerated = |failure: &String| {
            failure.starts_with(AWAY) || tolerated.iter().any(|code| failure.starts_with(code))
        };
        let counts = |failure: &&String| {
            failure.contains("gatepost") || !is_tolerated(failure) && !tally.twin.contains(*failure)
        };
        tally.ours.iter().filter(counts).cloned().collect()
    }

    pub async fn stop(self) {
        for writer in &self.writers {
            writer.abort();
        }
    }
}

impl Tally {
    fn note(&mut self, number: usize, name: &str, ours: &Outcome, twin: &Outcome) {
        if ours == twin {
            self.agreed[number] += 1;
        }
        let told = |outcome: &Outcome| outcome.as_ref().err().map(|why| format!("{why} ({name})"));
        self.ours.extend(told(ours));
        self.twin.extend(told(twin));
        self.last[number] = format!("{name}: {ours:?}, twin: {twin:?}");
    }
}

/// Why a statement failed: its SQLSTATE and message.
type Outcome = Result<(), String>;

/// A server that is away, starts or stops, whichever of these a session meets.
const AWAY: &str = "57P the server is away";

struct Session {
    url: String,
    client: Option<Client>,
}

impl Session {
    const fn new(url: String) -> Self {
        Self { url, client: None }
    }

    async fn runs(&mut self, statement: &str) -> Outcome {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            _ => {
                let connected = tokio_postgres::connect(&self.url, NoTls).await;
                let (client, connection) = connected.map_err(|error| described(&error))?;
                tokio::spawn(connection);
                client
            }
        };
        let outcome = client.batch_execute(statement).await;
        self.client = Some(client);
        outcome.map_err(|error| described(&error))
    }
}

fn described(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) if !error.code().code().starts_with("57P") => {
            let context = error.where_().unwrap_or_default();
            format!("{} {} {context}", error.code().code(), error.message())
        }
        _ => AWAY.to_owned(),
    }
}
