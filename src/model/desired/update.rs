//! Bringing the state up to date with changed rows.
//!
//! A row enters with its claims; rows whose claims are thereby won or lost are unseated first and
//! then seated again, all of them, so that no order of rows can matter.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;

use super::absence::{barred_key, peers_at};
use super::evaluate::listed_dns;
use super::evaluate::{Candidate, Evaluation, RowContext};
use super::{
    Departed, DesiredState, Entry, Ineligible, OwnStanding, Reason, Touched, precedence,
    precedence_to,
};
use crate::model::policy::{PolicyBook, Subject};
use crate::model::{
    BlockList, ChangedRows, DeviceId, KeyText, Peer, PeerId, PeerRow, Profile, PublicKey, UserId,
};

impl DesiredState {
    /// Takes in rows that changed, and says what may differ now.
    pub fn apply(&mut self, rows: ChangedRows) -> Touched {
        let mut touched = Touched::default();
        self.as_of = self.as_of.max(rows.taken_at);
        self.evaluated_at = self.evaluated_at.max(rows.taken_at);
        let mut subjects = BTreeSet::new();
        for (user_id, group_ids) in rows.memberships {
            subjects.extend(self.book.set_membership(user_id, group_ids));
        }
        if !rows.policies.is_empty() {
            // Their names may be others.
            self.refusals_changed();
        }
        for (policy_id, policy) in rows.policies {
            let former = self.book.name_of(policy_id).map(Box::from);
            let name = policy.as_ref().map(|policy| policy.name.as_str().into()).or(former);
            let affected = self.book.set_policy(policy_id, policy.as_ref());
            touched
                .policies
                .extend(name.filter(|_| !affected.is_empty()).map(|it| (policy_id, it)));
            subjects.extend(affected);
        }
        for subject in subjects {
            self.touch_subject(subject, &mut touched);
        }
        let mut unsettled = BTreeSet::new();
        for (device_id, rows) in rows.peers {
            for id in self.peers_of_device(device_id) {
                self.withdraw(id, &mut unsettled, &mut touched);
            }
            for row in rows {
                // A peer that is held back may have this row now, or its address.
                touched.peers.extend(match row.public_key {
                    KeyText::Key(key) => Some(key),
                    KeyText::Bad { .. } => None,
                });
                touched.prefixes.insert(row.address());
                self.withdraw(row.id, &mut unsettled, &mut touched);
                touched.rows.insert(row.id);
                self.enter(row, &mut unsettled);
            }
        }
        self.expire_into(&mut unsettled, &mut touched);
        self.settle(unsettled, &mut touched);
        touched
    }

    /// Notes that no row had changed by `taken_at`.
    pub fn unchanged(&mut self, taken_at: SystemTime) -> Touched {
        self.as_of = self.as_of.max(taken_at);
        self.expire(taken_at)
    }

    /// Judges again every row whose revocation has come by `now` (the database's clock). Says nothing
    /// of what the database holds then.
    pub fn expire(&mut self, now: SystemTime) -> Touched {
        let (mut unsettled, mut touched) = (BTreeSet::new(), Touched::default());
        self.evaluated_at = self.evaluated_at.max(now);
        self.expire_into(&mut unsettled, &mut touched);
        self.settle(unsettled, &mut touched);
        touched
    }

    /// Admits only these peers for now, as if all others were not eligible; `None` ends that.
    pub fn suspend_all_but(&mut self, admitted: Option<BTreeSet<PublicKey>>) -> Touched {
        self.admit_only = admitted;
        self.enter_again(|_| true)
    }

    /// From now on this is the host's block list.
    pub fn block(&mut self, list: Arc<BlockList>) -> Touched {
        let former = std::mem::replace(&mut self.block_list, Arc::clone(&list));
        self.enter_again(|row| former.bars(row) != list.bars(row))
    }

    /// Keeps these peers out for now, as if they were not eligible.
    pub fn keep_out(&mut self, keys: BTreeSet<PublicKey>) -> Touched {
        let former = std::mem::replace(&mut self.kept_out, keys.clone());
        self.enter_again(|row| {
            let is_in = |keys: &BTreeSet<PublicKey>| matches!(&row.public_key, KeyText::Key(key) if keys.contains(key));
            is_in(&former) != is_in(&keys)
        })
    }

    /// Evaluates these rows anew.
    fn enter_again(&mut self, concerned: impl Fn(&PeerRow) -> bool) -> Touched {
        let (mut unsettled, mut touched) = (BTreeSet::new(), Touched::default());
        let entries = self.entries.iter().filter(|(_, entry)| concerned(&entry.row));
        let ids: Vec<PeerId> = entries.map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(row) = self.entries.get(&id).map(|entry| entry.row.clone()) {
                self.withdraw(id, &mut unsettled, &mut touched);
                self.enter(row, &mut unsettled);
            }
        }
        self.settle(unsettled, &mut touched);
        touched
    }

    fn expire_into(&mut self, unsettled: &mut BTreeSet<PeerId>, touched: &mut Touched) {
        while let Some((at, id)) = self.expiries.first().copied() {
            if at > self.evaluated_at {
                break;
            }
            self.expiries.pop_first();
            if let Some(row) = self.entries.get(&id).map(|entry| entry.row.clone()) {
                self.withdraw(id, unsettled, touched);
                self.enter(row, unsettled);
            }
        }
    }

    /// Takes a row out, with its claims. Rows that gain by that become unsettled.
    fn withdraw(&mut self, id: PeerId, unsettled: &mut BTreeSet<PeerId>, touched: &mut Touched) {
        let Some(entry) = self.entries.remove(&id) else { return };
        touched.rows.insert(id);
        self.by_device.remove(&(entry.row.device_id, id));
        self.by_user.remove(&(entry.row.user_id, id));
        self.quarantined.remove(&id);
        self.unallocated.remove(&id);
        self.blocked.remove(&id);
        self.sealed.remove(&id);
        unsettled.remove(&id);
        if let Some(at) = entry.row.revoked_at {
            self.expiries.remove(&(at, id));
        }
        if let OwnStanding::Admitted(key) = &entry.standing {
            touched.departed.insert(*key, Departed::from(&entry.row));
        }
        // A held peer may have this address.
        touched.prefixes.insert(entry.row.address());
        self.barred_at.remove(&(entry.row.address(), id));
        if let Some(key) = barred_key(&entry.row, &entry.standing) {
            self.barred.remove(&(key, id));
            touched.peers.insert(key);
            if entry.is_barred_and(Ineligible::is_entitled) {
                touched.departed.entry(key).or_insert_with(|| Departed::from(&entry.row));
            }
        }
        let Some(candidate) = self.unseat(entry.standing) else { return };
        let claim = precedence(&entry.row);
        unsettled.extend(self.key_claims.remove(candidate.key, claim));
        touched.peers.insert(candidate.key);
        for prefix in candidate.allowed_ips.iter() {
            let claim = precedence_to(&prefix, &entry.row);
            unsettled.extend(self.prefix_claims.remove(prefix, claim));
            touched.prefixes.insert(prefix);
        }
    }

    /// Puts a row in, with its claims. It and who loses by that become unsettled.
    fn enter(&mut self, mut row: PeerRow, unsettled: &mut BTreeSet<PeerId>) {
        let id = row.id;
        let context = self.context();
        context.trim(&mut row);
        let standing = match context.evaluate(&row) {
            Evaluation::Ineligible(why) => {
                if why.blocked {
                    self.blocked.insert(id);
                }
                self.barred_at.insert((row.address(), id));
                OwnStanding::Ineligible(why)
            }
            Evaluation::Quarantined(reason) => {
                self.quarantined.insert(id);
                OwnStanding::Quarantined(Box::new(reason))
            }
            Evaluation::Candidate(candidate) => {
                let claim = precedence(&row);
                unsettled.insert(id);
                unsettled.extend(self.key_claims.add(candidate.key, claim));
                for prefix in candidate.allowed_ips.iter() {
                    let claim = precedence_to(&prefix, &row);
                    unsettled.extend(self.prefix_claims.add(prefix, claim));
                }
                let unsettled = Reason::KeyTaken { by: id };
                OwnStanding::Contested(Box::new((candidate, unsettled)))
            }
        };
        if let Some(at) = row.revoked_at.filter(|at| *at > self.evaluated_at) {
            self.expiries.insert((at, id));
        }
        self.barred.extend(barred_key(&row, &standing).map(|key| (key, id)));
        self.by_device.insert((row.device_id, id));
        self.by_user.insert((row.user_id, id));
        self.entries.insert(id, Entry { row, standing });
    }

    /// Decides every unsettled row by who holds what now, then what follows for the prefixes.
    fn settle(&mut self, unsettled: BTreeSet<PeerId>, touched: &mut Touched) {
        let mut candidates = BTreeMap::new();
        for id in unsettled {
            let Some(entry) = self.entries.get_mut(&id) else { continue };
            if matches!(entry.standing, OwnStanding::Ineligible(_) | OwnStanding::Quarantined(_)) {
                continue;
            }
            // Until it is seated again below.
            let unsettled = OwnStanding::Ineligible(Ineligible::default());
            let standing = std::mem::replace(&mut entry.standing, unsettled);
            if let OwnStanding::Admitted(key) = &standing {
                touched.departed.insert(*key, Departed::from(&entry.row));
            }
            if let Some(candidate) = self.unseat(standing) {
                candidates.insert(id, candidate);
            }
        }
        for (id, candidate) in candidates {
            touched.rows.insert(id);
            touched.peers.insert(candidate.key);
            touched.prefixes.extend(candidate.allowed_ips.iter());
            self.seat(id, candidate);
        }
        touched.departed.retain(|key, _| !self.peers.contains_key(key));
        let mut routes_changed = false;
        for prefix in &touched.prefixes {
            routes_changed |= self.assign(*prefix);
        }
        if routes_changed {
            self.aggregate_routes();
        }
        self.release_profiles();
    }

    pub(super) fn aggregate_routes(&mut self) {
        self.routes = self.routes_with(std::iter::empty());
    }

    /// Takes the candidate out of its place among the peers or the contested.
    fn unseat(&mut self, standing: OwnStanding) -> Option<Candidate> {
        match standing {
            OwnStanding::Ineligible(_) | OwnStanding::Quarantined(_) => None,
            OwnStanding::Contested(contested) => Some(contested.0),
            OwnStanding::Admitted(key) => {
                let Peer { preshared_key, allowed_ips, .. } = self.peers.remove(&key)?;
                Some(Candidate { key, preshared_key, allowed_ips })
            }
        }
    }

    /// Admits a candidate that holds all it claims; contests it otherwise.
    fn seat(&mut self, id: PeerId, candidate: Candidate) {
        let taken = self.taken(id, &candidate);
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Some(reason) = taken {
            entry.standing = OwnStanding::Contested(Box::new((candidate, reason)));
            self.quarantined.insert(id);
            self.unallocated.remove(&id);
            self.sealed.remove(&id);
            return;
        }
        let key = candidate.key;
        entry.standing = OwnStanding::Admitted(key);
        self.quarantined.remove(&id);
        if entry.is_unallocated() {
            self.unallocated.insert(id);
        }
        if entry.is_sealed(&self.local.psk_keys) {
            self.sealed.insert(id);
        }
        self.peers.insert(key, candidate.into());
    }

    /// Why a candidate, whose claims are made, cannot be admitted now: another holds what it claims.
    pub(super) fn taken(&self, id: PeerId, candidate: &Candidate) -> Option<Reason> {
        let key_holder = self.key_claims.contested_holder(&candidate.key);
        let key_taken = key_holder.filter(|by| *by != id).map(|by| Reason::KeyTaken { by });
        key_taken.or_else(|| {
            candidate.allowed_ips.iter().find_map(|prefix| {
                let by = self.prefix_claims.contested_holder(&prefix).filter(|by| *by != id)?;
                Some(Reason::PrefixTaken { prefix, by })
            })
        })
    }

    /// Gives a prefix the profile of the peer that holds it now, or none. Says whether the
    /// prefixes that need a route changed.
    fn assign(&mut self, prefix: IpNet) -> bool {
        let holder = self.prefix_claims.holder(&prefix).and_then(|id| self.entries.get(&id));
        let admitted = holder.filter(|entry| matches!(entry.standing, OwnStanding::Admitted(_)));
        let Some(entry) = admitted else {
            self.firewall.assignments.remove(&prefix);
            self.gets_profile(prefix, None);
            return self.outside.remove(&prefix);
        };
        let profile = profile_of(&mut self.book, &self.gateway_dns, &entry.row);
        // Also a profile that grants nothing: without one, an address within another peer's site
        // prefix would be evaluated as that peer.
        self.gets_profile(prefix, Some(&profile));
        self.firewall.assignments.insert(prefix, profile);
        !self.covers(&prefix) && self.outside.insert(prefix)
    }

    /// Whether the connected route of an interface address leads to a prefix: it needs none of its own.
    #[must_use]
    pub fn covers(&self, prefix: &IpNet) -> bool {
        self.interface.addresses.iter().any(|own| own.contains(prefix))
    }

    fn touch_subject(&self, subject: Subject, touched: &mut Touched) {
        let ids = match subject {
            Subject::Device(device_id) => self.peers_of_device(device_id),
            Subject::User(user_id) => self.peers_of_user(user_id),
        };
        for id in ids {
            let Some(entry) = self.entries.get(&id) else { continue };
            if let OwnStanding::Admitted(key) = &entry.standing
                && let Some(peer) = self.peers.get(key)
            {
                touched.prefixes.extend(peer.allowed_ips.iter());
            }
            // A peer that is held back reaches no more than its row allows.
            touched.peers.extend(barred_key(&entry.row, &entry.standing));
        }
    }

    pub(super) fn peers_of_device(&self, device_id: DeviceId) -> Vec<PeerId> {
        peers_at(&self.by_device, device_id).collect()
    }

    pub(super) fn peers_of_user(&self, user_id: UserId) -> Vec<PeerId> {
        peers_at(&self.by_user, user_id).collect()
    }

    pub(super) fn context(&self) -> RowContext<'_> {
        RowContext {
            local: &self.local,
            gateway: &self.gateway,
            settings: &self.settings,
            interface: &self.interface,
            gateway_key: self.gateway_key,
            admit_only: self.admit_only.as_ref(),
            blocked: &self.block_list,
            kept_out: &self.kept_out,
            now: self.evaluated_at,
        }
    }
}

/// The profile of a row's device.
pub(super) fn profile_of(
    book: &mut PolicyBook,
    gateway_dns: &[IpAddr],
    row: &PeerRow,
) -> Arc<Profile> {
    book.profile_for(row.user_id, row.device_id, &listed_dns(gateway_dns, row))
}
