//! The firewall against the kernel, in network namespaces of its own. Needs root, and the `nft`,
//! `ip` and `nsenter` programs, which serve as independent readers.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod blocks;
mod crossing;
mod deny_log;
mod drift;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../support/fault.rs"]
mod fault;
mod flows;
mod foreign;
mod full;
mod gate;
mod grows;
mod leftover;
mod listing;
mod netns;
mod network;
mod owned;
mod packets;
mod path;
mod places;
mod priority;
mod raw;
mod routed;
mod sender;
mod services;
mod size;
mod table;
mod upgrade;
mod vrf;
mod watch;
