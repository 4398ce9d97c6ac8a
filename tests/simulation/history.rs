//! A history: what happens to an agent, as a string of bytes says; then calm, in which all must end well.

use std::sync::Arc;
use std::time::Duration;

use gatepost::model::{Block, BlockList, Whom};
use gatepost::reconcile::{Event, Mode};

use super::bytes::Bytes;
use super::tables::{Change, DEVICES, device_id};
use super::work::away;
pub use super::world::Figures;
use super::world::World;

const SECOND: Duration = Duration::from_secs(1);
/// Nothing goes on for ever after the troubles have ended: the longest waits end within this time.
const UNTIL_CONFIRMED: Duration = Duration::from_secs(30);
const UNTIL_SETTLED: Duration = Duration::from_secs(75);
const CALM: Duration = Duration::from_secs(60);
/// `report.heartbeat`, and time to read what it rests on.
const PROOF_AGE: Duration = Duration::from_secs(12);

/// How a history ended.
#[derive(Debug)]
pub struct Ended {
    pub failure: Option<String>,
    pub story: Vec<String>,
    pub figures: Figures,
}

/// Lives through the history that the bytes choose.
pub fn live(bytes: &[u8], tells: bool) -> Ended {
    let mut bytes = Bytes::new(bytes);
    let mut world = World::new(&mut bytes, tells);
    while !bytes.is_over() && world.failure.is_none() {
        world.happen(&mut bytes);
    }
    if world.failure.is_none() {
        world.calm_down();
    }
    Ended { failure: world.failure, story: world.story.unwrap_or_default(), figures: world.figures }
}

impl World {
    fn happen(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(32) {
            0..10 => {
                let chosen = bytes.below(8);
                self.advance(chosen, bytes);
            }
            10..14 => self.work(bytes),
            14..17 => self.wake_up(bytes),
            17..20 => {
                self.note(|| "commit".into());
                let now = self.moment();
                self.database.write(bytes, now);
                self.announce(bytes);
            }
            20 => {
                let now = self.moment();
                self.database.begin(bytes, now);
            }
            21 => {
                let now = self.moment();
                if self.database.end(bytes, now) {
                    self.note(|| "commit of an earlier transaction".into());
                    self.announce(bytes);
                }
            }
            22 | 23 => self.edit(bytes),
            24 => self.break_database(bytes),
            25 => self.mend_database(),
            26 => {
                self.host.refuse(bytes);
                self.note(|| "the kernel refuses from now on".into());
            }
            27 => {
                self.host.obey();
                self.host.is_readable = !bytes.one_in(3);
                let is_readable = self.host.is_readable;
                self.note(|| format!("the kernel obeys, readable: {is_readable}"));
            }
            28 => self.crash(),
            29 => self.fail_over(bytes),
            30 => self.operate(bytes),
            _ => self.hear(),
        }
    }

    /// The database's time of a commit: no two are of the same moment.
    fn moment(&mut self) -> std::time::SystemTime {
        self.elapsed += Duration::from_micros(1);
        self.database_now()
    }

    /// What waits is heard.
    fn hear(&mut self) {
        if let Some(what) = self.host.events.pop_front() {
            self.tell(Event::KernelChanged { why: what.into() });
        } else if self.hints > 0 {
            self.hints -= 1;
            if self.agent.is_connected {
                self.tell(Event::Notified);
            }
        } else {
            self.tell(Event::Tick);
        }
    }

    /// A commit is announced: at once, late, twice or not at all.
    fn announce(&mut self, bytes: &mut Bytes<'_>) {
        if !self.agent.is_connected || self.agent.mode == Mode::Poll || !self.database.is_up {
            return;
        }
        match bytes.below(8) {
            0..4 => self.tell(Event::Notified),
            4 => {
                self.tell(Event::Notified);
                self.tell(Event::Notified);
            }
            5 | 6 => self.hints += 1,
            _ => {}
        }
    }

    /// What is under way comes to its end.
    fn work(&mut self, bytes: &mut Bytes<'_>) {
        for _ in 0..400 {
            if self.under_way() == 0 || self.failure.is_some() {
                return;
            }
            self.pass(Duration::from_micros(200));
            self.advance(0, bytes);
        }
        self.fail("the machine never rests");
    }

    /// Time goes by: less than until the machine wants to be called, as long, or more.
    fn wake_up(&mut self, bytes: &mut Bytes<'_>) {
        let due = self.until_wakeup();
        let time = match bytes.below(4) {
            0 | 1 => due,
            2 => due.mul_f64(f64::from(bytes.next()) / 255.0),
            _ => due + Duration::from_millis(u64::from(bytes.next())),
        };
        // Whatever sleeps, the shell goes round this often.
        self.pass(time.min(10 * SECOND));
        self.tell(Event::Tick);
    }

    fn break_database(&mut self, bytes: &mut Bytes<'_>) {
        let what = bytes.below(4);
        self.note(|| format!("the database breaks ({what})"));
        match what {
            0 => self.database.is_readable = false,
            1 => self.database.takes_reports = false,
            2 => self.database.is_up = false,
            _ => {}
        }
        if what >= 2 {
            self.tell(Event::Disconnected { error: away() });
        }
    }

    fn mend_database(&mut self) {
        let database = &mut self.database;
        (database.is_up, database.is_readable, database.takes_reports) = (true, true, true);
        self.note(|| "the database is back".into());
    }

    fn fail_over(&mut self, bytes: &mut Bytes<'_>) {
        let commits = bytes.below(4);
        self.note(|| format!("failover, {commits} commits are lost"));
        let now = self.moment();
        self.database.lose(commits, now);
        self.commits_were_lost();
        if self.agent.is_connected {
            self.tell(Event::Disconnected { error: away() });
        }
    }

    fn operate(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(8) {
            0 => self.confirm(),
            1 | 2 => self.block(bytes),
            3 => self.tell(Event::Resync),
            4 => self.tell(Event::PeersAsked),
            5 => self.wall_is_off_secs = i64::from(bytes.next()) * 60 - 7_200,
            // By the time, so that the histories of before stay what they were.
            6 if self.elapsed.as_millis().is_multiple_of(2) => {
                self.tell(Event::KernelChanged { why: "nothing".into() });
            }
            6 => self.change_routing(),
            _ if self.agent.is_connected => self.tell(Event::Notified),
            _ => {}
        }
    }

    /// Another program adds a rule of policy routing, or removes it.
    fn change_routing(&mut self) {
        self.host.change_routing();
        self.tell(Event::RoutingChanged);
    }

    fn confirm(&mut self) {
        self.oracle.confirmed_at = Some(self.elapsed);
        self.oracle.out.confirmed();
        let until = self.database_now();
        self.tell(Event::ConfirmRemovals { until, let_in_until: Some(until) });
    }

    fn block(&mut self, bytes: &mut Bytes<'_>) {
        let mut list = BlockList::clone(&self.blocks);
        let device = Whom::Device(device_id(1 + bytes.below(usize::from(DEVICES)) as u8));
        if list.remove(&device).is_none() {
            list.add(device, Block { name: "a device".into(), since: self.database_now() });
        }
        self.blocks = Arc::new(list);
        self.tell(Event::Blocks(self.blocks.clone()));
    }

    /// All troubles end. The kernel becomes what the rows ask for, that is proven, and nothing more is
    /// written.
    fn calm_down(&mut self) {
        self.note(|| "calm".into());
        self.mend_database();
        self.host.obey();
        self.host.is_readable = true;
        if !self.database.latest().tables.is_buildable() {
            let now = self.moment();
            self.database.mend_gateway(&Change::ListenPort(51820), now);
        }
        while self.failure.is_none() && (!self.host.events.is_empty() || self.hints > 0) {
            self.hear();
        }
        self.live_on(UNTIL_CONFIRMED);
        self.confirm();
        self.live_on(UNTIL_SETTLED);
        self.check_settled();
        let before = self.figures;
        self.live_on(CALM);
        self.check_settled();
        let (after, seconds) = (self.figures, CALM.as_secs());
        if after.steps != before.steps {
            self.fail("a settled agent writes to the kernel");
        }
        if after.notes != before.notes {
            self.fail("a settled agent has something to say");
        }
        if after.looks - before.looks > seconds / 10 + 2 {
            self.fail("a settled agent reads the kernel too often");
        }
        if after.events - before.events > seconds * 10 {
            self.fail("a settled agent is busy");
        }
    }

    /// Lets time go by, in which everything works at once.
    fn live_on(&mut self, time: Duration) {
        let (end, mut idle) = (self.elapsed + time, 0);
        let mut bytes = Bytes::new(&[]);
        while self.failure.is_none() {
            self.work(&mut bytes);
            let due = self.until_wakeup();
            idle = if due.is_zero() { idle + 1 } else { 0 };
            if idle > 20 {
                return self.fail("it wakes up again and again, and does nothing");
            }
            if self.elapsed + due >= end {
                self.pass(end.saturating_sub(self.elapsed));
                return;
            }
            self.pass(due.min(10 * SECOND));
            self.tell(Event::Tick);
        }
    }

    fn check_settled(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let tables = self.database.latest().tables.clone();
        let now = self.database_now();
        let wanted = self.oracle.cache.of(&tables, &self.blocks, now);
        if !wanted.is_met_by(&self.host.kernel.state) {
            let obstacle = self.agent.machine.view().obstacle();
            return self.fail(format!("the kernel is not as wanted in the end: {obstacle:?}"));
        }
        let proven = self.agent.machine.view().last_sync_at();
        if proven.is_none_or(|at| at + PROOF_AGE < now) {
            self.fail(format!("the last proof is as of {proven:?}, and it is {now:?}"));
        }
    }
}
