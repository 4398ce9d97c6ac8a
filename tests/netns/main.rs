//! Real packets through a real gateway: the built binary, a private PostgreSQL, WireGuard clients in
//! network namespaces. One suite for both backends, chosen by `GATEPOST_TEST_BACKEND`: `kernel` (what
//! the guest runs) or `userspace`; without it the kernel's where it has one.
//!
//! Needs root, `ip`, `wg`, `ping`, `nft` and `strace`; what is missing fails, nothing is skipped.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod bad_input;
mod behind_peer;
mod bells;
mod blocked;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../support/broker.rs"]
mod broker;
mod denied;
mod device;
mod drift;
mod end_to_end;
mod explain;
mod faults;
mod first_user;
mod flushed;
mod gap;
mod guard;
mod hindered;
mod killed;
#[allow(dead_code, reason = "the benchmarks use the rest")]
mod lab;
mod link;
mod monitoring;
mod plan_sql;
mod policy;
mod pool;
mod profile;
mod reload;
mod report;
mod restart;
mod reuse;
mod revoked;
mod second_agent;
mod secrets;
#[path = "../support/seed.rs"]
mod seed;
mod stale;
mod takeover;
#[allow(dead_code, reason = "the benchmarks use the rest")]
#[path = "../support/tracked.rs"]
mod tracked;
mod troubles;
mod unloadable;
mod versions;
mod who_asked;
