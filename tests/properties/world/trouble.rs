//! What may go wrong in the world, and what the agent is told then.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use gatepost::dataplane::nft::NftError;
use gatepost::dataplane::{DataplaneError, NetlinkError, RefusedStep};
use gatepost::model::{ObservedState, PublicKey};
use gatepost::plan::Step;
use gatepost::reconcile::DatabaseError;
use gatepost::store::{Place, Refusal, StoreError};
use nix::errno::Errno;

use crate::probes::{Filter, Packet, Probes};

/// What does not work for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The database connects, and every read fails.
    Reads,
    /// The kernel cannot be read.
    Observations,
    /// The gateway's row cannot be used.
    GatewayRow,
    /// The kernel refuses what concerns every third key or prefix.
    Steps,
    /// The gateway's row has the key of another.
    WrongKey,
    /// The gateway's network has no room for a peer.
    SmallPool,
    /// The gateway's row was made anew, with another id.
    NewRow,
    /// No flow can be cut.
    Flows,
    /// No read ends.
    HangingReads,
    /// The kernel refuses every change of the firewall.
    Firewall,
    /// A table of the control plane refuses all reports.
    Reports,
    /// The device takes this peer away and does not say so, and cannot be read from then on.
    Unsettled(PublicKey),
}

/// Looks at the kernel after each step.
pub struct Watch {
    pub probes: Probes,
    /// What may pass, once a table judges.
    pub allowed: BTreeSet<Packet>,
    pub is_judged: bool,
    pub leaks: Vec<String>,
}

impl Watch {
    pub fn look(&mut self, state: &ObservedState, step: &Step) {
        let filter = Filter::of_link(state);
        self.is_judged |= matches!(filter, Filter::Table(_));
        if !self.is_judged {
            return;
        }
        let passing = self.probes.passing(state, &filter);
        let leak = passing.difference(&self.allowed).next();
        self.leaks.extend(leak.map(|packet| format!("{packet:?} after {step}")));
    }
}

/// The database does not answer.
pub fn away() -> DatabaseError {
    let (hosts, database, role) = ("db1".to_owned(), "vpn".to_owned(), "fra_1".to_owned());
    let place = Box::new(Place { hosts, database, role, ..Place::default() });
    let limit = gatepost::store::Limit::Answer;
    StoreError::Stalled { place, doing: "read", waited: Duration::from_secs(1), limit }.into()
}

/// A trigger of the control plane refuses reports, each time in other words.
pub fn refusal(since: SystemTime, at: Duration) -> Refusal {
    let seconds = at.as_secs();
    Refusal { why: format!("trigger history on devices: no write at 12:00:{seconds}"), since }
}

/// The kernel does not answer a reading.
pub fn unreadable() -> DataplaneError {
    let source = NetlinkError::Refused { errno: Errno::ENOBUFS, message: String::new() };
    DataplaneError::Refused { source, remedy: None }
}

pub fn refused(step: &Step, errno: Errno) -> RefusedStep {
    if matches!(step, Step::Firewall { .. }) {
        let error = NftError::Refused { request: "change the table".into(), errno };
        return RefusedStep::new(step.clone(), DataplaneError::from(error));
    }
    let source = NetlinkError::Refused { errno, message: String::new() };
    RefusedStep::new(step.clone(), DataplaneError::Refused { source, remedy: None })
}

/// A third of the keys and prefixes is refused.
pub fn is_refused(step: &Step) -> bool {
    let named = step.to_string();
    named.bytes().map(u32::from).sum::<u32>() % 3 == 0
}
