//! The datagrams that the engine has received and not yet written to the TUN device or dropped.
//!
//! The engine compares a packet's source with the peer's prefixes, and writes the packet later. Whoever
//! takes a prefix away must know when the last such packet is written: only then may another peer have
//! the prefix.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use gotatun::packet::Packet;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};

/// What one buffer holds at least: a datagram of any usual link.
const BUFFER_BYTES: usize = 2048;
/// The agent waits longer for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often it is asked without a pause: a queue that is short is empty sooner than a timer could tell.
const HASTY_LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(1);

/// All datagrams of one device that are in flight. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct InFlight(Arc<Mutex<Buffers>>);

/// The engine decrypts a datagram where it is, and frees its memory once it is written or dropped. So
/// it is in flight for as long as its buffer has a second user.
#[derive(Default)]
struct Buffers {
    /// In the order in which they were given out: a handle to the start of each.
    given: VecDeque<BytesMut>,
    /// How many were given out before the first of these.
    former: u64,
}

impl InFlight {
    /// Counts these datagrams as in flight, by moving them to memory of which it knows.
    pub fn note(&self, datagrams: &mut [(Packet, SocketAddr)]) {
        let mut buffers = self.lock();
        for (datagram, _) in datagrams {
            *datagram = buffers.copy(datagram);
        }
    }

    /// Waits until every datagram that is in flight now has been written or dropped.
    ///
    /// # Errors
    /// One is there after four seconds, which is as good as never.
    pub async fn gone(&self) -> Result<(), Elapsed> {
        self.gone_within(PATIENCE).await
    }

    async fn gone_within(&self, patience: Duration) -> Result<(), Elapsed> {
        let end = self.lock().end();
        let gone = async {
            let mut looks = 0;
            while !self.lock().are_free(end) {
                looks += 1;
                match looks {
                    ..HASTY_LOOKS => tokio::task::yield_now().await,
                    _ => sleep(PAUSE).await,
                }
            }
        };
        timeout(patience, gone).await
    }

    fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers {
    fn copy(&mut self, datagram: &[u8]) -> Packet {
        let mut start = self.buffer(datagram.len());
        let mut bytes = start.split_off(0);
        bytes.extend_from_slice(datagram);
        self.given.push_back(start);
        Packet::from_bytes(bytes)
    }

    /// An empty buffer for so many bytes: the oldest, if it is free.
    fn buffer(&mut self, bytes: usize) -> BytesMut {
        if bytes <= BUFFER_BYTES
            && self.given.front_mut().is_some_and(is_free)
            && let Some(oldest) = self.given.pop_front()
        {
            self.former += 1;
            return oldest;
        }
        BytesMut::with_capacity(bytes.max(BUFFER_BYTES))
    }

    fn end(&self) -> u64 {
        self.former + self.given.len() as u64
    }

    /// Whether all are free that were given out before there were so many.
    fn are_free(&mut self, end: u64) -> bool {
        let older = usize::try_from(end.saturating_sub(self.former)).unwrap_or(usize::MAX);
        self.given.iter_mut().take(older).all(is_free)
    }
}

/// Whether nobody but its first handle, which is empty, uses the buffer.
fn is_free(start: &mut BytesMut) -> bool {
    start.try_reclaim(BUFFER_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(in_flight: &InFlight, bytes: &[u8]) -> Packet {
        let from = "192.0.2.1:9".parse().unwrap();
        let mut datagrams = [(Packet::copy_from(bytes), from)];
        in_flight.note(&mut datagrams);
        let [(datagram, _)] = datagrams;
        assert_eq!(&datagram[..], bytes);
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
        in_flight.gone().await.unwrap();
        for len in [40, BUFFER_BYTES, BUFFER_BYTES + 1, 65_000] {
            let (first, second) = (note(&in_flight, &vec![1; len]), note(&in_flight, &[2; 40]));
            drop(second);
            let first = decrypted(first);
            in_flight.gone_within(PAUSE * 5).await.unwrap_err();
            drop(first);
            in_flight.gone().await.unwrap();
        }
    }

    #[tokio::test]
    async fn datagrams_that_come_meanwhile_are_not_waited_for() {
        let in_flight = InFlight::default();
        let former = note(&in_flight, &[1; 40]);
        let gone = in_flight.gone();
        let meanwhile = async {
            sleep(PAUSE * 5).await;
            let later = note(&in_flight, &[2; 40]);
            drop(former);
            later
        };
        let (gone, later) = tokio::join!(gone, meanwhile);
        gone.unwrap();
        in_flight.gone_within(PAUSE * 5).await.unwrap_err();
        drop(later);
    }

    #[test]
    fn memory_is_used_again() {
        let in_flight = InFlight::default();
        for _ in 0..100 {
            let datagrams: Vec<Packet> = (0..10).map(|n| note(&in_flight, &[n; 1500])).collect();
            assert!(datagrams.iter().enumerate().all(|(n, it)| it.iter().all(|b| *b == n as u8)));
        }
        assert_eq!(in_flight.lock().given.len(), 10);
    }
}
