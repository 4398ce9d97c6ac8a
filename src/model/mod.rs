//! Values: what is in the database, what the kernel holds, and what it should hold.
//!
//! Nothing here does I/O, reads a clock or awaits; `clippy.toml` lists what is banned. A state is
//! built from many rows on two threads, which have ended when it is returned. Text is parsed once, at
//! the edge, into types that cannot be wrong.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod audit;
mod block;
mod client;
mod denial;
mod desired;
mod device;
mod firewall;
mod gate;
mod id;
mod interface;
mod key;
pub mod limit;
mod mark;
mod observed;
pub mod policy;
mod pool;
pub mod psk;
mod row;
mod settings;

pub use audit::{AuditEvent, AuditEvents};
pub use block::{Block, BlockChange, BlockList, Whom};
pub use client::client_routes;
pub use denial::{Denial, Service};
pub use desired::{
    Absence, BuildError, Departed, DesiredState, Ineligible, Local, Profiles, QuarantinedPolicy,
    Reason, Standing, Touched, Unloadable,
};
pub use device::{DeviceRow, DeviceRows, DeviceStanding};
pub use firewall::{
    Address, DesiredFirewall, FirewallBase, FirewallChange, FixedRules, Masquerade, Networks,
    NflogGroup, ObservedFirewall, Openings, Ports, Profile, ProfileId, Ranges,
};
pub use gate::{
    FailClosed, Gate, GateObstacle, HostRouting, IpFamily, MarkBit, RoutingRule, RuleAction,
};
pub use id::{DeviceId, GatewayId, GroupId, PeerId, PolicyId, UserId};
pub(crate) use interface::network;
pub use interface::{
    AllowedIps, DesiredInterface, InterfaceName, InterfaceNameError, LinkOwner, ObservedInterface,
    Peer, Tag, Traffic,
};
pub use key::{KeyError, PresharedKey, PrivateKey, PublicKey};
pub use limit::{BeyondLimit, RowLimit};
pub use mark::{Mark, MarkId};
pub use observed::{ObservedState, Stray};
pub use pool::{Unsuited, check_network};
pub use row::{
    Allocation, BarredBy, ChangedRows, DEVICE_NOT_ACTIVE, Effect, GatewayRow, KeyText,
    MembershipRow, PeerRow, PolicyRow, SettingRow, SnapshotRows, TargetRow, TargetType,
    every_address,
};
pub use settings::{SettingFlaw, SettingWarning, Settings};
