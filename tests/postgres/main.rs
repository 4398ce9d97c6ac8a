//! The database side, against a real PostgreSQL.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "no packets are counted here")]
#[path = "../support/fault.rs"]
mod fault;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/seed.rs"]
mod seed;
#[path = "../support/rows.rs"]
mod test_rows;

mod agent;
mod bell;
mod certificates;
mod cursors;
mod delta;
mod failover;
mod faults;
mod feed;
mod fleet;
mod gone;
mod guest;
mod hints;
mod hostile;
mod hosts;
mod limits;
mod listen;
mod locks;
mod login;
mod long_text;
mod managed;
mod marks;
mod migrate;
mod misfits;
mod plans;
mod poll;
mod pooler;
mod prepared;
mod refused;
mod rehearse;
mod report;
mod restart;
mod restore;
mod rewritten;
mod rights;
mod rogue;
mod room;
mod row_security;
mod rows;
mod running;
mod silence;
mod stolen;
mod surface;
mod token;
mod unannounced;
mod unmigrate;
mod waits;
mod week;
mod world;
