//! What the agent has under way goes on, one effect at a time.

use gatepost::dataplane::{Glance, Reading};
use gatepost::plan::{Fate, Phase, Step};
use gatepost::reconcile::{DatabaseError, EpochRead, Event, LastGood, Mode, Provenance, Sent};
use gatepost::store::{Limit, Place, StoreError};

use super::bytes::Bytes;
use super::database::{Answer, Seen};
use super::host::{refused, unreadable};
use super::world::{Errand, Followed, Job, World};

/// The database does not answer.
pub fn away() -> DatabaseError {
    let (hosts, database, role) = ("db1".to_owned(), "vpn".to_owned(), "fra_1".to_owned());
    let place = Box::new(Place { hosts, database, role, ..Place::default() });
    let waited = std::time::Duration::from_secs(1);
    StoreError::Stalled { place, doing: "read", waited, limit: Limit::Answer }.into()
}

impl World {
    /// How many things are under way.
    pub fn under_way(&self) -> usize {
        self.agent.errands.len() + usize::from(self.agent.job.is_some())
    }

    /// Lets one of the things that are under way make one step.
    pub fn advance(&mut self, chosen: usize, bytes: &mut Bytes<'_>) {
        if self.under_way() == 0 {
            return;
        }
        let chosen = chosen % self.under_way();
        if chosen < usize::from(self.agent.job.is_some()) {
            self.advance_job();
        } else {
            let number = chosen - usize::from(self.agent.job.is_some());
            self.advance_errand(number, bytes);
        }
    }

    fn advance_job(&mut self) {
        let Some(job) = self.agent.job.take() else { return };
        match job {
            Job::Look(None) => {
                let seen = self.host.is_readable.then(|| {
                    let state = self.host.seen();
                    Box::new(Reading { state, ..Reading::default() })
                });
                self.note(|| "the kernel is read".into());
                self.agent.job = Some(Job::Look(Some(seen)));
            }
            Job::Look(Some(seen)) => {
                self.oracle.looked(seen.is_some(), self.elapsed);
                self.tell(Event::Observed(seen.ok_or_else(unreadable)));
            }
            Job::Glance(None) => {
                let seen = self.host.is_readable.then(|| self.glance());
                self.agent.job = Some(Job::Glance(Some(seen)));
            }
            Job::Glance(Some(seen)) => self.tell(Event::Glanced(seen.ok_or_else(unreadable))),
            Job::Apply(mut work) => {
                // However soon: this host's jobs take no time.
                let stops = work.is_begun && work.shared.stops_after().is_some();
                let step = work.steps.pop_front();
                let interrupted = stops && step.is_some();
                let untried = if interrupted { work.steps.len() + 1 } else { 0 };
                let Some(step) = step.filter(|_| !interrupted) else {
                    let mut outcome = std::mem::take(&mut work.outcome);
                    outcome.untried = untried;
                    outcome.unloadable = work.job.end();
                    self.plan_ended(&outcome);
                    self.tell(Event::Applied(outcome));
                    return;
                };
                self.apply(&mut work, &step);
                work.is_begun = true;
                self.agent.job = Some(Job::Apply(work));
            }
        }
    }

    fn glance(&mut self) -> Glance {
        self.host.glanced();
        let state = self.host.kernel.state.clone();
        let firewall_is_current = state.firewall == self.host.firewall_known;
        let (interface, routes, routing) = (state.interface, state.routes, state.routing);
        Glance { interface, routes, routing, firewall_is_current }
    }

    fn apply(&mut self, work: &mut super::world::Application, step: &Step) {
        let before = self.host.kernel.state.clone();
        let fault = self.host.fault(step);
        let (mut made, mut fates) = (Vec::new(), Vec::new());
        let shared = &work.shared;
        let outcome = &mut work.outcome;
        work.job.apply(
            &mut self.host.kernel,
            step,
            &mut work.observed,
            fault,
            &mut |_, step, fate| {
                match fate {
                    Fate::Applied => {
                        shared.apply(step);
                        outcome.applied += 1;
                        made.push(step.clone());
                    }
                    Fate::Refused => outcome.refused.push(refused(step, fault)),
                    Fate::Withheld | Fate::AppliedInPart => {}
                }
                fates.push(fate);
            },
        );
        self.note(|| format!("{fates:?}: {step}"));
        if let Step::Firewall { phase: Phase::Revoke, change } = step
            && fates.iter().any(|fate| *fate != Fate::Applied)
        {
            self.oracle.left_out.unclosed(change);
        }
        for step in made {
            self.figures.steps += 1;
            // What an edit made impossible there changes nothing here.
            let _ = self.host.known.apply_step(&step);
        }
        self.host.firewall_known.clone_from(&work.observed.firewall);
        self.kernel_changed(&before, step);
    }

    fn advance_errand(&mut self, number: usize, bytes: &mut Bytes<'_>) {
        match self.agent.errands.remove(number) {
            Errand::Connect => self.connect(bytes),
            Errand::Restore => self.restore(),
            Errand::Read { kind, began_at, seen: None } => {
                if !self.database.is_up || !self.database.is_readable {
                    self.oracle.read_failed(self.elapsed);
                    self.tell(Event::Read(Err(away())));
                    return self.tell(Event::Disconnected { error: away() });
                }
                let now = self.database_now();
                let seen = self.database.read(kind, self.agent.cursor.as_ref(), now);
                let versions = self.database.versions.len();
                self.note(|| format!("the database is read: {versions} versions"));
                self.oracle.read_saw(versions);
                self.agent.errands.push(Errand::Read { kind, began_at, seen: Some(seen) });
            }
            Errand::Read { began_at, seen: Some(seen), .. } => {
                let versions = self.oracle.rows_come(self.elapsed - began_at);
                self.rows_come(seen, versions);
            }
            Errand::AskMarks { epoch, about } => {
                let database = &self.database;
                let is_same = epoch == database.epoch.to_string();
                let answers = database.is_up && database.is_readable;
                let lost = match answers {
                    true if is_same => Ok(database.lost(&about)),
                    true => Err(DatabaseError::OtherServer),
                    false => Err(away()),
                };
                self.agent.errands.push(Errand::MarksAnswered { epoch, lost });
            }
            Errand::MarksAnswered { epoch, lost } => {
                self.tell(Event::MarksAnswered { epoch, lost });
            }
            Errand::AskDevices(asked) => {
                let answers = self.database.is_up && self.database.is_readable;
                let now = self.database_now();
                let standings = answers.then(|| self.database.standings(&asked, now));
                self.tell(Event::DevicesAnswered(standings.ok_or_else(away)));
            }
            Errand::Report { report, written: false } => {
                let takes = self.database.is_up && self.database.takes_reports;
                if takes {
                    self.agent.errands.push(Errand::Report { report, written: true });
                } else {
                    let error = Some(away());
                    self.tell(Event::Reported(Sent { left: report, error, ..Sent::default() }));
                }
            }
            Errand::Report { .. } => self.tell(Event::Reported(Sent::default())),
            Errand::Remember(withdrawals) => self.disk.withdrawals = withdrawals,
        }
    }

    fn connect(&mut self, bytes: &mut Bytes<'_>) {
        if self.database.is_up {
            let mode = bytes.pick(&[Mode::Listen, Mode::Listen, Mode::Listen, Mode::Poll]);
            self.agent.mode = mode;
            self.tell(Event::Connected { mode });
            self.tell(Event::Unannounced { tables: Vec::new() });
        } else {
            self.tell(Event::Disconnected { error: away() });
        }
    }

    fn restore(&mut self) {
        let Some((tables, read_at)) = self.disk.last_good.clone() else {
            return self.tell(Event::NothingRestored);
        };
        let rows = tables.snapshot(read_at);
        if self.agent.followed.is_none() {
            self.last_good_rows_come();
            self.agent.followed = Some(Followed { tables, as_of: read_at, versions: 0 });
        }
        let provenance = Provenance::Sealed;
        let last_good = LastGood { rows, changes: Vec::new(), provenance };
        let (last_good, database_now) = (Box::new(last_good), Some(self.database_now()));
        self.tell(Event::Restored { last_good, database_now });
    }

    fn rows_come(&mut self, seen: Seen, versions: usize) {
        if let Answer::Everything { epoch, marks } = &seen.answer {
            let (epoch, marks) = (epoch.to_string(), marks.clone());
            let read_at = seen.taken_at;
            self.tell(Event::Epoch(EpochRead { epoch, why: None, marks, read_at }));
        }
        self.agent.cursor = Some(seen.cursor.clone());
        let are_usable = seen.rows().is_buildable();
        if !are_usable {
            self.oracle.read_failed(self.elapsed);
        }
        self.oracle.out.rows_come(are_usable, self.elapsed);
        self.agent.keeper.push(&seen);
        let (tables, as_of) = (std::rc::Rc::clone(seen.rows()), seen.taken_at);
        self.agent.followed = Some(Followed { tables, as_of, versions });
        self.tell(Event::Read(Ok(seen.read_answer())));
    }
}
