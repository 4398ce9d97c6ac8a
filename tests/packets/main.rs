//! Real packets through real WireGuard tunnels against the reference evaluator, as root, in network
//! namespaces of its own.
//!
//! Has its own `main` because it is also the userspace device that it uses. `GATEPOST_TEST_SEED`
//! repeats a run that printed this seed, `GATEPOST_TEST_SETS` says how many sets of policies the matrix
//! tries, and `GATEPOST_TEST_ROUNDS` how many rounds the adversary.
//! `GATEPOST_TEST_MUTATIONS=1` adds what takes minutes: whether the adversary finds each rule that a
//! table lacks.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/runner.rs"]
mod runner;
#[path = "../support/seed.rs"]
mod seed;
#[path = "../support/rows.rs"]
mod test_rows;
#[path = "../policy/world.rs"]
mod world;

mod adversary;
mod exchange;
mod gateway;
mod lab;
mod matrix;
mod packet;
mod probe;
mod set;
mod shifted;
mod tap;
mod tunnel;

use std::process::ExitCode;

use gatepost::dataplane::Backend;
use runner::Test;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    runner::main(tests, &args)
}

fn tests(_: Backend) -> Vec<Test> {
    let long =
        std::env::var_os("GATEPOST_TEST_MUTATIONS").map_or(&[][..], |_| adversary::LONG_TESTS);
    [matrix::TESTS, adversary::TESTS, long].concat()
}
