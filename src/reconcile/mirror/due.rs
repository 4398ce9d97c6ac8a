//! When the kernel is to be read next.

use std::time::{Duration, Instant};

use super::Mirror;
use super::work::{Job, Wanted};
use crate::reconcile::clock::{Now, is_due};

/// Complete readings begin at most this often: a storm of kernel events (another daemon that fights
/// us) must not become a storm of dumps.
pub(super) const READING_GAP: Duration = Duration::from_millis(50);

/// Nor do glances take more than a tenth of the time, however long one was delayed.
const GLANCE_SHARE: u32 = 10;
const GLANCE_GAP_AT_MOST: Duration = Duration::from_secs(5);

/// Between a glance that took so long and the next one.
pub(super) fn gap_after(took: Duration) -> Duration {
    READING_GAP.max(took * (GLANCE_SHARE - 1)).min(GLANCE_GAP_AT_MOST)
}

impl Mirror {
    /// When the next look at the kernel is due, or may begin if it is wanted, or the job under way becomes a
    /// long one. What waits for that job is due when it ends.
    pub fn due(&self, now: Now) -> Option<Instant> {
        let wanted = self.may_read_at(now.instant).filter(|_| self.wants_reading());
        let long_at = match self.job {
            Job::Apply { long_at, .. } => Some(long_at).filter(|at| *at > now.instant),
            Job::None | Job::Look => None,
        };
        [wanted, self.glance_due(), self.comparison_due(), long_at].into_iter().flatten().min()
    }

    pub fn let_time_pass(&mut self, now: Instant) {
        if is_due(self.comparison_due(), now) {
            self.next_reading = now + self.timing.compare_interval();
            self.want_reading("compare interval");
        }
    }

    fn comparison_due(&self) -> Option<Instant> {
        Some(self.next_reading).filter(|_| !self.is_busy())
    }

    /// When the glance that is wanted may begin; `None`: none is wanted, or a job is under way.
    pub(super) fn glance_due(&self) -> Option<Instant> {
        Some(self.glances_from).filter(|_| self.wanted == Wanted::Glance && !self.is_busy())
    }

    /// When a complete reading may begin; `None`: a job is under way.
    pub(super) fn may_read_at(&self, now: Instant) -> Option<Instant> {
        let at = self.ended_at.map_or(now, |ended_at| ended_at + READING_GAP);
        Some(at).filter(|_| !self.is_busy())
    }
}
