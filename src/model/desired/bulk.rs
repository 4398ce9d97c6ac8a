//! Taking in all rows at once: what entering them one by one would give, at a fraction of its cost.
//!
//! Every map is made from its sorted entries, so that it is filled without gaps and no insertion
//! looks for its place.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::judge::{Candidate, Judgement};
use super::update::profile_of;
use super::{Claims, DesiredState, Entry, OwnStanding, precedence, precedence_to};
use crate::model::{Peer, PeerId, PeerRow, PublicKey};

impl DesiredState {
    /// Makes these the rows of a state that has none yet. Of several with one id the last counts.
    pub(super) fn enter_all(&mut self, rows: Vec<PeerRow>) {
        let bench = self.bench();
        let trimmed = rows.into_iter().map(|mut row| {
            bench.trim(&mut row);
            (row.id, row)
        });
        let rows: BTreeMap<PeerId, PeerRow> = trimmed.collect();
        self.by_device = rows.values().map(|row| (row.device_id, row.id)).collect();
        self.by_user = rows.values().map(|row| (row.user_id, row.id)).collect();
        let ahead =
            |row: &PeerRow| Some((row.revoked_at.filter(|at| *at > self.judged_at)?, row.id));
        self.expiries = rows.values().filter_map(ahead).collect();
        let judged = self.judge_all(&rows);
        self.key_claims = Claims::of(judged.key_claims);
        self.prefix_claims = Claims::of(judged.prefix_claims);

        let (mut peers, mut standings) = (Vec::new(), judged.standings.into_iter());
        let mut entries = Vec::with_capacity(rows.len());
        for (id, row) in rows {
            let standing =
                match standings.next().unwrap_or(Standing::Decided(OwnStanding::Ineligible)) {
                    Standing::Decided(standing) => standing,
                    Standing::Open(candidate) => match self.taken(id, &candidate) {
                        Some(reason) => OwnStanding::Contested(Box::new((candidate, reason))),
                        None => {
                            let key = candidate.key;
                            peers.push((key, Peer::from(candidate)));
                            OwnStanding::Admitted(key)
                        }
                    },
                };
            entries.push((id, Entry { row, standing }));
        }
        self.peers = peers.into_iter().collect();
        self.entries = entries.into_iter().collect();
        let with = |wanted: fn(&Entry) -> bool| {
            let ids = self.entries.iter().filter(|(_, entry)| wanted(entry)).map(|(id, _)| *id);
            ids.collect::<BTreeSet<_>>()
        };
        let (quarantined, unallocated) = (with(Entry::is_quarantined), with(Entry::is_unallocated));
        (self.quarantined, self.unallocated) = (quarantined, unallocated);
        self.assign_all();
    }

    fn judge_all(&self, rows: &BTreeMap<PeerId, PeerRow>) -> Judged {
        let bench = self.bench();
        let mut judged = Judged::default();
        for row in rows.values() {
            judged.standings.push(match bench.judge(row) {
                Judgement::Ineligible => Standing::Decided(OwnStanding::Ineligible),
                Judgement::Quarantined(reason) => {
                    Standing::Decided(OwnStanding::Quarantined(Box::new(reason)))
                }
                Judgement::Candidate(candidate) => {
                    judged.key_claims.push((candidate.key, precedence(row)));
                    let claim = |prefix| (prefix, precedence_to(&prefix, row));
                    judged.prefix_claims.extend(candidate.allowed_ips.iter().map(claim));
                    Standing::Open(candidate)
                }
            });
        }
        judged
    }

    /// Gives every admitted peer's prefixes its profile.
    fn assign_all(&mut self) {
        let mut assignments = Vec::with_capacity(self.peers.len());
        let mut outside = BTreeSet::new();
        for entry in self.entries.values() {
            let OwnStanding::Admitted(key) = &entry.standing else { continue };
            let profile = profile_of(&mut self.book, &self.gateway_dns, &entry.row);
            let Some(peer) = self.peers.get(key) else { continue };
            for prefix in peer.allowed_ips.iter() {
                assignments.push((prefix, profile.clone()));
                if !self.covers(&prefix) {
                    outside.insert(prefix);
                }
            }
        }
        self.firewall.assignments = assignments.into_iter().collect();
        self.outside = outside;
        self.aggregate_routes();
    }
}

/// What every row is by itself, in the order of the rows, with all their claims.
#[derive(Default)]
struct Judged {
    standings: Vec<Standing>,
    key_claims: Vec<(PublicKey, super::Precedence)>,
    prefix_claims: Vec<(IpNet, super::Precedence)>,
}

enum Standing {
    Decided(OwnStanding),
    /// Others may have the better claim.
    Open(Candidate),
}

impl From<Candidate> for Peer {
    fn from(candidate: Candidate) -> Self {
        let Candidate { preshared_key, allowed_ips, .. } = candidate;
        Self { preshared_key, allowed_ips, keepalive_secs: 0 }
    }
}
