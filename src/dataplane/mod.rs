//! The kernel: applies steps and reads back. Decides nothing.
//!
//! ```text
//! DataplaneHandle --thread--> Host --+-- link, address, route    rtnetlink messages
//!                                    +-- wireguard               generic netlink | unix socket
//!                                    +-- firewall                nftables
//!                                    +-- conntrack, sockets
//! Monitor: "look again"; DenyLog: what was denied
//! ```

mod address;
mod backend;
mod batch;
mod conntrack;
#[cfg(any(test, feature = "fuzzing"))]
mod decoders;
mod deny_log;
mod device;
mod ended;
mod error;
mod firewall;
mod handle;
mod host;
mod link;
mod monitor;
mod netlink;
mod refusal;
mod route;
mod rule;
mod shared;
mod sockets;
mod wireguard;

pub mod networkd;
pub mod nft;

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::model::{
    HostRouting, ObservedInterface, ObservedState, ProfileId, PublicKey, Tag, Traffic, Unloadable,
};
use crate::plan::Plan;
use nft::ProfileCounters;

pub use backend::{Backend, BackendInUse};
pub use conntrack::lists_flows;
#[cfg(any(test, feature = "fuzzing"))]
pub use decoders::DECODERS;
pub use deny_log::{DenyLog, DenyLogError};
pub use device::{DeviceError, run_userspace_device, spawn_device, stop_device};
pub use error::{DataplaneError, RefusedStep};
pub use firewall::Firewall;
pub use handle::DataplaneHandle;
pub use host::{Host, HostSettings};
pub use link::{LinkFacts, link_facts, networks_of_other_links};
pub use monitor::{HostEvent, Monitor};
pub use netlink::{Defect, NetlinkError, Place};
pub use rule::host_routing;
pub use shared::SharedObserved;
pub use wireguard::{UapiError, UserspaceError};

/// Marks what is ours: the protocol of our routes (`ip route show proto 71`) and of our addresses
/// (`IFA_PROTO`). `G` in ASCII; free in /etc/iproute2/rt_protos.
pub const PROTOCOL: u8 = 71;

/// One complete reading of everything of ours on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    pub state: ObservedState,
    /// Of those peers of which there is anything to tell.
    pub traffic: BTreeMap<PublicKey, Traffic>,
    /// What does WireGuard on our link; `None`: there is no link that we may use.
    pub backend: Option<BackendInUse>,
    /// No other program can change our firewall table.
    pub table_owned: bool,
    /// The first object of our firewall table that is not as this version loads it: what another
    /// program, or another version, changed. `None`: nothing differs, or there is no table.
    pub firewall_difference: Option<nft::Difference>,
}

/// The state that can be read back at a cost that does not grow with the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    pub interface: Option<ObservedInterface>,
    pub routes: BTreeMap<IpNet, Tag>,
    pub routing: HostRouting,
    /// No other program has changed our table since it was last read or written.
    pub firewall_is_current: bool,
}

/// The result of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps the kernel acknowledged.
    pub applied: usize,
    /// Steps it did not acknowledge. One refused peer does not stop the others. A refused step may
    /// have been applied in part: read everything back before the next plan.
    pub refused: Vec<RefusedStep>,
    /// Steps that were not tried, because a newer plan waited: the job was interrupted.
    pub untried: usize,
    /// Profiles that the kernel refused. What else their transaction held was applied.
    pub unloadable: Vec<Unloadable>,
    /// Tracked flows that were deleted.
    pub flows_cut: usize,
    /// Tracked flows that the kernel listed for these to be found.
    pub flows_listed: usize,
    /// Sockets of this host may still be connected to addresses whose flows were to be cut.
    pub sockets_may_be_left: bool,
}

/// A gateway host's network, as the reconcile loop uses it.
pub trait Dataplane {
    /// Reads everything back: link, peers, routes, our table.
    ///
    /// # Errors
    /// When something of ours cannot be read whole.
    fn observe(&mut self) -> Result<Reading, DataplaneError>;

    /// Reads back all but the peers and what the firewall holds for them.
    ///
    /// # Errors
    /// When something of ours cannot be read.
    fn glance(&mut self) -> Result<Glance, DataplaneError>;

    /// What a profile's rules counted since they were loaded; `None`: there is no such profile.
    ///
    /// # Errors
    /// When the rules cannot be read.
    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, DataplaneError>;

    /// Applies the steps in order, and updates `observed` with each acknowledged one.
    fn apply(&mut self, plan: &Plan, observed: &SharedObserved) -> Outcome;
}
