//! Resolves policies to one verdict for every address.
//!
//! For a packet from a peer to an address, among the policies that apply to the peer and whose
//! destinations contain the address, the lowest priority number decides; of several with that
//! number a denying one; without any, the setting `policy.default_effect`. A policy applies when
//! one of its targets names the device, its user, or a group the user is a member of. Full tunnel
//! adds the internet to the destinations: everything outside the
//! [special-purpose blocks](SPECIAL_BLOCKS).
//!
//! [`PolicyBook`] holds the policies and makes each peer's [`Profile`](super::Profile);
//! [`flatten`] turns overlapping prefixes into disjoint ranges; [`mod@reference`] says the same of
//! one address slowly and obviously, to test against; [`Explanation`] says why; [`describe_changes`] says what a
//! change means.

mod book;
mod change;
mod explain;
pub mod flatten;
mod intern;
mod note;
pub mod reference;
mod resolve;
mod special;

pub use book::{PolicyBook, Recipe, SameGroups, Subject, dns_addresses};
pub use change::{Cause, Direction, Fact, PolicyChange, ReachChange, describe_changes, in_words};
pub use explain::{
    ApplicablePolicy, Containing, DecidingPolicy, Explanation, ForOthers, OtherPolicy, Why,
};
pub use note::{Flaw, Plain, PolicyNote, Quoted};
pub use resolve::{Order, Policy, Target, Verdict};
pub use special::{SPECIAL_BLOCKS, SpecialBlock, internet, special_block};
