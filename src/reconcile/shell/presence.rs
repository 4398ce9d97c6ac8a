//! What the database knows of this agent beside its reports, and when the agent tells it again.

use std::time::{Duration, Instant};

/// A proof that is reported tells as well that the agent follows the database, unless it was told within this time.
const TOLD_WITH_A_PROOF: Duration = Duration::from_secs(45);
/// The agent tells it in a statement of its own if no proof has within this time: a proof comes each minute at least
/// where the kernel is as it should be.
const TOLD_ALONE: Duration = Duration::from_secs(75);

/// What the database knows.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Presence {
    attached_at: Option<Instant>,
    merged_by_bell: bool,
}

impl Presence {
    /// The agent told that it follows the database.
    pub const fn attached(&mut self, now: Instant) {
        self.attached_at = Some(now);
    }

    /// Whether the next proof is to tell that the agent follows the database.
    pub fn is_told_with_a_proof(&self, now: Instant) -> bool {
        self.is_older(TOLD_WITH_A_PROOF, now)
    }

    /// Whether the agent is to tell it without a proof.
    pub fn is_told_alone(&self, now: Instant) -> bool {
        self.is_older(TOLD_ALONE, now)
    }

    fn is_older(&self, limit: Duration, now: Instant) -> bool {
        self.attached_at.is_none_or(|at| at + limit < now)
    }

    /// Takes in whether a bell merges the reports of all gateways, as the database said last.
    pub const fn set_merged_by_bell(&mut self, merged_by_bell: bool) {
        self.merged_by_bell = merged_by_bell;
    }

    pub const fn is_merged_by_bell(&self) -> bool {
        self.merged_by_bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_tell_it_each_minute_and_nothing_else_does() {
        let secs = Duration::from_secs;
        let begun = Instant::now();
        for proof_after in [1, 14, 16, 59].map(secs) {
            let (mut presence, mut alone) = (Presence::default(), 0);
            presence.attached(begun);
            for minute in (1..20).map(|number| begun + number * secs(60)) {
                if presence.is_told_alone(minute) {
                    presence.attached(minute);
                    alone += 1;
                }
                let proof = minute + proof_after;
                assert!(presence.is_told_with_a_proof(proof));
                presence.attached(proof);
            }
            assert_eq!(alone, 0);
        }
    }

    #[test]
    fn without_proofs_the_agent_tells_it_within_two_minutes() {
        let begun = Instant::now();
        let mut presence = Presence::default();
        assert!(presence.is_told_alone(begun));
        presence.attached(begun);
        assert!(!presence.is_told_alone(begun + Duration::from_secs(60)));
        assert!(presence.is_told_alone(begun + Duration::from_secs(120)));
    }
}
