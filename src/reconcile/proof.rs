//! Proofs, and the heartbeats of `last_sync_at`.
//!
//! Reading every peer at every heartbeat would cost a large gateway too much, so it reads them less
//! often. A heartbeat between two complete readings rests on a glance: everything except the peers
//! and the firewall's contents is read back and is as it was; no other program changed our table
//! since it was read or written; and since the last complete reading only our own acknowledged
//! writes changed the peers, as far as the kernel tells.

use std::time::{Duration, Instant, SystemTime};

use super::clock::is_due;
use super::comparison::Comparisons;
use super::event::{Action, Event};

#[derive(Debug)]
pub(super) struct Proof {
    heartbeat: Duration,
    /// The database's time as of which the kernel is proven equal; `None`: it may differ, as far as is
    /// known.
    current: Option<SystemTime>,
    /// The last proof that may be shown, also while the kernel may differ.
    last: Option<SystemTime>,
    next_beat: Instant,
    beat: Option<Beat>,
    /// The end of a pass was not reported, because the kernel had announced a change.
    owed: bool,
    /// Everything was compared and nothing differs, but the kernel had announced a change that a look
    /// is to show.
    awaits_look: bool,
    comparisons: Comparisons,
}

/// A heartbeat of `last_sync_at` that is to be written.
#[derive(Debug, Clone, Copy)]
struct Beat {
    wanted_at: Instant,
    /// The kernel was read back for it.
    read_back: bool,
}

/// The view for readers.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProofView<'a> {
    pub is_current: bool,
    /// The last proof that may be shown.
    pub last: Option<SystemTime>,
    pub comparisons: &'a Comparisons,
}

/// The evidence of a proof.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence {
    /// When the rows were read.
    pub rows_read_at: Instant,
    /// Everything was compared; a part only extends the proof of a whole.
    pub whole: bool,
    /// The kernel was read back for it.
    pub read_back: bool,
    /// It is the end of a pass that changed something.
    pub ends_pass: bool,
    /// The kernel has announced a change since it was read: the next reading proves.
    pub disturbed: bool,
}

impl Proof {
    pub const fn new(heartbeat: Duration, now: Instant) -> Self {
        Self {
            heartbeat,
            current: None,
            last: None,
            next_beat: now,
            beat: None,
            owed: false,
            awaits_look: false,
            comparisons: Comparisons::new(),
        }
    }

    pub const fn set_heartbeat(&mut self, heartbeat: Duration) {
        self.heartbeat = heartbeat;
    }

    pub const fn is_current(&self) -> bool {
        self.current.is_some()
    }

    /// Whether only a look at what the kernel announced is missing.
    pub const fn awaits_look(&self) -> bool {
        self.awaits_look
    }

    /// Whether a proof holds that rows or, `read_back`, the kernel may confirm.
    pub const fn may_repeat(&self, read_back: bool) -> bool {
        self.is_current() || read_back && self.awaits_look
    }

    pub const fn view(&self) -> ProofView<'_> {
        ProofView {
            is_current: self.current.is_some(),
            last: self.last,
            comparisons: &self.comparisons,
        }
    }

    /// When the next heartbeat is due. Without a proof there is nothing to repeat.
    pub fn due(&self, connected: bool) -> Option<Instant> {
        self.current.filter(|_| connected).map(|_| self.next_beat)
    }

    /// Whether a heartbeat is due: the rows and the kernel are to be read for it.
    pub fn let_time_pass(&mut self, connected: bool, now: Instant) -> bool {
        let due = is_due(self.due(connected), now);
        if due {
            self.next_beat = now + self.heartbeat;
            self.beat.get_or_insert(Beat { wanted_at: now, read_back: false });
        }
        due
    }

    pub const fn hears(&mut self, event: &Event) {
        self.comparisons.hears(event);
    }

    pub const fn begins(&mut self, action: &Action) {
        self.comparisons.begins(action);
    }

    /// The kernel may differ.
    pub const fn lose(&mut self) {
        self.current = None;
        self.awaits_look = false;
        self.forget_reading();
    }

    /// Forgets that the kernel was read back: the heartbeat needs another reading.
    pub const fn forget_reading(&mut self) {
        if let Some(beat) = &mut self.beat {
            beat.read_back = false;
        }
    }

    /// Nothing differs from the rows as of this time of the database. Says whether that is to be
    /// reported now.
    pub fn prove(&mut self, as_of: SystemTime, evidence: Evidence, now: Instant) -> bool {
        let Evidence { rows_read_at, whole, read_back, ends_pass, disturbed } = evidence;
        if !whole && self.current.is_none() {
            return false;
        }
        self.awaits_look = whole && disturbed || self.awaits_look && !whole;
        if disturbed {
            self.owed |= ends_pass;
            return false;
        }
        if whole {
            self.comparisons.proves();
        }
        let owed = std::mem::take(&mut self.owed);
        let first = self.current.replace(as_of).is_none();
        let beat = self.take_beat(rows_read_at, read_back);
        let reports = first || beat || ends_pass || owed;
        if reports && read_back {
            // It is the heartbeat that was due by now.
            self.next_beat = now + self.heartbeat;
        }
        reports
    }

    /// Nothing is known to differ. Says whether that is to be reported now.
    pub fn repeat(&mut self, as_of: SystemTime, rows_read_at: Instant, read_back: bool) -> bool {
        let beat = self.take_beat(rows_read_at, read_back);
        // What the kernel had announced was looked at.
        let owed = read_back && std::mem::take(&mut self.owed);
        let first = read_back && self.current.is_none();
        if read_back && std::mem::take(&mut self.awaits_look) {
            self.comparisons.proves();
        }
        let reports = beat || owed || first;
        if reports || read_back {
            // Rows alone prove nothing.
            self.current = Some(as_of);
        }
        reports
    }

    /// Whether the heartbeat that is wanted is complete: both the rows and the kernel were read for it,
    /// in whichever order.
    fn take_beat(&mut self, rows_read_at: Instant, read_back: bool) -> bool {
        let Some(beat) = &mut self.beat else { return false };
        beat.read_back |= read_back;
        let complete = beat.read_back && rows_read_at >= beat.wanted_at;
        if complete {
            self.beat = None;
        }
        complete
    }

    /// Allows readers to see the current proof.
    pub fn show(&mut self) {
        self.last = self.current.or(self.last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(10);

    fn evidence(rows_read_at: Instant) -> Evidence {
        let (ends_pass, disturbed) = (false, false);
        Evidence { rows_read_at, whole: true, read_back: true, ends_pass, disturbed }
    }

    #[test]
    fn the_first_proof_is_told_and_then_one_at_each_heartbeat() {
        let start = Instant::now();
        let mut proof = Proof::new(BEAT, start);
        assert_eq!(proof.due(true), None, "nothing is proven");
        assert!(proof.prove(SystemTime::UNIX_EPOCH, evidence(start), start));
        assert!(!proof.prove(SystemTime::UNIX_EPOCH, evidence(start), start + BEAT / 2));
        assert_eq!((proof.due(true), proof.due(false)), (Some(start + BEAT), None));
        assert!(!proof.let_time_pass(false, start + BEAT), "no database to tell it to");
        assert!(proof.let_time_pass(true, start + BEAT));
        assert!(
            !proof.prove(SystemTime::UNIX_EPOCH, evidence(start), start + BEAT),
            "the rows were not read for it"
        );
        assert!(proof.repeat(SystemTime::UNIX_EPOCH, start + BEAT, false));
        assert!(!proof.repeat(SystemTime::UNIX_EPOCH, start + BEAT, false), "told once");
    }

    #[test]
    fn what_was_proven_stays_visible_while_the_kernel_may_differ() {
        let start = Instant::now();
        let mut proof = Proof::new(BEAT, start);
        proof.prove(SystemTime::UNIX_EPOCH, evidence(start), start);
        proof.show();
        proof.lose();
        proof.show();
        assert!(!proof.is_current() && proof.view().last.is_some());
    }
}
