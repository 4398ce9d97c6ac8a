//! Lets the fuzzer choose whole lives of an agent, as tests/simulation does at random. See `run`.
#![no_main]
#![allow(dead_code, reason = "the test of the simulation uses the rest")]

use libfuzzer_sys::fuzz_target;

#[path = "../simulation/bytes.rs"]
mod bytes;
#[path = "../simulation/database.rs"]
mod database;
#[path = "../simulation/disk.rs"]
mod disk;
#[path = "../simulation/excused.rs"]
mod excused;
#[path = "../simulation/flows.rs"]
mod flows;
#[path = "../simulation/history.rs"]
mod history;
#[path = "../simulation/host.rs"]
mod host;
#[path = "../simulation/oracle.rs"]
mod oracle;
#[path = "../simulation/out.rs"]
mod out;
#[path = "../simulation/plain.rs"]
mod plain;
#[path = "../simulation/reach.rs"]
mod reach;
#[path = "../support/rows.rs"]
mod rows;
#[path = "../simulation/tables.rs"]
mod tables;
#[path = "../simulation/wanted.rs"]
mod wanted;
#[path = "../simulation/work.rs"]
mod work;
#[path = "../simulation/world.rs"]
mod world;

fuzz_target!(|bytes: &[u8]| {
    if let Some(why) = history::live(bytes, false).failure {
        panic!("{why}");
    }
});
