//! Where the peers of live sessions are, for the case that they have to be added anew. Pure.
//!
//! A peer that was removed by hand, or with its link, would notice only 15 s later: it answers no data
//! that it cannot send. So the gateway begins the next session itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use crate::model::{PublicKey, Traffic};

/// A session ends after this time at the latest (REJECT_AFTER_TIME), and its client begins anew.
const SESSION: Duration = Duration::from_secs(180);

/// The endpoints of peers that had a session when they were last read.
#[derive(Debug, Default)]
pub(super) struct Endpoints(BTreeMap<PublicKey, (SocketAddr, Instant)>);

impl Endpoints {
    /// Takes in a complete reading. What earlier readings showed stays for as long as a session lasts.
    pub fn note(&mut self, traffic: &BTreeMap<PublicKey, Traffic>, wall: SystemTime, now: Instant) {
        self.0.retain(|_, (_, seen)| now.saturating_duration_since(*seen) < SESSION);
        let age = |at: SystemTime| wall.duration_since(at).unwrap_or_default();
        let live = traffic.iter().filter_map(|(key, traffic)| {
            traffic.last_handshake.filter(|at| age(*at) < SESSION)?;
            Some((*key, (traffic.endpoint?, now)))
        });
        self.0.extend(live);
    }

    /// Where the peer was.
    pub fn of(&self, key: &PublicKey) -> Option<SocketAddr> {
        self.0.get(key).map(|(endpoint, _)| *endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_is_known_for_as_long_as_a_session_that_was_alive() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + 10 * SESSION);
        let key = |number| PublicKey::from_bytes([number; 32]).unwrap();
        let endpoint = Some(SocketAddr::from(([192, 0, 2, 1], 51_820)));
        let traffic = |age_secs| Traffic {
            endpoint,
            last_handshake: Some(wall - Duration::from_secs(age_secs)),
            ..Traffic::default()
        };
        let never = Traffic { endpoint, ..Traffic::default() };
        let read = [(key(1), traffic(20)), (key(2), traffic(200)), (key(3), never)].into();
        let mut endpoints = Endpoints::default();
        endpoints.note(&read, wall, start);
        assert_eq!([1, 2, 3].map(|number| endpoints.of(&key(number))), [endpoint, None, None]);
        endpoints.note(&BTreeMap::new(), wall, start + Duration::from_secs(60));
        assert_eq!(endpoints.of(&key(1)), endpoint, "its peer is gone, and may come back");
        endpoints.note(&BTreeMap::new(), wall, start + SESSION);
        assert_eq!(endpoints.of(&key(1)), None);
    }
}
