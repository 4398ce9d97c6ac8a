//! The connected peers and the start of their sessions, from the handshakes and endpoints that the kernel
//! counts.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::model::{DeviceId, PublicKey, Traffic};
use crate::store::Handshake;

/// WireGuard drops a session's keys after this long without a new handshake (`REJECT_AFTER_TIME`,
/// WireGuard paper, section 6.1): a peer without a handshake for longer is not connected.
pub const SESSION_SECS: u64 = 180;

/// An event of a session, by the counters of a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEvent {
    Connected { key: PublicKey, at: SystemTime, endpoint: Option<SocketAddr> },
    Disconnected { key: PublicKey, last_seen: SystemTime, session: PastSession },
    Roamed { key: PublicKey, from: SocketAddr, to: SocketAddr },
}

/// A session that ended. One that was there when the agent started counts from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PastSession {
    /// From its first handshake to its end, [`SESSION_SECS`] after the last; `None`: it began before
    /// the agent.
    pub lasted: Option<Duration>,
    /// Bytes that the gateway received from the peer.
    pub rx_bytes: u64,
    /// Bytes that the gateway sent to the peer.
    pub tx_bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Session {
    last_handshake: SystemTime,
    endpoint: Option<SocketAddr>,
    connected: bool,
    /// Its first handshake; `None`: before the agent started.
    began_at: Option<SystemTime>,
    /// The peer's counters when it began, and at the last reading.
    at_begin: Counters,
    latest: Counters,
}

/// Bytes since the peer was added: received from it, sent to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Counters {
    rx: u64,
    tx: u64,
}

impl Counters {
    const fn of(traffic: &Traffic) -> Self {
        Self { rx: traffic.rx_bytes, tx: traffic.tx_bytes }
    }

    /// The counts since `before`. Smaller counters began anew with the peer.
    fn since(self, before: Self) -> Self {
        let more = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
        Self { rx: more(self.rx, before.rx), tx: more(self.tx, before.tx) }
    }
}

/// Every peer's session, as of the last reading. Peers that never shook hands take no place.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    sessions: BTreeMap<PublicKey, Session>,
    seen_before: bool,
}

impl Sessions {
    /// Takes in a complete reading at `now`. Returns the new handshakes of peers whose device is known,
    /// and what happened.
    ///
    /// The first reading is the baseline: it reports handshakes but no events, because the agent has
    /// just started and the peers may have been connected all along.
    pub fn update(
        &mut self,
        traffic: &BTreeMap<PublicKey, Traffic>,
        device_of: impl Fn(&PublicKey) -> Option<DeviceId>,
        now: SystemTime,
    ) -> (Vec<Handshake>, Vec<SessionEvent>) {
        let (mut handshakes, mut events) = (Vec::new(), Vec::new());
        let mut report = |key: &PublicKey, at, connected_at| {
            let handshake =
                |device_id| Handshake { device_id, first_at: at, seen_at: at, connected_at };
            handshakes.extend(device_of(key).map(handshake));
        };
        self.sessions.retain(|key, _| traffic.contains_key(key));
        for (key, traffic) in traffic {
            // A clock that was set back must not make a handshake lie ahead.
            let Some(at) = traffic.last_handshake.map(|at| at.min(now)) else { continue };
            let alive = is_alive(at, now);
            match self.sessions.get_mut(key) {
                None => {
                    let known = self.seen_before;
                    report(key, at, known.then_some(at));
                    if known && alive {
                        let endpoint = traffic.endpoint;
                        events.push(SessionEvent::Connected { key: *key, at, endpoint });
                    }
                    let latest = Counters::of(traffic);
                    let session = Session {
                        last_handshake: at,
                        endpoint: traffic.endpoint,
                        connected: alive,
                        began_at: known.then_some(at),
                        at_begin: if known { Counters::default() } else { latest },
                        latest,
                    };
                    self.sessions.insert(*key, session);
                }
                Some(session) => {
                    if let Some(connected_at) =
                        session.update(*key, traffic, at, alive, &mut events)
                    {
                        report(key, at, connected_at);
                    }
                }
            }
        }
        self.seen_before = true;
        (handshakes, events)
    }
}

impl Session {
    /// Takes in a peer's last handshake. If it is new, returns when its session began, as far as that
    /// is known: after a restart the database knows better.
    fn update(
        &mut self,
        key: PublicKey,
        traffic: &Traffic,
        at: SystemTime,
        alive: bool,
        events: &mut Vec<SessionEvent>,
    ) -> Option<Option<SystemTime>> {
        let mut new_handshake = None;
        if at > self.last_handshake {
            let new_session = age(at, self.last_handshake) > Duration::from_secs(SESSION_SECS);
            new_handshake = Some(new_session.then_some(at));
            self.last_handshake = at;
            if new_session {
                (self.began_at, self.at_begin) = (Some(at), self.latest);
            }
            if alive && (new_session || !self.connected) {
                events.push(SessionEvent::Connected { key, at, endpoint: traffic.endpoint });
            }
        }
        self.latest = Counters::of(traffic);
        if self.connected && !alive {
            events.push(SessionEvent::Disconnected { key, last_seen: at, session: self.past() });
        }
        if let (true, Some(from), Some(to)) = (alive, self.endpoint, traffic.endpoint)
            && from != to
            && self.connected
        {
            events.push(SessionEvent::Roamed { key, from, to });
        }
        self.connected = alive;
        self.endpoint = traffic.endpoint.or(self.endpoint);
        new_handshake
    }

    fn past(&self) -> PastSession {
        let ended_at = self.last_handshake + Duration::from_secs(SESSION_SECS);
        let Counters { rx, tx } = self.latest.since(self.at_begin);
        let lasted = self.began_at.map(|began_at| age(ended_at, began_at));
        PastSession { lasted, rx_bytes: rx, tx_bytes: tx }
    }
}

/// Whether a session that began with this handshake goes on.
pub(super) fn is_alive(last_handshake: SystemTime, now: SystemTime) -> bool {
    age(now, last_handshake) <= Duration::from_secs(SESSION_SECS)
}

fn age(now: SystemTime, at: SystemTime) -> Duration {
    now.duration_since(at).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "4V5ShwAxMwr1PyLW4mZs0CjWBpSMLMDJiyDdLCT3XnE=";

    fn device(_: &PublicKey) -> Option<DeviceId> {
        Some(DeviceId(uuid::Uuid::nil()))
    }

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    fn reading(handshake_secs: u64, port: u16) -> BTreeMap<PublicKey, Traffic> {
        let endpoint = Some(SocketAddr::from(([192, 0, 2, 1], port)));
        let traffic =
            Traffic { endpoint, last_handshake: Some(at(handshake_secs)), ..Traffic::default() };
        BTreeMap::from([(KEY.parse().unwrap(), traffic)])
    }

    #[test]
    fn the_first_reading_reports_handshakes_and_no_events() {
        let (handshakes, events) =
            Sessions::default().update(&reading(1_000, 1), device, at(1_010));
        let [handshake] = handshakes[..] else { panic!("{handshakes:?}") };
        let times = (handshake.first_at, handshake.seen_at, handshake.connected_at);
        assert_eq!(times, (at(1_000), at(1_000), None));
        assert!(events.is_empty());
    }

    #[test]
    fn a_session_begins_lasts_and_ends() {
        let mut sessions = Sessions::default();
        sessions.update(&BTreeMap::new(), device, at(900));
        let (handshakes, events) = sessions.update(&reading(1_000, 1), device, at(1_001));
        assert_eq!(handshakes[0].connected_at, Some(at(1_000)));
        assert!(matches!(events[..], [SessionEvent::Connected { .. }]));
        let (handshakes, events) = sessions.update(&reading(1_120, 1), device, at(1_121));
        assert_eq!(handshakes[0].connected_at, None, "a rekey");
        assert!(events.is_empty());
        assert!(sessions.update(&reading(1_120, 1), device, at(1_125)).0.is_empty(), "nothing new");
        let (_, events) = sessions.update(&reading(1_120, 1), device, at(1_301));
        assert!(matches!(events[..], [SessionEvent::Disconnected { .. }]));
        assert!(sessions.update(&reading(1_120, 1), device, at(1_400)).1.is_empty(), "said once");
        let (_, events) = sessions.update(&reading(1_500, 2), device, at(1_501));
        assert!(matches!(events[..], [SessionEvent::Connected { .. }]));
    }

    #[test]
    fn the_end_of_a_session_says_how_long_it_was_and_what_it_carried() {
        let counted = |handshake_secs, rx_bytes| {
            let mut reading = reading(handshake_secs, 1);
            let traffic = reading.values_mut().next().unwrap();
            (traffic.rx_bytes, traffic.tx_bytes) = (rx_bytes, 2 * rx_bytes);
            reading
        };
        let ended = |events: &[SessionEvent]| match events {
            [SessionEvent::Disconnected { session, .. }] => *session,
            other => panic!("{other:?}"),
        };
        let lasted = |secs| Some(Duration::from_secs(secs));
        let mut sessions = Sessions::default();
        sessions.update(&counted(1_000, 50), device, at(1_001));
        let (_, events) = sessions.update(&counted(1_000, 70), device, at(1_181));
        let before_the_agent = PastSession { lasted: None, rx_bytes: 20, tx_bytes: 40 };
        assert_eq!(ended(&events), before_the_agent);
        sessions.update(&counted(2_000, 100), device, at(2_001));
        sessions.update(&counted(2_120, 170), device, at(2_121));
        let (_, events) = sessions.update(&counted(2_120, 180), device, at(2_301));
        let whole = PastSession { lasted: lasted(300), rx_bytes: 110, tx_bytes: 220 };
        assert_eq!(ended(&events), whole);
        // The peer was removed and added again between two readings.
        sessions.update(&counted(3_000, 5), device, at(3_001));
        let (_, events) = sessions.update(&counted(3_000, 7), device, at(3_181));
        assert_eq!(ended(&events).rx_bytes, 7);
    }

    #[test]
    fn a_moved_endpoint_is_a_roam() {
        let mut sessions = Sessions::default();
        sessions.update(&reading(1_000, 1), device, at(1_001));
        let (_, events) = sessions.update(&reading(1_000, 2), device, at(1_002));
        assert!(matches!(events[..], [SessionEvent::Roamed { .. }]));
    }

    #[test]
    fn a_handshake_never_lies_ahead() {
        let (handshakes, _) = Sessions::default().update(&reading(5_000, 1), device, at(1_000));
        assert_eq!(handshakes[0].seen_at, at(1_000));
    }
}
