//! The mode in use, and when another may be better.

use std::time::{Duration, Instant};

use super::choose::{Until, suits};
use crate::reconcile::mode::Mode;

/// How often an agent says that it is there and asks how many are: one that is silent for five of
/// these counts as gone.
pub(super) const ATTACH_EVERY: Duration = Duration::from_secs(60);

/// How the agent learns about changes while the database is there.
#[derive(Clone, Copy)]
pub(super) struct InUse {
    pub mode: Mode,
    pub until: Until,
    pub chosen_at: Instant,
}

impl InUse {
    /// Whether another mode may be better, now that so many gateways share the database.
    pub fn is_doubtful(
        &self,
        gateways: u32,
        hears_bell: bool,
        now: Instant,
        probe_every: Duration,
    ) -> bool {
        match self.until {
            Until::Reconfigured => false,
            Until::BellFallsSilent => !hears_bell,
            Until::FleetChanges | Until::ProbedAgain if hears_bell => true,
            Until::SessionIsFree => true,
            Until::FleetChanges => suits(gateways, Some(self.mode)).0 != self.mode,
            Until::ProbedAgain => now.duration_since(self.chosen_at) >= probe_every,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_probe_is_sent_again_and_a_configured_mode_stays() {
        let (now, every) = (Instant::now(), Duration::from_secs(600));
        let doubtful = |until, mode, gateways, later| {
            let in_use = InUse { mode, until, chosen_at: now };
            in_use.is_doubtful(gateways, false, now + later, every)
        };
        let minute = Duration::from_secs(60);
        assert!(!doubtful(Until::ProbedAgain, Mode::Poll, 1, minute));
        assert!(doubtful(Until::ProbedAgain, Mode::Poll, 1, every));
        assert!(!doubtful(Until::Reconfigured, Mode::Poll, 1, every));
        assert!(!doubtful(Until::FleetChanges, Mode::Listen, 50, every));
        assert!(doubtful(Until::FleetChanges, Mode::Listen, 51, minute));
        assert!(!doubtful(Until::FleetChanges, Mode::Poll, 41, every));
        assert!(doubtful(Until::FleetChanges, Mode::Poll, 40, minute));
        assert!(doubtful(Until::BellFallsSilent, Mode::Hints, 51, minute));
        assert!(doubtful(Until::SessionIsFree, Mode::Poll, 1, minute));
    }

    #[test]
    fn a_bell_that_is_heard_is_followed_where_the_mode_is_not_configured() {
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let doubtful = |until| {
            let in_use = InUse { mode: Mode::Poll, until, chosen_at: now };
            in_use.is_doubtful(51, true, now, minute)
        };
        assert!(doubtful(Until::FleetChanges) && doubtful(Until::ProbedAgain));
        assert!(!doubtful(Until::Reconfigured) && !doubtful(Until::BellFallsSilent));
    }
}
