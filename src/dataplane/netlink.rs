//! Netlink: one stack for links, addresses, routes, WireGuard, nftables, tracked flows and events.
//!
//! ```text
//! Channel        requests with their acks, dumps      Subscription   multicast groups
//!     \______________ message, attribute _______________/
//! ```
//!
//! Everything is parsed where it lies, and strictly: a malformed answer is an error that names the
//! message and the attribute.

mod attribute;
mod channel;
mod error;
mod message;
mod socket;
mod subscription;

pub(crate) use attribute::{Attribute, Attributes, NLA_F_NESTED, put, put_nested};
pub(crate) use channel::{Channel, Encoded, Request};
pub(crate) use error::gone_is_done;
pub use error::{Defect, NetlinkError, Place};
pub(crate) use message::{Message, messages, put_message};
pub use subscription::Membership;
pub(crate) use subscription::{Announcement, AsyncSubscription, Subscription};
