//! When the bell looks, when it renews its hold, and when it gives a sign of life.

use std::time::{Duration, Instant};

use gatepost::store::Ring;

/// Between two looks at the database.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After many gateways were rung at once: each of them reads now.
const LOOK_AFTER_MANY: Duration = Duration::from_millis(250);
const MANY: usize = 100;
/// Between two calls that hold the bell, and between two signs of life.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// A look that takes longer gives no sign of life: what was committed since it began waits for the next one,
/// and agents take a sign for a promise that it does not wait for long.
const LOOK_FOR_A_SIGN: Duration = Duration::from_secs(1);

/// The next deadline, by this host's steady clock.
#[derive(Debug, Clone)]
pub struct Rhythm {
    look_at: Instant,
    hold_at: Instant,
    sign_at: Instant,
}

impl Rhythm {
    /// Everything is due at once.
    #[must_use]
    pub const fn new(now: Instant) -> Self {
        Self { look_at: now, hold_at: now, sign_at: now }
    }

    /// The bell is to be held, or held on to.
    #[must_use]
    pub fn must_hold(&self, now: Instant) -> bool {
        now >= self.hold_at
    }

    /// A sign of life is due, after a look that succeeded and began then.
    #[must_use]
    pub fn must_sign(&self, look_began: Instant, now: Instant) -> bool {
        now >= self.sign_at && now.saturating_duration_since(look_began) <= LOOK_FOR_A_SIGN
    }

    /// The bell was held, or another one is.
    pub fn held(&mut self, now: Instant) {
        self.hold_at = now + BEAT_EVERY;
    }

    /// Another bell rings: nothing else is due before the next attempt to hold it.
    pub fn rest(&mut self) {
        self.look_at = self.hold_at;
    }

    /// A sign of life was given.
    pub fn signed(&mut self, now: Instant) {
        self.sign_at = now + BEAT_EVERY;
    }

    /// The database was looked at.
    pub fn looked(&mut self, now: Instant, rung: &Ring) {
        let is_many = match rung {
            Ring::Everyone => true,
            Ring::Gateways(gateways) => gateways.len() > MANY,
            Ring::NotHeld => false,
        };
        self.look_at = now + if is_many { LOOK_AFTER_MANY } else { LOOK_EVERY };
        if *rung == Ring::NotHeld {
            self.hold_at = now;
        }
    }

    /// When the next look is due.
    #[must_use]
    pub const fn look_at(&self) -> Instant {
        self.look_at
    }
}

#[cfg(test)]
mod tests {
    use gatepost::model::GatewayId;

    use super::*;

    fn next(rung: &Ring) -> Duration {
        let now = Instant::now();
        let mut rhythm = Rhythm::new(now);
        rhythm.looked(now, rung);
        rhythm.look_at() - now
    }

    #[test]
    fn looks_every_20_ms_and_250_ms_after_many_were_rung() {
        let gateways = |count| Ring::Gateways(vec![GatewayId(uuid::Uuid::nil()); count]);
        assert_eq!(next(&gateways(0)), LOOK_EVERY);
        assert_eq!(next(&gateways(MANY)), LOOK_EVERY);
        assert_eq!(next(&gateways(MANY + 1)), LOOK_AFTER_MANY);
        assert_eq!(next(&Ring::Everyone), LOOK_AFTER_MANY);
    }

    #[test]
    fn bell_that_lost_its_hold_asks_for_it_at_once_and_then_each_second() {
        let now = Instant::now();
        let mut rhythm = Rhythm::new(now);
        assert!(rhythm.must_hold(now) && rhythm.must_sign(now, now));
        assert!(rhythm.must_sign(now, now + LOOK_FOR_A_SIGN));
        let late = now + LOOK_FOR_A_SIGN + LOOK_EVERY;
        assert!(!rhythm.must_sign(now, late), "the look took too long");
        rhythm.held(now);
        rhythm.signed(now);
        let soon = now + Duration::from_millis(999);
        assert!(!rhythm.must_hold(soon) && !rhythm.must_sign(soon, soon));
        rhythm.looked(soon, &Ring::NotHeld);
        assert!(rhythm.must_hold(soon));
        rhythm.held(soon);
        rhythm.rest();
        assert_eq!(rhythm.look_at(), soon + BEAT_EVERY);
    }
}
