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

/// What else is known when the kernel is compared with the rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grounds {
    /// The database's time of the rows.
    pub as_of: SystemTime,
    /// When they were read.
    pub rows_read_at: Instant,
    /// The last rows that were read can be used.
    pub are_usable: bool,
    /// The kernel is to be what all of them ask for: no peer is held, and none is kept out.
    pub are_followed: bool,
    /// Some have a preshared key that this host cannot open: their peers lack something.
    pub are_sealed: bool,
    /// The rows decide, are not in doubt, and all their changes are announced: the database may be told.
    pub may_be_told: bool,
}

/// The evidence of a proof.
#[derive(Debug, Clone, Copy)]
pub(super) struct Evidence {
    /// The kernel could be read when that was last tried. If not, an older reading proves nothing.
    pub readable: bool,
    /// Everything was compared; a part only extends the proof of a whole.
    pub whole: bool,
    /// The kernel was read back for it.
    pub read_back: bool,
    /// It is the end of a pass that changed something.
    pub ends_pass: bool,
    /// The kernel has announced a change since it was read: the next reading proves.
    pub disturbed: bool,
}

/// What follows from finding that nothing differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Proven {
    /// The time of the rows, if the database is to be told now.
    pub told: Option<SystemTime>,
    /// Only a complete reading can prove anything: a part extends no proof that was lost, as while the guard held
    /// removals back.
    pub lacks_reading: bool,
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

    /// Whether there is a proof that rows or, `read_back`, the kernel may confirm.
    pub const fn may_repeat(&self, grounds: Grounds, read_back: bool) -> bool {
        grounds.are_followed && (self.is_current() || read_back && self.awaits_look)
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

    /// A plan was made. While it leaves out something that the rows ask for, no proof holds.
    pub fn planned(&mut self, grounds: Option<Grounds>) {
        if grounds.is_none_or(|it| !it.are_followed || it.are_sealed) {
            self.lose();
        }
    }

    /// Nothing differs from the rows.
    pub fn prove(&mut self, grounds: Grounds, evidence: Evidence, now: Instant) -> Proven {
        if !(evidence.readable && grounds.are_usable && grounds.are_followed) {
            return Proven::default();
        }
        let is_due = self.takes(grounds, evidence, now);
        let looks = self.awaits_look && evidence.disturbed;
        Proven {
            told: grounds.told().filter(|_| is_due),
            lacks_reading: !self.is_current() && !looks,
        }
    }

    /// Takes in the evidence. Says whether the proof is to be told now.
    fn takes(&mut self, grounds: Grounds, evidence: Evidence, now: Instant) -> bool {
        let Evidence { whole, read_back, ends_pass, disturbed, .. } = evidence;
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
        let first = self.current.replace(grounds.as_of).is_none();
        let beat = self.take_beat(grounds.rows_read_at, read_back);
        let reports = first || beat || ends_pass || owed;
        if reports && read_back {
            // It is the heartbeat that was due by now.
            self.next_beat = now + self.heartbeat;
        }
        reports
    }

    /// Nothing is known to differ. Returns the time of the rows, if the database is to be told now.
    pub fn repeat(&mut self, grounds: Grounds, read_back: bool) -> Option<SystemTime> {
        let beat = self.take_beat(grounds.rows_read_at, read_back);
        // What the kernel had announced was looked at.
        let owed = read_back && std::mem::take(&mut self.owed);
        let first = read_back && self.current.is_none();
        if read_back && std::mem::take(&mut self.awaits_look) {
            self.comparisons.proves();
        }
        let reports = beat || owed || first;
        if reports || read_back {
            // Rows alone prove nothing.
            self.current = Some(grounds.as_of);
        }
        grounds.told().filter(|_| reports)
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

impl Grounds {
    /// The time of the rows, if the database may be told of it.
    fn told(self) -> Option<SystemTime> {
        self.may_be_told.then_some(self.as_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEAT: Duration = Duration::from_secs(10);
    const EVIDENCE: Evidence = Evidence {
        readable: true,
        whole: true,
        read_back: true,
        ends_pass: false,
        disturbed: false,
    };
    const TOLD: Option<SystemTime> = Some(SystemTime::UNIX_EPOCH);

    /// Rows that were read at this moment and stand in no way.
    fn grounds(rows_read_at: Instant) -> Grounds {
        Grounds {
            as_of: SystemTime::UNIX_EPOCH,
            rows_read_at,
            are_usable: true,
            are_followed: true,
            are_sealed: false,
            may_be_told: true,
        }
    }

    #[test]
    fn the_first_proof_is_told_and_then_one_at_each_heartbeat() {
        let start = Instant::now();
        let (mut proof, rows) = (Proof::new(BEAT, start), grounds(start));
        assert_eq!(proof.due(true), None, "nothing is proven");
        assert_eq!(proof.prove(rows, EVIDENCE, start).told, TOLD);
        assert_eq!(proof.prove(rows, EVIDENCE, start + BEAT / 2).told, None);
        assert_eq!((proof.due(true), proof.due(false)), (Some(start + BEAT), None));
        assert!(!proof.let_time_pass(false, start + BEAT), "no database to tell it to");
        assert!(proof.let_time_pass(true, start + BEAT));
        let told = proof.prove(rows, EVIDENCE, start + BEAT).told;
        assert_eq!(told, None, "the rows were not read for it");
        assert_eq!(proof.repeat(grounds(start + BEAT), false), TOLD);
        assert_eq!(proof.repeat(grounds(start + BEAT), false), None, "told once");
    }

    #[test]
    fn what_was_proven_stays_visible_while_the_kernel_may_differ() {
        let start = Instant::now();
        let mut proof = Proof::new(BEAT, start);
        proof.prove(grounds(start), EVIDENCE, start);
        proof.show();
        proof.lose();
        proof.show();
        assert!(!proof.is_current() && proof.view().last.is_some());
    }

    #[test]
    fn rows_that_cannot_be_used_or_are_not_followed_and_an_older_reading_prove_nothing() {
        let start = Instant::now();
        let (rows, nothing) = (grounds(start), Proven::default());
        let mut proof = Proof::new(BEAT, start);
        let unusable = Grounds { are_usable: false, ..rows };
        let unfollowed = Grounds { are_followed: false, ..rows };
        let unreadable = Evidence { readable: false, ..EVIDENCE };
        assert_eq!(proof.prove(unusable, EVIDENCE, start), nothing);
        assert_eq!(proof.prove(unfollowed, EVIDENCE, start), nothing);
        assert_eq!(proof.prove(rows, unreadable, start), nothing);
        assert!(!proof.is_current() && !proof.may_repeat(rows, true));
        let secret = Grounds { may_be_told: false, ..rows };
        assert_eq!(proof.prove(secret, EVIDENCE, start), nothing, "proven, and not told");
        assert!(proof.is_current() && proof.may_repeat(rows, false));
        assert!(!proof.may_repeat(unfollowed, false));
    }

    #[test]
    fn a_part_extends_no_proof_that_was_lost_and_a_disturbed_one_waits_for_a_look() {
        let start = Instant::now();
        let (mut proof, rows) = (Proof::new(BEAT, start), grounds(start));
        let part = Evidence { whole: false, ..EVIDENCE };
        assert!(proof.prove(rows, part, start).lacks_reading);
        let disturbed = Evidence { disturbed: true, ends_pass: true, ..EVIDENCE };
        assert_eq!(proof.prove(rows, disturbed, start), Proven::default(), "a look will prove it");
        assert!(!proof.may_repeat(rows, false) && proof.may_repeat(rows, true));
        assert_eq!(proof.repeat(rows, true), TOLD);
        assert!(proof.is_current());
        proof.lose();
        assert!(proof.prove(rows, part, start).lacks_reading);
    }
}
