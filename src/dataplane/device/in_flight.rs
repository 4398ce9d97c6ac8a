//! The datagrams that the engine has received and not yet written to the TUN device or dropped.
//!
//! The engine compares a packet's source with the peer's prefixes, and writes the packet later. So the
//! answer to a change that takes a prefix away waits for the last such packet: only then may another peer
//! have the prefix.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use gotatun::packet::Packet;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

/// The first byte of a datagram that holds a packet. Others never reach the TUN device, and the engine
/// answers a handshake in the buffer of the request, which then waits for the network.
const DATA: u8 = 4;
/// Among fewer buffers none is looked for that is free.
const FEW: usize = 128;
/// How often to look without sleeping: a short queue drains faster than the shortest sleep.
const HASTY_LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// All datagrams of one device that are in flight. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<Buffers>>);

/// How many datagrams had come at some time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

/// The engine decrypts a datagram where it is, and frees its memory once it is written or dropped. So
/// it is in flight for as long as its buffer has a second user.
#[derive(Default)]
struct Buffers {
    /// A handle to the start of each, and the number of datagrams before it.
    given: Vec<(Moment, BytesMut)>,
    come: u64,
    /// With so many, those that are free are forgotten.
    full: usize,
}

impl InFlight {
    /// Counts those of these datagrams that hold packets as in flight, by moving them to memory of which
    /// it knows.
    pub fn note(&self, datagrams: &mut [(Packet, SocketAddr)]) {
        let mut buffers = self.lock();
        for (datagram, _) in datagrams.iter_mut().filter(|it| it.0.first() == Some(&DATA)) {
            *datagram = buffers.copy(datagram);
        }
    }

    pub fn now(&self) -> Moment {
        Moment(self.lock().come)
    }

    /// Waits until every datagram that had come by then has been written or dropped. With no patience it
    /// only looks.
    ///
    /// # Errors
    /// Some are still in flight.
    pub async fn passed(&self, moment: Moment, patience: Duration) -> Result<(), Elapsed> {
        await_in_flight(patience, || self.lock().are_free(moment)).await
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    fn copy(&mut self, datagram: &[u8]) -> Packet {
        if self.given.len() >= self.full {
            self.given.retain_mut(|(_, start)| !is_free(start));
            self.full = (2 * self.given.len()).max(FEW);
        }
        let (start, packet) = copy_tracked(datagram);
        self.given.push((Moment(self.come), start));
        self.come += 1;
        packet
    }

    /// Whether all are free that had come by then.
    fn are_free(&mut self, moment: Moment) -> bool {
        let former = self.given.iter_mut().take_while(|(before, _)| before.0 < moment.0);
        former.map(|(_, start)| start).all(is_free)
    }
}

/// A packet, and a handle to the start of its buffer, which tells when the packet is gone.
pub(super) fn copy_tracked(bytes: &[u8]) -> (BytesMut, Packet) {
    let mut start = BytesMut::with_capacity(bytes.len());
    let mut rest = start.split_off(0);
    rest.extend_from_slice(bytes);
    (start, Packet::from_bytes(rest))
}

/// Whether only the first handle, which is empty, uses the buffer.
pub(super) fn is_free(start: &mut BytesMut) -> bool {
    start.try_reclaim(1)
}

/// Looks until packets have passed. With no patience it looks once.
pub(super) async fn await_in_flight(
    patience: Duration,
    mut have_passed: impl FnMut() -> bool,
) -> Result<(), Elapsed> {
    let passed = async {
        let mut looks = 0;
        while !have_passed() {
            looks += 1;
            match looks {
                ..HASTY_LOOKS if !patience.is_zero() => tokio::task::yield_now().await,
                _ => sleep(PAUSE).await,
            }
        }
    };
    timeout(patience, passed).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(5);

    fn note(in_flight: &InFlight, len: usize) -> Packet {
        let bytes = vec![DATA; len];
        let from = "192.0.2.1:9".parse().unwrap();
        let mut datagrams = [(Packet::copy_from(&bytes[..]), from)];
        in_flight.note(&mut datagrams);
        let [(datagram, _)] = datagrams;
        assert_eq!(datagram[..], bytes);
        datagram
    }

    /// As the engine does: the header goes, and the padding.
    fn decrypted(mut datagram: Packet) -> Packet {
        drop(datagram.buf_mut().split_to(16));
        datagram.truncate(20);
        datagram
    }

    #[tokio::test]
    async fn a_datagram_is_in_flight_until_its_last_part_is_dropped() {
        let in_flight = InFlight::default();
        in_flight.passed(in_flight.now(), SHORT).await.unwrap();
        for len in [40, 2_048, 2_049, 65_000] {
            let (first, second) = (note(&in_flight, len), note(&in_flight, 40));
            let now = in_flight.now();
            drop(second);
            let first = decrypted(first);
            in_flight.passed(now, SHORT).await.unwrap_err();
            in_flight.passed(now, Duration::ZERO).await.unwrap_err();
            drop(first);
            in_flight.passed(now, LONG).await.unwrap();
            in_flight.passed(now, Duration::ZERO).await.unwrap();
        }
    }

    #[tokio::test]
    async fn datagrams_that_come_later_are_not_waited_for() {
        let in_flight = InFlight::default();
        let former = note(&in_flight, 40);
        let moment = in_flight.now();
        let meanwhile = async {
            sleep(SHORT).await;
            let later = note(&in_flight, 40);
            drop(former);
            later
        };
        let (passed, later) = tokio::join!(in_flight.passed(moment, LONG), meanwhile);
        passed.unwrap();
        in_flight.passed(in_flight.now(), SHORT).await.unwrap_err();
        drop(later);
    }

    #[tokio::test]
    async fn handshakes_are_not_waited_for() {
        let in_flight = InFlight::default();
        let mut datagrams = [(Packet::copy_from(&[1; 148][..]), "192.0.2.1:9".parse().unwrap())];
        in_flight.note(&mut datagrams);
        in_flight.passed(in_flight.now(), Duration::ZERO).await.unwrap();
    }

    #[test]
    fn memory_is_given_back_whatever_was_sent_and_whichever_is_oldest() {
        let in_flight = InFlight::default();
        let oldest = note(&in_flight, 40);
        for len in [40, 2_048, 2_049, 65_000] {
            for _ in 0..1_000 {
                drop(note(&in_flight, len));
                assert!(in_flight.lock().given.len() <= FEW, "with {len} bytes");
            }
        }
        let many: Vec<Packet> = (0..10 * FEW).map(|_| note(&in_flight, 40)).collect();
        assert!(in_flight.lock().given.len() > many.len());
        drop((oldest, many));
        for _ in 0..20 * FEW {
            drop(note(&in_flight, 40));
        }
        assert!(in_flight.lock().given.len() <= FEW);
    }
}
