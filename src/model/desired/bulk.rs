//! Taking in all rows at once: what entering them one by one would give, at a fraction of its cost.
//!
//! Every map is made from its sorted entries, so that it is filled without gaps and no insertion
//! looks for its place. What does not need each other is done at the same time.

use std::collections::BTreeSet;
use std::mem::take;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::SystemTime;

use foldhash::{HashMap, HashMapExt};
use ipnet::IpNet;

use super::absence::barred_key;
use super::evaluate::{Candidate, Evaluation, RowContext};
use super::update::profile_of;
use super::{Claims, DesiredState, Entry, OwnStanding, precedence, precedence_to};
use crate::model::policy::{PolicyBook, SameGroups};
use crate::model::{DeviceId, Peer, PeerId, PeerRow, Profile, PublicKey, UserId};

/// From so many rows on, another thread is worth its start.
const MANY_ROWS: usize = 4_096;

impl DesiredState {
    /// Makes these the rows of a state that has none yet. Of several with one id the last counts.
    pub(super) fn enter_all(&mut self, rows: Vec<PeerRow>) {
        let context = self.context();
        let rows = in_order(rows, &context);
        let evaluated = evaluate_all(&rows, &context);
        let evaluated_at = self.evaluated_at;
        let (index, profiles) = at_once(
            rows.len(),
            || Index::of(&rows, &evaluated, evaluated_at),
            || profiles(&rows, &evaluated, &mut self.book, &self.gateway_dns),
        );
        let Index { by_device, by_user, expiries, key_claims, prefix_claims } = index;
        (self.by_device, self.by_user, self.expiries) = (by_device, by_user, expiries);
        (self.key_claims, self.prefix_claims) = (key_claims, prefix_claims);
        self.seat_all(rows, evaluated, profiles);
    }

    /// `profiles`: of the candidates, in their order.
    fn seat_all(
        &mut self,
        rows: Vec<PeerRow>,
        evaluated: Vec<Evaluation>,
        profiles: Vec<Arc<Profile>>,
    ) {
        let mut profiles = profiles.into_iter();
        let mut entries = Vec::with_capacity(rows.len());
        let mut peers: Vec<(PublicKey, Peer)> = Vec::with_capacity(profiles.len());
        let mut assignments: Vec<(IpNet, Arc<Profile>)> = Vec::with_capacity(profiles.len());
        for (row, evaluation) in rows.into_iter().zip(evaluated) {
            let standing = match evaluation {
                Evaluation::Ineligible(why) => OwnStanding::Ineligible(why),
                Evaluation::Quarantined(reason) => OwnStanding::Quarantined(Box::new(reason)),
                Evaluation::Candidate(candidate) => {
                    let profile = profiles.next().unwrap_or_default();
                    match self.taken(row.id, &candidate) {
                        Some(reason) => OwnStanding::Contested(Box::new((candidate, reason))),
                        None => {
                            let key = candidate.key;
                            let prefixes = candidate.allowed_ips.iter();
                            assignments.extend(prefixes.map(|prefix| (prefix, profile.clone())));
                            peers.push((key, Peer::from(candidate)));
                            OwnStanding::Admitted(key)
                        }
                    }
                }
            };
            entries.push((row.id, Entry { row, standing }));
        }
        let with = |wanted: &dyn Fn(&Entry) -> bool| {
            let ids = entries.iter().filter(|(_, entry)| wanted(entry)).map(|(id, _)| *id);
            ids.collect::<BTreeSet<_>>()
        };
        (self.quarantined, self.unallocated) =
            (with(&Entry::is_quarantined), with(&Entry::is_unallocated));
        self.blocked = with(&Entry::is_blocked);
        self.sealed = with(&|entry| entry.is_sealed(&self.local.psk_keys));
        let barred =
            |(id, entry): &(PeerId, Entry)| Some((barred_key(&entry.row, &entry.standing)?, *id));
        self.barred = entries.iter().filter_map(barred).collect();
        let ineligible = entries.iter().filter(|(_, entry)| entry.is_barred_and(|_| true));
        self.barred_at = ineligible.map(|(id, entry)| (entry.row.address(), *id)).collect();
        let prefixes = assignments.iter().map(|(prefix, _)| *prefix);
        self.outside = prefixes.filter(|prefix| !self.covers(prefix)).collect();
        self.aggregate_routes();
        let admitted = Mutex::new((peers, assignments));
        let taken = || take(&mut *admitted.lock().unwrap_or_else(PoisonError::into_inner));
        let ((peers, assignments), entries) = at_once(
            entries.len(),
            || {
                let (peers, assignments) = taken();
                (peers.into_iter().collect(), assignments.into_iter().collect())
            },
            || entries.into_iter().collect(),
        );
        self.entries = entries;
        (self.peers, self.firewall.assignments) = (peers, assignments);
    }
}

/// The profile of each candidate.
fn profiles(
    rows: &[PeerRow],
    evaluated: &[Evaluation],
    book: &mut PolicyBook,
    gateway_dns: &[IpAddr],
) -> Vec<Arc<Profile>> {
    let mut known: HashMap<SameGroups, Arc<Profile>> = HashMap::new();
    let mut profile = |row: &PeerRow| {
        let alike = book.groups_alone(row.user_id, row.device_id);
        match alike.filter(|_| row.dns_servers.is_empty()) {
            Some(groups) => {
                let found =
                    known.entry(groups).or_insert_with(|| profile_of(book, gateway_dns, row));
                Arc::clone(found)
            }
            None => profile_of(book, gateway_dns, row),
        }
    };
    let candidate =
        |(_, evaluated): &(_, &Evaluation)| matches!(evaluated, Evaluation::Candidate(_));
    rows.iter().zip(evaluated).filter(candidate).map(|(row, _)| profile(row)).collect()
}

/// Trimmed, and sorted by id.
fn in_order(mut rows: Vec<PeerRow>, context: &RowContext<'_>) -> Vec<PeerRow> {
    rows.iter_mut().for_each(|row| context.trim(row));
    if !rows.is_sorted_by(|one, next| one.id < next.id) {
        // A stable sort of what came last first: the first of equals is the one that counts.
        rows.reverse();
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
    }
    rows
}

fn evaluate_all(rows: &[PeerRow], context: &RowContext<'_>) -> Vec<Evaluation> {
    let judge = |rows: &[PeerRow]| rows.iter().map(|row| context.evaluate(row)).collect::<Vec<_>>();
    let (first, rest) = rows.split_at(rows.len() / 2);
    let (mut evaluated, rest) = at_once(rows.len(), || judge(first), || judge(rest));
    evaluated.extend(rest);
    evaluated
}

/// Rows by other values than their id.
struct Index {
    by_device: BTreeSet<(DeviceId, PeerId)>,
    by_user: BTreeSet<(UserId, PeerId)>,
    expiries: BTreeSet<(SystemTime, PeerId)>,
    key_claims: Claims<PublicKey>,
    prefix_claims: Claims<IpNet>,
}

impl Index {
    fn of(rows: &[PeerRow], evaluated: &[Evaluation], evaluated_at: SystemTime) -> Self {
        let ahead = |row: &PeerRow| Some((row.revoked_at.filter(|at| *at > evaluated_at)?, row.id));
        let (mut keys, mut prefixes) = (Vec::new(), Vec::with_capacity(rows.len()));
        for (row, evaluation) in rows.iter().zip(evaluated) {
            let Evaluation::Candidate(Candidate { key, allowed_ips, .. }) = evaluation else {
                continue;
            };
            keys.push((*key, precedence(row)));
            let claim = |prefix| (prefix, precedence_to(&prefix, row));
            prefixes.extend(allowed_ips.iter().map(claim));
        }
        Self {
            by_device: rows.iter().map(|row| (row.device_id, row.id)).collect(),
            by_user: rows.iter().map(|row| (row.user_id, row.id)).collect(),
            expiries: rows.iter().filter_map(ahead).collect(),
            key_claims: Claims::of(keys),
            prefix_claims: Claims::of(prefixes),
        }
    }
}

/// Computes both values, on two threads if there are many rows. The result is the same on one thread.
#[expect(
    clippy::disallowed_methods,
    reason = "both threads end before this returns, and the result is the same on one"
)]
fn at_once<A: Send, B>(
    rows: usize,
    one: impl Fn() -> A + Sync,
    other: impl FnOnce() -> B,
) -> (A, B) {
    if rows < MANY_ROWS {
        return (one(), other());
    }
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, &one).ok();
        let other = other();
        let one = match thread.map(ScopedJoinHandle::join) {
            Some(Ok(one)) => one,
            Some(Err(panic)) => resume_unwind(panic),
            // There are no threads left: it is done here.
            None => one(),
        };
        (one, other)
    })
}

impl From<Candidate> for Peer {
    fn from(candidate: Candidate) -> Self {
        let Candidate { preshared_key, allowed_ips, .. } = candidate;
        Self { preshared_key, allowed_ips, keepalive_secs: 0 }
    }
}
