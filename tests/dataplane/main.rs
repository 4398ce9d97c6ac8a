//! The data plane against a real kernel, as root, in network namespaces of its own.
//!
//! Has its own `main` because it is also the userspace device that it tests.
//! `dataplane cold <count>` compares adding peers with `wg setconf`, and `dataplane flows <count>`
//! cutting flows among so many with `conntrack`; `dataplane sockets <count>` closes sockets among so many;
//! `dataplane narrow <changes> <packets>` counts what a peer loses while one of its prefixes comes and goes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/runner.rs"]
mod runner;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../support/tracked.rs"]
mod tracked;

mod cold;
mod device;
mod engine;
mod flows;
mod handover;
mod in_flight;
mod interface;
mod many_flows;
mod many_sockets;
mod narrowing;
mod peers;
mod refused;
mod rig;
mod routes;
mod sockets;
mod tunnel;

use std::process::ExitCode;

use gatepost::dataplane::Backend;
use runner::Test;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [cold, count] = &args[..]
        && cold == "cold"
    {
        cold::measure(runner::backend(), count.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if let [flows, count] = &args[..]
        && flows == "flows"
    {
        many_flows::measure(runner::backend(), count.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if let [sockets, count] = &args[..]
        && sockets == "sockets"
    {
        many_sockets::measure(runner::backend(), count.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if let [narrow, changes, packets] = &args[..]
        && narrow == "narrow"
    {
        narrowing::measure(runner::backend(), changes.parse().unwrap(), packets.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    if let [device, name] = &args[..]
        && device == "device-of-the-last-version"
    {
        engine::serve_as_last_version(name);
    }
    runner::main(tests, &args)
}

fn tests(backend: Backend) -> Vec<Test> {
    let mut tests = Vec::new();
    tests.extend(flows::TESTS);
    tests.extend(interface::TESTS);
    tests.extend(peers::TESTS);
    tests.extend(refused::TESTS);
    tests.extend(routes::TESTS);
    tests.extend(sockets::TESTS);
    tests.extend(tunnel::TESTS);
    match backend {
        Backend::Userspace => {
            tests.extend(device::TESTS);
            tests.extend(engine::TESTS);
            tests.extend(handover::TESTS);
            tests.extend(in_flight::TESTS);
        }
        _ => tests.extend(peers::KERNEL_TESTS),
    }
    tests
}
