//! A world with a past: a database that may lose its last commits.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use gatepost::model::{BarredBy, DesiredState, Mark, PeerId, Profile, PublicKey, Standing};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::status::PeerState;
use gatepost::reconcile::{Event, MachineOptions, StaleOptions, StalePolicy, Withdrawal};
use ipnet::IpNet;
use proptest::prelude::*;
use uuid::Uuid;

use super::machine::Happening;
use super::rows::{Tables, id};
use super::world::{Trouble, World, options, quiet_tables, quiet_world};

/// Whose revocations count, from the first on.
pub const PEERS: u8 = 6;

impl World {
    /// As the database answers: whose mark is gone, with no later one about the same device.
    pub fn lost(&self, withdrawals: &BTreeMap<PublicKey, Withdrawal>) -> BTreeSet<PublicKey> {
        let is_lost = |it: &Withdrawal| {
            let device = it.device_id.0;
            let names_it = |mark: &Mark| mark.listed().is_some_and(|ids| ids.contains(&device));
            let about = |(mark, _): &(Mark, SystemTime)| {
                let ids: Vec<_> = mark.listed().into_iter().flatten().copied().collect();
                let of = |id| mark.of(id);
                ids.into_iter().map(Some).chain([None]).map(of).collect::<Vec<_>>()
            };
            let known: BTreeSet<_> = self.marks.iter().flat_map(about).collect();
            let newer = |(mark, at): &(Mark, SystemTime)| *at > it.read_at && names_it(mark);
            it.marks.iter().any(|mark| !known.contains(mark)) && !self.marks.iter().any(newer)
        };
        withdrawals.iter().filter(|(_, it)| is_lost(it)).map(|(key, _)| *key).collect()
    }
}

/// What may happen beside commits: one of these troubles, so often in relation to the rest.
pub fn small(troubles: Vec<Trouble>, weight: u32) -> impl Strategy<Value = Happening> {
    let trouble = prop::sample::select(troubles);
    prop_oneof![
        4 => (1u64..3_000).prop_map(Happening::Pause),
        2 => (1u8..5).prop_map(Happening::Act),
        1 => Just(Happening::Kill),
        1 => (1u64..30).prop_map(Happening::DatabaseGone),
        weight => (trouble, 1u64..100_000).prop_map(|(what, millis)| Happening::Trouble(what, millis)),
    ]
}

/// A world with the tables as they were after each commit.
pub struct Past {
    pub world: World,
    commits: Vec<Tables>,
    /// Whom each commit revoked, if it did.
    pub revoked: Vec<Option<u8>>,
    /// Whose revocation the agent has read, and no later admission.
    known: BTreeSet<u8>,
    /// Who may be out of the kernel without any revocation: something else barred it, and it was not seen in
    /// the kernel since.
    barred_otherwise: BTreeSet<u8>,
    /// Whose revocation was read when the database lost it, and not carried out: it may be before the new
    /// epoch is read.
    pub undecided: BTreeSet<u8>,
}

pub fn key(number: u8) -> PublicKey {
    PublicKey::from_bytes([number; 32]).unwrap()
}

impl Past {
    pub fn new() -> Self {
        Self::of(quiet_world())
    }

    pub fn of(world: World) -> Self {
        let commits = vec![world.tables.clone()];
        Self {
            commits,
            world,
            revoked: Vec::new(),
            known: BTreeSet::new(),
            barred_otherwise: BTreeSet::new(),
            undecided: BTreeSet::new(),
        }
    }

    /// As one transaction.
    pub fn commit(&mut self, number: u8, bars: BarredBy) {
        let row = self.world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
        row.bars = bars;
        let devices = vec![row.device_id.0];
        self.committed("device", devices, (bars != BarredBy::default()).then_some(number));
        self.world.tell(Event::Notified);
    }

    /// From this time of the database on.
    pub fn revoke_at(&mut self, number: u8, at: SystemTime) {
        let row = self.world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
        row.revoked_at = Some(at);
        let devices = vec![row.device_id.0];
        self.committed("device", devices, Some(number));
        self.world.tell(Event::Notified);
    }

    /// Many rows in one transaction.
    pub fn commit_all(
        &mut self,
        numbers: RangeInclusive<u8>,
        change: impl Fn(&mut Tables, PeerId),
    ) {
        for number in numbers.clone() {
            change(&mut self.world.tables, PeerId(id(2, number)));
        }
        let devices = numbers.map(|number| id(3, number)).collect();
        self.committed("device", devices, None);
        self.world.tell(Event::Notified);
    }

    /// Its id follows the last one that the database knows.
    fn committed(&mut self, kind: &str, ids: Vec<Uuid>, revoked: Option<u8>) {
        self.world.elapsed += Duration::from_micros(1);
        let mark = Mark { xid: self.world.marks.len() as u64, kind: kind.into(), ids: Some(ids) };
        self.world.marks.push((mark, self.world.database_now()));
        self.revoked.push(revoked);
        self.commits.push(self.world.tables.clone());
    }

    /// A failover to a server without the last commits. Returns whose enforced revocation is lost. What
    /// was read is enforced first.
    pub fn lose(&mut self, commits: usize) -> BTreeSet<u8> {
        self.world.settle();
        self.look();
        let waits = self.known.iter().filter(|number| self.passes(**number));
        let waits: Vec<u8> = waits.copied().collect();
        self.undecided.extend(waits);
        let left = self.revoked.len().saturating_sub(commits);
        self.commits.truncate(left + 1);
        self.world.tables = self.commits[left].clone();
        self.world.marks.truncate(left);
        self.world.epoch += 1;
        let lost = |number: &u8| {
            let row = &self.world.tables.peers[&PeerId(id(2, *number))];
            let is_barred =
                self.barred_otherwise.contains(number) || self.is_barred_otherwise(*number);
            let by = self.revoked.iter().rposition(|revoked| *revoked == Some(*number));
            row.bars == BarredBy::default()
                && by.is_some_and(|by| by >= left)
                && !self.passes(*number)
                && (self.known.contains(number) || !is_barred)
        };
        let lost = (1..=PEERS).filter(lost).collect();
        self.revoked.truncate(left);
        lost
    }

    /// Since when peers are shown as kept out.
    pub fn kept_out(&self) -> Vec<SystemTime> {
        let peers = self.world.machine.view().peers();
        let since = peers.iter().filter_map(|peer| match peer.state {
            PeerState::KeptOut { since, .. } => Some(since),
            _ => None,
        });
        since.collect()
    }

    /// Notes who may be out, and whose revocation the agent knows.
    pub fn look(&mut self) {
        for number in 1..=PEERS {
            if self.is_barred_otherwise(number) {
                self.barred_otherwise.insert(number);
            } else if self.passes(number) {
                self.barred_otherwise.remove(&number);
            }
        }
        if !self.world.queue.is_empty() {
            return;
        }
        let view = self.world.machine.view();
        for (row, standing) in view.desired().into_iter().flat_map(DesiredState::rows) {
            let Some(number) = (1..=PEERS).find(|number| row.id == PeerId(id(2, *number))) else {
                continue;
            };
            match standing {
                Standing::Ineligible(why) if !why.bars.is_empty() => self.known.insert(number),
                _ => self.known.remove(&number),
            };
        }
    }

    /// Whether something else than a revocation bars a peer.
    fn is_barred_otherwise(&self, number: u8) -> bool {
        let row = &self.world.tables.peers[&PeerId(id(2, number))];
        let is_stale = self.world.machine.view().is_stale();
        is_stale || self.world.block_list.bars(row) || !self.world.tables.gateway_active
    }

    pub fn gateway_is(&mut self, active: bool) {
        if std::mem::replace(&mut self.world.tables.gateway_active, active) != active {
            self.committed("gateway", Vec::new(), None);
        }
        self.world.tell(Event::Resync);
    }

    pub fn in_kernel(&self, number: u8) -> bool {
        self.world.kernel.state.peers.contains_key(&key(number))
    }

    /// Whether a peer is in the kernel and reaches anything.
    pub fn passes(&self, number: u8) -> bool {
        let state = &self.world.kernel.state;
        let Some(peer) = state.peers.get(&key(number)) else { return false };
        let reach = |prefix: IpNet| state.firewall.as_ref()?.profile_of(&prefix);
        peer.allowed_ips.iter().filter_map(reach).any(|profile| **profile != Profile::default())
    }

    pub fn is_held(&self, number: u8) -> bool {
        self.world.machine.view().held().peers().contains_key(&key(number))
    }
}

/// A world in which everybody is suspended once the rows are older than 15 s.
pub fn stale_past() -> Past {
    let stale = StaleOptions { policy: StalePolicy::Down, after: Duration::from_secs(15) };
    let options = MachineOptions { stale, ..options() };
    let mut world = World::with(options, quiet_tables(20), ModelKernel::default());
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(1));
    Past::of(world)
}
