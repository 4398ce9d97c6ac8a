//! The kernel: obeys steps and reads back. Decides nothing.
//!
//! ```text
//! DataplaneHandle --thread--> Host --+-- link, address, route    rtnetlink messages
//!                                    +-- wireguard               generic netlink | unix socket
//!                                    +-- firewall                nftables
//!                                    +-- conntrack
//! Monitor: "look again"
//! ```

mod address;
mod batch;
mod conntrack;
mod device;
mod error;
mod firewall;
mod handle;
mod host;
mod link;
mod monitor;
mod netlink;
mod refusal;
mod route;
mod shared;
mod wireguard;

pub mod nft;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::model::{ObservedInterface, ObservedState, ProfileId, PublicKey, Tag, Traffic};
use crate::plan::{Phase, Plan, Step};
use nft::ProfileCounters;

pub use conntrack::lists_flows;
pub use device::{DeviceError, run_userspace_device, spawn_device, stop_device};
pub use error::DataplaneError;
pub use firewall::Firewall;
pub use handle::DataplaneHandle;
pub use host::{Backend, Host, HostSettings};
pub use monitor::{HostEvent, Monitor};
pub use netlink::NetlinkError;
pub(crate) use refusal::chain;
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
    pub backend: Option<Backend>,
}

/// What can be read back at a cost that does not grow with the peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    pub interface: Option<ObservedInterface>,
    pub routes: BTreeMap<IpNet, Tag>,
    /// Nobody else has changed our table since it was last read or written.
    pub firewall_is_current: bool,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Steps the kernel acknowledged.
    pub applied: usize,
    /// Steps it refused, each with its reason. One refused peer does not stop the others. A refused
    /// step may have been obeyed in part: read everything back before the next plan.
    pub refused: Vec<(Step, String)>,
    /// Of these the routes that were refused because somebody else's leads there.
    pub foreign_routes: BTreeSet<IpNet>,
    /// Tracked flows that were forgotten.
    pub flows_cut: usize,
    /// The phase in which a refusal made everything after it unsafe to enter, except what takes
    /// away.
    pub halted_in: Option<Phase>,
}

/// A gateway host's network, as the reconcile loop uses it.
pub trait Dataplane {
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads everything back: link, peers, routes, our table.
    fn observe(&mut self) -> Result<Reading, Self::Error>;

    /// Reads back all but the peers and what the firewall holds for them.
    fn glance(&mut self) -> Result<Glance, Self::Error>;

    /// What a profile's rules counted since they were loaded; `None`: there is no such profile.
    fn counters_of(&mut self, id: ProfileId) -> Result<Option<ProfileCounters>, Self::Error>;

    /// Obeys the steps in order, and makes `observed` what the kernel acknowledged.
    fn apply(&mut self, plan: &Plan, observed: &SharedObserved) -> Outcome;
}
