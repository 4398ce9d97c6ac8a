//! A fleet that no one machine holds, as a queue of operations before one database's processors.
//!
//! Deterministic for its seed and its [`Costs`]. What it leaves out: locks, the disk, the network
//! and the agents' own processors.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use gatepost::reconcile::status::Mode;

use super::costs::Costs;

const SEED: u64 = 71;
/// Simulated, after a second in which all begins.
const SECS: f64 = 60.0;
/// Between two looks of a bell, which addresses marks at each.
const LOOK_EVERY_SECS: f64 = 0.02;
/// The agent's own, see `reconcile::outbox`.
const REPORT_GAP_SECS: f64 = 0.25;
/// `gatepost.changes` gives up on more and wants everything read.
const MOST_MARKS: usize = 5_000;
/// A peer with traffic shakes hands so often.
const HANDSHAKE_EVERY_SECS: f64 = 120.0;
const STATEMENT_HANDSHAKES: f64 = 1_000.0;

/// What is asked of the database.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub processors: usize,
    pub gateways: usize,
    pub peers: usize,
    pub mode: Mode,
    pub changes_per_sec: f64,
    pub policies_per_min: f64,
    /// Peers with traffic.
    pub online: f64,
    /// Between two questions that nothing but the time asks for.
    pub question_interval_secs: f64,
    pub report_interval_secs: f64,
    pub heartbeat_secs: f64,
    pub resync_interval_secs: f64,
}

/// Who uses processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Writers,
    Notifications,
    Questions,
    Reports,
    Snapshots,
}

pub const PARTS: [Part; 5] =
    [Part::Writers, Part::Notifications, Part::Questions, Part::Reports, Part::Snapshots];

/// Per second.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub marks: f64,
    pub notifications: f64,
    pub questions: f64,
    pub deltas: f64,
    pub handshakes: f64,
    pub report_statements: f64,
    /// Processors that each of [`PARTS`] asks for, whether or not there are so many.
    pub busy: [f64; 5],
    /// From a commit to the rows at the agent, in seconds, sorted.
    pub lags_secs: Vec<f64>,
}

impl Outcome {
    pub fn total(&self) -> f64 {
        self.busy.iter().sum()
    }

    pub fn first(&self) -> Part {
        let most = |a: &&Part, b: &&Part| self.of(**a).total_cmp(&self.of(**b));
        *PARTS.iter().max_by(most).unwrap()
    }

    pub fn of(&self, part: Part) -> f64 {
        self.busy[part as usize]
    }

    /// Infinite where nothing arrived.
    pub fn lag_secs(&self, percent: usize) -> f64 {
        let index = (self.lags_secs.len() * percent).div_ceil(100).max(1) - 1;
        self.lags_secs.get(index).copied().unwrap_or(f64::INFINITY)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Commit,
    Policy,
    /// By timer, or woken.
    Question {
        gateway: usize,
        timed: bool,
    },
    Report {
        gateway: usize,
    },
    Heartbeat {
        gateway: usize,
    },
    Resync {
        gateway: usize,
    },
    /// Of the bell.
    Look,
}

/// What one gateway has not read yet.
#[derive(Default, Clone)]
struct Gateway {
    /// When each change for it was committed.
    waiting: Vec<f64>,
    /// Of all gateways' marks.
    marks_seen: usize,
    policies_seen: usize,
    reported_at: f64,
}

struct Simulation {
    load: Load,
    costs: Costs,
    random: fastrand::Rng,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    /// When each processor is free.
    free: Vec<f64>,
    gateways: Vec<Gateway>,
    /// When each mark was committed, and for whom.
    marks: Vec<(f64, usize)>,
    /// So many of them are addressed, those committed until then.
    addressed: usize,
    addressed_until: f64,
    policies: usize,
    outcome: Outcome,
}

pub fn simulate(load: Load, costs: Costs) -> Outcome {
    let mut simulation = Simulation {
        load,
        costs,
        random: fastrand::Rng::with_seed(SEED),
        events: BinaryHeap::new(),
        number: 0,
        free: vec![0.0; load.processors],
        gateways: vec![Gateway::default(); load.gateways],
        marks: Vec::new(),
        addressed: 0,
        addressed_until: 0.0,
        policies: 0,
        outcome: Outcome::default(),
    };
    simulation.begin();
    while let Some(Reverse((nanos, _, event))) = simulation.events.pop() {
        let at = nanos as f64 / 1e9;
        if at > SECS {
            break;
        }
        simulation.happen(at, event);
    }
    simulation.end()
}

impl Simulation {
    fn begin(&mut self) {
        self.commit_later(0.0);
        self.policy_later(0.0);
        if self.load.mode == Mode::Hints {
            self.at(0.0, Event::Look);
        }
        for gateway in 0..self.load.gateways {
            let phase = |random: &mut fastrand::Rng, every: f64| random.f64() * every;
            let load = self.load;
            let at = phase(&mut self.random, load.question_interval_secs);
            self.at(at, Event::Question { gateway, timed: true });
            let at = phase(&mut self.random, load.report_interval_secs);
            self.at(at, Event::Report { gateway });
            let at = phase(&mut self.random, load.heartbeat_secs);
            self.at(at, Event::Heartbeat { gateway });
            let at = phase(&mut self.random, load.resync_interval_secs);
            self.at(at, Event::Resync { gateway });
        }
    }

    fn happen(&mut self, at: f64, event: Event) {
        let (load, costs) = (self.load, self.costs);
        match event {
            Event::Commit => {
                let gateway = self.random.usize(..load.gateways);
                let (_, end) = self.serve(at, Part::Writers, costs.commit);
                self.marks.push((end, gateway));
                self.gateways[gateway].waiting.push(end);
                self.outcome.marks += 1.0;
                self.announce(end, vec![gateway]);
                self.commit_later(at);
            }
            Event::Policy => {
                let (_, end) = self.serve(at, Part::Writers, costs.commit);
                self.policies += 1;
                self.outcome.marks += 1.0;
                self.announce(end, (0..load.gateways).collect());
                self.policy_later(at);
            }
            Event::Look => {
                self.serve(at, Part::Questions, costs.look);
                self.address(at);
                self.at(at + LOOK_EVERY_SECS, Event::Look);
            }
            Event::Question { gateway, timed } => {
                let end = self.ask(at, gateway);
                if timed {
                    let next = end.max(at + load.question_interval_secs);
                    self.at(next, Event::Question { gateway, timed });
                }
            }
            Event::Report { gateway } => {
                let share =
                    load.report_interval_secs.min(HANDSHAKE_EVERY_SECS) / HANDSHAKE_EVERY_SECS;
                let handshakes = self.peers_each() * load.online * share;
                self.serve(at, Part::Reports, handshakes * costs.handshake);
                self.outcome.handshakes += handshakes;
                self.outcome.report_statements += (handshakes / STATEMENT_HANDSHAKES).ceil();
                self.at(at + load.report_interval_secs, Event::Report { gateway });
            }
            Event::Heartbeat { gateway } => {
                self.ask(at, gateway);
                self.serve(at, Part::Reports, costs.synced);
                self.at(at + load.heartbeat_secs, Event::Heartbeat { gateway });
            }
            Event::Resync { gateway } => {
                self.serve(at, Part::Snapshots, self.peers_each() * costs.snapshot_peer);
                self.at(at + load.resync_interval_secs, Event::Resync { gateway });
            }
        }
    }

    /// One gateway asks for changes. Returns when it has its answer.
    fn ask(&mut self, at: f64, gateway: usize) -> f64 {
        let start = at.max(self.free.iter().copied().fold(f64::INFINITY, f64::min));
        let hints = self.load.mode == Mode::Hints;
        // A bell addresses marks, and what it has not looked at is found after its next look. Without one every
        // mark is looked at by all.
        let until = if hints { self.addressed_until } else { start };
        let costs = self.costs;
        let reader = &mut self.gateways[gateway];
        let (read, later) = reader.waiting.iter().partition::<Vec<f64>, _>(|mark| **mark <= until);
        reader.waiting = later;
        let policies = self.policies - std::mem::replace(&mut reader.policies_seen, self.policies);
        let marks = self.marks.partition_point(|mark| mark.0 <= start);
        let passed = marks.saturating_sub(std::mem::replace(&mut reader.marks_seen, marks));
        let news = !read.is_empty() || policies > 0;
        self.outcome.questions += 1.0;
        self.outcome.deltas += f64::from(u8::from(news));

        let changes = if policies > 0 { costs.policy } else { costs.changes };
        let changes = changes + read.len() as f64 * costs.device;
        let delta = match self.load.mode {
            Mode::Hints => changes,
            Mode::Listen => changes + passed as f64 * costs.mark,
            // The first question is whether there is any mark, of whatever gateway.
            Mode::Poll if passed > 0 || policies > 0 => {
                costs.poll + changes + passed as f64 * costs.mark
            }
            Mode::Poll => costs.poll,
        };
        let (part, cost) = if !hints && passed > MOST_MARKS {
            (Part::Snapshots, self.peers_each() * costs.snapshot_peer)
        } else {
            (Part::Questions, delta)
        };
        let (_, end) = self.serve(start, part, cost);
        if news {
            self.tell_of_pass(end, gateway);
        }
        self.outcome.lags_secs.extend(read.iter().map(|mark| end - mark));
        end
    }

    /// What a pass changed is reported at once, but then only so often.
    fn tell_of_pass(&mut self, at: f64, gateway: usize) {
        let reported = &mut self.gateways[gateway].reported_at;
        if at >= *reported + REPORT_GAP_SECS {
            *reported = at;
            self.serve(at, Part::Reports, self.costs.audit + self.costs.synced);
        }
    }

    /// The bell addresses the marks that wait.
    fn address(&mut self, start: f64) {
        let marks = self.marks.partition_point(|mark| mark.0 <= start);
        let waiting = marks.saturating_sub(self.addressed);
        if waiting > 0 {
            self.addressed = marks;
            self.addressed_until = start;
            self.serve(start, Part::Questions, waiting as f64 * self.costs.address);
        }
    }

    /// A commit that concerns these gateways is announced to them, where that is the mode.
    fn announce(&mut self, at: f64, gateways: Vec<usize>) {
        match self.load.mode {
            Mode::Listen => self.wake(at, gateways),
            // At the bell's next look.
            Mode::Hints => {
                let look = (at / LOOK_EVERY_SECS).ceil() * LOOK_EVERY_SECS + self.costs.look;
                for gateway in gateways {
                    self.at(look, Event::Question { gateway, timed: false });
                }
            }
            Mode::Poll => {}
        }
    }

    /// A notification signals every session that listens, and these gateways ask.
    fn wake(&mut self, at: f64, gateways: Vec<usize>) {
        let listening = self.load.gateways as f64;
        self.outcome.notifications += listening;
        self.serve(at, Part::Notifications, listening * self.costs.notify);
        for gateway in gateways {
            self.at(at, Event::Question { gateway, timed: false });
        }
    }

    /// The processor that is free first does it. Returns when that began and ended.
    fn serve(&mut self, at: f64, part: Part, cost: f64) -> (f64, f64) {
        self.outcome.busy[part as usize] += cost;
        let first = self.free.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
        let start = at.max(*first);
        *first = start + cost;
        (start, *first)
    }

    fn peers_each(&self) -> f64 {
        self.load.peers as f64 / self.load.gateways as f64
    }

    fn commit_later(&mut self, at: f64) {
        let wait = exponential(&mut self.random, self.load.changes_per_sec);
        self.at(at + wait, Event::Commit);
    }

    fn policy_later(&mut self, at: f64) {
        let wait = exponential(&mut self.random, self.load.policies_per_min / 60.0);
        self.at(at + wait, Event::Policy);
    }

    fn at(&mut self, at: f64, event: Event) {
        if at > SECS {
            return;
        }
        self.number += 1;
        // Never earlier than what it follows.
        self.events.push(Reverse(((at * 1e9).ceil() as u64, self.number, event)));
    }

    fn end(self) -> Outcome {
        let mut outcome = self.outcome;
        for figure in [
            &mut outcome.marks,
            &mut outcome.notifications,
            &mut outcome.questions,
            &mut outcome.deltas,
            &mut outcome.handshakes,
            &mut outcome.report_statements,
        ] {
            *figure /= SECS;
        }
        outcome.busy.iter_mut().for_each(|busy| *busy /= SECS);
        outcome.lags_secs.sort_by(f64::total_cmp);
        outcome
    }
}

/// The wait for what happens so often at random; infinite where it never does.
fn exponential(random: &mut fastrand::Rng, per_sec: f64) -> f64 {
    -(1.0 - random.f64()).ln() / per_sec
}
