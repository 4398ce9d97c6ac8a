//! When peers shook hands, on a clock that cannot be set. `outbox.rs` reports them.
//!
//! WireGuard stamps handshakes with the wall clock, so that their ages jump with it. Each is put on a
//! steady clock when a reading first shows it: it came after the reading before, whatever its stamp.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use super::clock::Now;
use crate::model::{PublicKey, Traffic};

/// A device that tells ages instead of times gives a slightly different time at each reading.
const SAME: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Handshakes {
    /// The steady clock shows this host's time of the start, and what went by since.
    start: Now,
    /// By both clocks, when the last reading ended.
    last: Option<Moment>,
    known: BTreeMap<PublicKey, Moment>,
}

/// One moment, on the wall clock as it was set then, and on the steady clock.
#[derive(Debug, Clone, Copy)]
struct Moment {
    wall: SystemTime,
    steady: SystemTime,
}

impl Handshakes {
    pub const fn new(start: Now) -> Self {
        Self { start, last: None, known: BTreeMap::new() }
    }

    /// The steady clock.
    pub fn clock(&self, now: Instant) -> SystemTime {
        self.start.wall + now.saturating_duration_since(self.start.instant)
    }

    /// Puts the handshakes of a reading that has just ended on the steady clock.
    pub fn steady(&mut self, traffic: &mut BTreeMap<PublicKey, Traffic>, now: Now) {
        let end = Moment { wall: now.wall, steady: self.clock(now.instant) };
        self.known.retain(|key, _| traffic.contains_key(key));
        for (key, traffic) in traffic.iter_mut() {
            let Some(wall) = traffic.last_handshake else { continue };
            let known = self.known.get(key).copied();
            let same = known
                .filter(|known| known.wall == wall || distance(end.of(wall), known.steady) <= SAME);
            let steady = same.map_or_else(|| self.of_new(wall, end), |known| known.steady);
            self.known.insert(*key, Moment { wall, steady });
            traffic.last_handshake = Some(steady);
        }
        self.last = Some(end);
    }

    /// A handshake that the reading before did not show. The wall clock may have been set before or
    /// after it.
    fn of_new(&self, wall: SystemTime, end: Moment) -> SystemTime {
        let Some(last) = self.last else { return end.of(wall).min(end.steady) };
        let possible = last.steady..=end.steady;
        let times = [end.of(wall), last.of(wall)];
        let plausible = times.into_iter().find(|time| possible.contains(time));
        plausible.unwrap_or_else(|| times[0].clamp(last.steady, end.steady))
    }
}

impl Moment {
    /// The time of the steady clock at which the wall clock, set as at this moment, showed `wall`.
    fn of(&self, wall: SystemTime) -> SystemTime {
        match wall.duration_since(self.wall) {
            Ok(later) => self.steady.checked_add(later),
            Err(earlier) => self.steady.checked_sub(earlier.duration()),
        }
        .unwrap_or(self.steady)
    }
}

fn distance(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|earlier| earlier.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const HOUR: i64 = 3_600;

    /// A host whose wall clock can be set.
    struct Host {
        handshakes: Handshakes,
        start: Instant,
        secs: u64,
        set_secs: i64,
    }

    impl Host {
        fn new() -> Self {
            let (start, wall) = (Instant::now(), at(0));
            let handshakes = Handshakes::new(Now { instant: start, wall });
            Self { handshakes, start, secs: 0, set_secs: 0 }
        }

        fn now(&self) -> Now {
            let wall = at(self.set_secs + i64::try_from(self.secs).unwrap());
            Now { instant: self.start + Duration::from_secs(self.secs), wall }
        }

        /// The age that a reading gives to a handshake with this stamp.
        fn age_secs(&mut self, stamp: SystemTime) -> u64 {
            let key = PublicKey::from_bytes([1; 32]).unwrap();
            let traffic = Traffic { last_handshake: Some(stamp), ..Traffic::default() };
            let mut read = BTreeMap::from([(key, traffic)]);
            let now = self.now();
            self.handshakes.steady(&mut read, now);
            let steady = read[&key].last_handshake.unwrap();
            self.handshakes.clock(now.instant).duration_since(steady).unwrap().as_secs()
        }
    }

    fn at(secs: i64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(1_000_000 + secs).unwrap())
    }

    #[test]
    fn age_does_not_jump_when_the_clock_is_set() {
        for set in [2 * HOUR, -2 * HOUR, -1_000_000 + 60] {
            let mut host = Host::new();
            let stamp = at(0);
            host.secs = 10;
            assert_eq!(host.age_secs(stamp), 10);
            host.set_secs = set;
            host.secs = 20;
            assert_eq!(host.age_secs(stamp), 20, "set by {set} s");
            // A handshake after the step, and one before it that only the reading after it shows.
            host.secs = 40;
            let after = host.now().wall - Duration::from_secs(5);
            assert_eq!(host.age_secs(after), 5, "set by {set} s");
            let before = host.now().wall + Duration::from_secs(7);
            host.secs += MINUTE;
            host.set_secs -= set;
            assert_eq!(host.age_secs(before), MINUTE - 7, "set back by {set} s");
        }
    }

    #[test]
    fn device_that_tells_ages_has_one_handshake_whatever_the_clock() {
        let mut host = Host::new();
        host.secs = 10;
        assert_eq!(host.age_secs(at(0)), 10);
        host.secs = 20;
        host.set_secs = 2 * HOUR;
        let told = host.now().wall - Duration::from_millis(20_500);
        assert_eq!(host.age_secs(told), 20);
    }

    #[test]
    fn handshake_does_not_lie_ahead() {
        let mut host = Host::new();
        assert_eq!(host.age_secs(at(2 * HOUR)), 0);
    }
}
