//! The binary as a script sees it: exit codes, output streams, and files left behind.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod agent;
mod bell;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../support/broker.rs"]
mod broker;
mod bundle;
mod check;
mod configuration;
mod database;
mod documents;
mod faults;
mod fleet;
mod gatepost;
mod import;
mod keys;
mod monitoring;
mod operate;
mod package;
mod pages;
#[path = "../support/postgres.rs"]
mod postgres;
mod profile;
#[path = "../support/rows.rs"]
mod rows;
mod secrets;
mod units;
