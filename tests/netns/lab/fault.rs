//! A fault under traffic: what it may cost, and what it did.

#[path = "../../support/fault.rs"]
mod row;

use std::time::{Duration, Instant};

use row::Row;
use row::{Bound, Lost};

use super::client::Pinged;
use super::{Backend, Lab, Ping, eventually};

/// A guest is slower, though an emulated processor twenty times. But clients begin lost sessions themselves
/// after 15 s, so that more would prove nothing.
const EMULATED: u32 = 2;
const UNNOTICED: Duration = Duration::from_secs(13);

/// A fault that a test is about to cause while clients ping.
pub struct Fault<'a> {
    lab: &'a Lab,
    what: &'a str,
    expected: &'a str,
    bound: Option<Bound>,
    concerned: Option<Ping>,
    others: Vec<Ping>,
}

impl<'a> Fault<'a> {
    /// `expected` says what the agent makes of it. It may cost no peer a packet, until [`may_cost`](Self::may_cost).
    pub fn new(lab: &'a Lab, what: &'a str, expected: &'a str) -> Self {
        Self { lab, what, expected, bound: None, concerned: None, others: Vec::new() }
    }

    /// A client that it concerns, and how long its answers may stay away.
    pub fn may_cost(self, bound: Duration, ping: Ping) -> Self {
        let bound = match self.lab.backend {
            Backend::Kernel => bound.max((bound * EMULATED).min(UNNOTICED)),
            Backend::Userspace => bound,
        };
        Self { bound: Some(Bound::Within(bound)), concerned: Some(ping), ..self }
    }

    /// Peers that it concerns lose their packets until somebody ends it.
    pub fn lasts(self) -> Self {
        Self { bound: Some(Bound::WhileItLasts), ..self }
    }

    /// A client that it does not concern, and that may lose nothing.
    pub fn spares(mut self, ping: Ping) -> Self {
        self.others.push(ping);
        self
    }

    /// Causes it, waits until `repaired`, and judges what was lost. `fired` says after the repair whether it
    /// had happened at all.
    #[track_caller]
    pub fn cause(self, cause: impl FnOnce(), repaired: impl FnMut() -> bool) {
        let pings = || self.concerned.iter().chain(&self.others);
        pings().for_each(|ping| ping.await_answers(5));
        let before = Instant::now();
        cause();
        eventually(&format!("{}: {}", self.what, self.expected), repaired);
        self.converged(before.elapsed());
    }

    /// A fault that a test has judged itself. It cost no packet, if any were sent.
    #[track_caller]
    pub fn told(lab: &Lab, what: &str, expected: &str, pinged: impl Into<Option<Pinged>>) {
        let pinged = pinged.into();
        let lost = pinged.map(|pinged| {
            assert_eq!(pinged.lost, 0, "{what}: {pinged:?}");
            Lost { pings: 0, of: pinged.last, outage: Duration::ZERO }
        });
        let bound = if lost.is_some() { Bound::None } else { Bound::NotMeasured };
        Self::print(lab, (what, expected), bound, lost, None);
    }

    /// A fault that a test has judged itself, and that costs packets until somebody ends it.
    pub fn told_lasting(lab: &Lab, what: &str, expected: &str) {
        Self::print(lab, (what, expected), Bound::WhileItLasts, None, None);
    }

    fn print(
        lab: &Lab,
        (fault, expected): (&str, &str),
        bound: Bound,
        lost: Option<Lost>,
        converged_in: Option<Duration>,
    ) {
        let tier = format!("{} WireGuard", lab.backend.word());
        Row { fault, expected, bound, lost, converged_in, tier: &tier }.print();
    }

    /// As [`told`](Self::told), where it may cost packets of those that it concerns.
    pub fn told_with_cost(
        lab: &Lab,
        texts: (&str, &str),
        bound: Duration,
        pinged: Pinged,
        converged_in: Duration,
    ) {
        let outage = if pinged.lost == 0 { Duration::ZERO } else { pinged.longest_gap };
        let lost = Lost { pings: pinged.lost, of: pinged.last, outage };
        let bound = if bound.is_zero() { Bound::None } else { Bound::Within(bound) };
        Self::print(lab, texts, bound, Some(lost), Some(converged_in));
    }

    /// Judges it after it converged.
    #[track_caller]
    pub fn converged(self, converged_in: Duration) {
        let what = self.what;
        self.concerned.iter().chain(&self.others).for_each(|ping| ping.await_answers(5));
        let mut lost = None;
        for ping in self.others {
            let (unanswered, counters) = (ping.unanswered(), ping.counters());
            let pinged = ping.end();
            assert_eq!(
                pinged.lost,
                0,
                "{what}: another peer lost {pinged:?}, {unanswered}\nat the peer:\n{counters}\nat the gateway:\n{}",
                self.lab.drops()
            );
            lost = Some(Lost { pings: 0, of: pinged.last, outage: Duration::ZERO });
        }
        if let Some(ping) = self.concerned {
            let pinged = ping.end();
            let outage = if pinged.lost == 0 { Duration::ZERO } else { pinged.longest_gap };
            if let Some(Bound::Within(bound)) = self.bound {
                assert!(outage <= bound, "{what}: {pinged:?}, more than {bound:?}");
            }
            lost = Some(Lost { pings: pinged.lost, of: pinged.last, outage });
        }
        let unsaid = if lost.is_some() { Bound::None } else { Bound::NotMeasured };
        let bound = self.bound.unwrap_or(unsaid);
        Self::print(self.lab, (what, self.expected), bound, lost, Some(converged_in));
    }
}
