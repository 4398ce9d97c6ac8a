//! The firewall: table `inet gatepost`, over one netlink socket, without text and without the
//! `nft` program.
//!
//! ```text
//! observe: socket -> dump -> observe (guarded) -> ObservedFirewall, Difference
//! apply:   FirewallChange -> change (sets) -> batch -> socket
//! both:    table, rules, gateway, sender, profile, block  (what is written)
//!          set, element, expr, fib, chain                 (the objects that it is written as)
//!          name, attr, message, sys                       (names and encoding)
//! ```
//!
//! [`NftMonitor`] says when another program changed a ruleset. The module `table` shows what the table
//! holds; the model decides which peer may reach what.

mod attr;
mod batch;
mod block;
mod chain;
mod change;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod decoder;
mod deny_log;
mod difference;
mod dump;
mod element;
mod error;
mod expr;
mod fib;
mod flows;
mod foreign;
mod gate;
mod gateway;
mod guarded;
mod message;
mod monitor;
mod name;
mod observe;
mod owner;
mod packet;
mod probe;
mod profile;
mod ranges;
mod rules;
mod sender;
mod set;
mod sets;
mod socket;
mod stages;
mod sys;
mod table;

use std::collections::BTreeSet;
use std::sync::Weak;

use nix::errno::Errno;

use super::netlink::{Membership, NetlinkError};
use crate::model::{FirewallChange, ObservedFirewall, ProfileId};
use batch::{Batch, Finished};
use change::Handles;
use monitor::NftWatch;
use name::Block;
use observe::Observation;
use set::Set;
use sets::{Filled, Left};
use socket::NftSocket;
use stages::Stages;

pub use deny_log::DENY_LOG_PREFIX;
pub use difference::Difference;
pub use dump::Counter;
pub use error::NftError;
pub use foreign::{
    Datagrams, Fate, Flowtable, ForeignDrop, ForeignRules, Hook, Link, Lost, Manager, Named,
    Packets, Way, flowtables, foreign_drops, foreign_rules, lost_at, ways,
};
pub use monitor::{ForeignChange, NftEvent, NftMonitor};
pub use name::TABLE;
pub use owner::Ownership;
pub use probe::{denied_packets, keeps_owned_tables, labels_flows};

/// How often a change is sent again when the kernel says that it would succeed a moment later.
const ATTEMPTS: usize = 8;
/// Some thousand elements.
const LARGE_BYTES: usize = 256 * 1024;

/// What the peers with one profile sent since the profile was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProfileCounters {
    pub allowed: Counter,
    pub denied: Counter,
}

/// The firewall of the network namespace it was opened in.
///
/// Calls block for as long as the kernel needs: microseconds for one peer, below a second for
/// 100,000.
pub struct Nft {
    socket: NftSocket,
    ownership: Ownership,
    watch: NftWatch,
    /// The sockets of this process that receive changes.
    muted: Vec<Weak<Membership>>,
    /// The generation at which the table was as our last reading or change left it. It follows
    /// what other programs change elsewhere. `None`: they changed our table, or events were lost.
    known: Option<u32>,
    /// What the last reading found, until we change anything: a proof rests on what was read, not
    /// on what we remember to have written.
    reading: Option<Option<ObservedFirewall>>,
    difference: Option<Difference>,
    left: Left,
}

impl Nft {
    /// Opens the socket. Needs `CAP_NET_ADMIN`. The table is one that any program may change.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or the capability is missing.
    pub fn open() -> Result<Self, NftError> {
        Self::open_with(Ownership::Shared)
    }

    /// As [`open`](Self::open), with another ownership of the table where this kernel can.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(ownership: Ownership) -> Result<Self, NftError> {
        let ownership = ownership.supported()?;
        let socket = NftSocket::open()?;
        let watch = NftWatch::open(socket.port())?;
        let muted = vec![watch.membership()];
        let (known, reading, difference, left) = (None, None, None, Left::default());
        Ok(Self { socket, ownership, watch, muted, known, reading, difference, left })
    }

    /// The netlink port that our changes come from.
    #[must_use]
    pub fn port(&self) -> u32 {
        self.socket.port()
    }

    /// Listens for changes that other programs make. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// The kernel gives no socket.
    pub fn monitor(&mut self) -> Result<NftMonitor, NftError> {
        let monitor = NftMonitor::open(self.port())?;
        self.mute(monitor.membership());
        Ok(monitor)
    }

    /// Lets a monitor receive nothing while a large change of ours is made. What other programs did at
    /// that moment shows by the ruleset's generation.
    pub fn mute(&mut self, monitor: Weak<Membership>) {
        self.muted.retain(|monitor| monitor.strong_count() > 0);
        self.muted.push(monitor);
    }

    /// Reads our table back; `None`: there is none. All of it is of one generation.
    ///
    /// While no program, this one included, has changed our table since the last reading, that one is
    /// returned again: it takes microseconds, where 100,000 peers take half a second to read.
    ///
    /// # Errors
    /// [`NftError::Unstable`] if other programs keep changing the ruleset.
    pub fn observe(&mut self) -> Result<Option<ObservedFirewall>, NftError> {
        self.remove_left();
        if let Some(reading) = self.reading.clone()
            && self.is_current()?
        {
            return Ok(reading);
        }
        if self.ownership == Ownership::Taken && owner::is_orphan(&mut self.socket)? {
            self.commit(|batch| {
                owner::take_over(batch);
                Ok(())
            })?;
        }
        let (dump, generation) = dump::at_one_generation(&mut self.socket, dump::dump)?;
        self.known = Some(generation);
        let observation = dump.as_ref().map(|dump| Observation::of(dump, self.ownership));
        self.difference = observation.as_ref().and_then(|found| found.difference.clone());
        let firewall = observation.map(|found| found.firewall);
        self.reading = Some(firewall.clone());
        Ok(firewall)
    }

    /// The first object that was not as this version loads it when the table was last read: the reason
    /// why it then had no base.
    #[must_use]
    pub const fn difference(&self) -> Option<&Difference> {
        self.difference.as_ref()
    }

    /// Makes a change in one transaction, or in three ([`stages`]), after one for the new sets that it looks up.
    /// `observed` is what the table holds now: as it was read, kept up to date with every change since.
    ///
    /// # Errors
    /// Nothing was changed: the kernel refused a part, which the error names, or the whole was too
    /// large; or `observed` lacks a profile that is to be changed. [`NftError::table_is_as_before`] names
    /// the exceptions.
    pub fn apply(
        &mut self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> Result<(), NftError> {
        self.remove_left();
        let mut handles = Handles::new();
        for id in change::rewritten(change, observed) {
            let (found, _) =
                dump::at_one_generation(&mut self.socket, |socket| dump::handles(socket, id))?;
            handles.insert(id, found);
        }
        let mut new_sets = sets::new_sets(change, observed)?;
        sets::check_removed(change, observed)?;
        self.make_sets(&new_sets)?;
        self.left.made(&new_sets);
        let Some(Stages { made, moved, removed }) = Stages::of(change) else {
            let written = self.write(change, observed, &handles);
            return written.map_err(|error| self.refused(&new_sets, error));
        };
        let written = self.write(&made, observed, &handles);
        written.map_err(|error| self.refused(&new_sets, error))?;
        if let Err(error) = self.write(&moved, observed, &handles) {
            new_sets.retain(|(set, _)| !made.put_profiles.keys().any(|id| set.is_of(*id)));
            let taken_back = self.commit(|batch| {
                change::take_back(batch, &made);
                Ok(())
            });
            let error = self.refused(&new_sets, error);
            return Err(match taken_back {
                Ok(()) => error,
                Err(_) => NftError::SetsLeft(Box::new(error)),
            });
        }
        let written = self.write(&removed, observed, &handles);
        written.map_err(|error| NftError::SetsLeft(Box::new(error)))
    }

    fn write(
        &mut self,
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
        handles: &Handles,
    ) -> Result<(), NftError> {
        let ownership = self.ownership;
        self.commit(|batch| change::write(batch, ownership, change, observed, handles))
    }

    /// Removes the sets for a change that was refused.
    fn refused(&mut self, new_sets: &[Filled], error: NftError) -> NftError {
        self.left.add(new_sets);
        let is_left = !self.remove_left() && error.table_is_as_before();
        if is_left { NftError::SetsLeft(Box::new(error)) } else { error }
    }

    /// The profiles of a change that [`apply`](Self::apply) loads sets for in a transaction before.
    #[must_use]
    pub fn with_new_sets(
        change: &FirewallChange,
        observed: Option<&ObservedFirewall>,
    ) -> BTreeSet<ProfileId> {
        sets::with_new_sets(change, observed)
    }

    /// Who may change the table that this value makes: what was asked for, where the kernel can.
    #[must_use]
    pub const fn ownership(&self) -> Ownership {
        self.ownership
    }

    /// The number that every change of any ruleset on this host raises.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        self.socket.generation()
    }

    /// Whether the table is certainly as our last reading or change left it: no other program has
    /// changed it since. `false` is only a reason to look.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub fn is_current(&mut self) -> Result<bool, NftError> {
        let generation = self.socket.generation()?;
        self.follow()?;
        Ok(self.known == Some(generation))
    }

    /// What one profile's peers were allowed and denied; `None`: there is no such profile.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    pub fn read_counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, NftError> {
        // A chain's first rule counts everything, its last one what is denied.
        let (counters, _) =
            dump::at_one_generation(&mut self.socket, |socket| dump::counters(socket, id))?;
        if let [judged, denied] = counters[..] {
            return Ok(Some(ProfileCounters::of(judged, denied)));
        }
        let block = Block::of(id);
        let judged = dump::member_of(&mut self.socket, &Set::Judged(block), id)?;
        let denied = dump::member_of(&mut self.socket, &Set::Denied(block), id)?;
        Ok(judged.zip(denied).map(|(judged, denied)| ProfileCounters::of(judged, denied)))
    }

    /// Deletes our table, and says whether there was one. From then on nothing is filtered, so the
    /// peers must be gone before.
    ///
    /// # Errors
    /// The kernel refused. A missing table is no error.
    pub fn remove_table(&mut self) -> Result<bool, NftError> {
        self.known = None;
        let removed = self.commit(|batch| {
            change::remove_table(batch);
            Ok(())
        });
        match removed {
            Err(NftError::Refused { errno: Errno::ENOENT, .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn commit(
        &mut self,
        fill: impl Fn(&mut Batch) -> Result<(), NftError>,
    ) -> Result<(), NftError> {
        // Before the change: a reading that is still shared would have to be copied to follow it.
        self.reading = None;
        for _ in 0..ATTEMPTS {
            self.follow()?;
            let expected = self.known;
            let mut batch = self.socket.begin(expected);
            fill(&mut batch)?;
            if batch.is_empty() {
                return Ok(());
            }
            let batch = batch.finish();
            let large = batch.bytes().len() > LARGE_BYTES;
            let committed =
                if large { self.commit_muted(&batch) } else { self.socket.commit(&batch) };
            match committed {
                Ok(()) => {
                    let ours = expected.map(next_generation);
                    let alone = !large || ours == Some(self.socket.generation()?);
                    self.known = ours.filter(|_| alone);
                    return Ok(());
                }
                // Another program changed a ruleset since we last looked. Whether it was ours or not,
                // the change is sound or the kernel refuses it; but unless we received that it was
                // elsewhere, we no longer know the table.
                Err(NftError::Refused { errno: Errno::ERESTART, .. }) if expected.is_some() => {
                    self.follow()?;
                    self.known = self.known.filter(|known| Some(*known) != expected);
                }
                Err(NftError::Refused {
                    errno: Errno::ERESTART | Errno::EINTR | Errno::EAGAIN,
                    ..
                }) => {}
                Err(error) => return Err(owner::named(error)),
            }
        }
        Err(NftError::Unstable { attempts: ATTEMPTS })
    }

    /// Commits while no monitor of this process receives changes.
    fn commit_muted(&mut self, batch: &Finished) -> Result<(), NftError> {
        let muted: Vec<_> = self.muted.iter().filter_map(Weak::upgrade).collect();
        let left = muted.iter().try_for_each(|monitor| monitor.leave()).map_err(NftError::Open);
        let committed = left.and_then(|()| self.socket.commit(batch));
        let joined: Vec<Result<(), NetlinkError>> =
            muted.iter().map(|monitor| monitor.join()).collect();
        committed?;
        joined.into_iter().collect::<Result<(), _>>().map_err(NftError::Open)
    }

    /// Lets the known generation follow other programs' changes that touched nothing of ours.
    fn follow(&mut self) -> Result<(), NftError> {
        let events = self.watch.events().inspect_err(|_| self.known = None)?;
        for event in events {
            self.known = self.known.and_then(|known| match event {
                NftEvent::Lost => None,
                NftEvent::Foreign(change) if !is_after(change.generation, known) => Some(known),
                NftEvent::Foreign(change) => {
                    let next = change.generation == next_generation(known);
                    (next && !change.touched_ours).then_some(change.generation)
                }
            });
        }
        Ok(())
    }
}

impl ProfileCounters {
    fn of(judged: Counter, denied: Counter) -> Self {
        let allowed = Counter {
            packets: judged.packets.saturating_sub(denied.packets),
            bytes: judged.bytes.saturating_sub(denied.bytes),
        };
        Self { allowed, denied }
    }
}

/// Each commit raises the generation by one and leaves 0 out (`nf_tables_commit`).
fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

fn is_after(generation: u32, known: u32) -> bool {
    (1..=u32::MAX / 2).contains(&generation.wrapping_sub(known))
}
