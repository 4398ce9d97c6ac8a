//! Gateways whose reports cannot be merged: when they are tried again, and how many at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gatepost::model::GatewayId;
use gatepost::store::MERGED_AT_MOST;

/// Before reports that a table refuses are tried again.
const REFUSED_FOR: Duration = Duration::from_mins(1);
/// A merge that takes less may take more reports the next time.
const QUICK: Duration = Duration::from_secs(2);

/// Why a merge failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It took longer than a statement may: fewer reports may do.
    TookTooLong,
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Trouble {
    at_most: u32,
    /// Not before this.
    again_at: Instant,
    /// The last merge failed.
    is_failing: bool,
}

/// The gateways in trouble.
#[derive(Debug, Default)]
pub struct Troubles(BTreeMap<GatewayId, Trouble>);

impl Troubles {
    /// How many reports of each kind to merge at once; `None`: it is not time yet.
    pub fn page(&self, gateway: GatewayId, now: Instant) -> Option<u32> {
        match self.0.get(&gateway) {
            Some(trouble) if now < trouble.again_at => None,
            Some(trouble) => Some(trouble.at_most),
            None => Some(MERGED_AT_MOST),
        }
    }

    /// A merge failed. Returns whether that is news.
    pub fn failed(&mut self, gateway: GatewayId, failure: Failure, now: Instant) -> bool {
        let new = Trouble { at_most: MERGED_AT_MOST, again_at: now, is_failing: false };
        let trouble = self.0.entry(gateway).or_insert(new);
        if failure == Failure::TookTooLong && trouble.at_most > 1 {
            // At once: others wait no longer than a statement may take.
            trouble.at_most = (trouble.at_most / 10).max(1);
            trouble.again_at = now;
        } else {
            trouble.again_at = now + REFUSED_FOR;
        }
        !std::mem::replace(&mut trouble.is_failing, true)
    }

    /// A table refuses the reports, which the gateway's own agent tells.
    pub fn refused(&mut self, gateway: GatewayId, now: Instant) {
        let new = Trouble { at_most: MERGED_AT_MOST, again_at: now, is_failing: false };
        self.0.entry(gateway).or_insert(new).again_at = now + REFUSED_FOR;
    }

    /// A merge succeeded after this time. Returns whether the one before had failed.
    pub fn merged(&mut self, gateway: GatewayId, took: Duration) -> bool {
        let Some(trouble) = self.0.get_mut(&gateway) else { return false };
        let was_failing = std::mem::replace(&mut trouble.is_failing, false);
        if took < QUICK {
            trouble.at_most = trouble.at_most.saturating_mul(2).min(MERGED_AT_MOST);
        }
        if trouble.at_most == MERGED_AT_MOST {
            self.0.remove(&gateway);
        }
        was_failing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: GatewayId = GatewayId(uuid::Uuid::nil());

    #[test]
    fn a_slow_trigger_gets_fewer_reports_until_it_is_quick_again() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(troubles.page(GATEWAY, now), Some(1_000));
        assert!(troubles.failed(GATEWAY, Failure::TookTooLong, now), "news");
        assert_eq!(troubles.page(GATEWAY, now), Some(100));
        assert!(!troubles.failed(GATEWAY, Failure::TookTooLong, now), "said once");
        assert_eq!(troubles.page(GATEWAY, now), Some(10));
        assert!(troubles.merged(GATEWAY, QUICK), "all-clear");
        assert_eq!(troubles.page(GATEWAY, now), Some(10), "it took long");
        for at_most in [20, 40, 80, 160, 320, 640, 1_000] {
            assert!(!troubles.merged(GATEWAY, Duration::ZERO), "said once");
            assert_eq!(troubles.page(GATEWAY, now), Some(at_most));
        }
    }

    #[test]
    fn what_fails_for_another_reason_is_tried_again_after_a_minute() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert!(troubles.failed(GATEWAY, Failure::Other, now));
        assert_eq!(troubles.page(GATEWAY, now), None);
        assert_eq!(troubles.page(GATEWAY, now + REFUSED_FOR), Some(1_000));
        assert!(troubles.merged(GATEWAY, Duration::ZERO));
        troubles.refused(GATEWAY, now);
        assert_eq!(troubles.page(GATEWAY, now), None);
        assert!(!troubles.merged(GATEWAY, Duration::ZERO), "its agent says so");
    }
}
