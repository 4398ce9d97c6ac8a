//! The data plane against a real kernel, as root, in network namespaces of its own.
//!
//! Has its own `main` because it is also the userspace device that it tests: called as
//! `dataplane device <name> --serve alone` it runs one. Otherwise the arguments are parts of test names.
//! `GATEPOST_TEST_BACKEND` chooses `kernel` or `userspace`; without it, the kernel if it can.
//! `dataplane cold <count>` measures the adding of peers beside `wg setconf`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop loudly")]

#[path = "../support/netns.rs"]
mod netns;

mod cold;
mod device;
mod interface;
mod peers;
mod rig;
mod routes;
mod tunnel;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use gatepost::dataplane::{Backend, run_userspace_device};

type Test = (&'static str, fn(Backend));

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["device", name, "--serve", "alone"] => {
            run_userspace_device(&name.parse().unwrap()).unwrap();
            ExitCode::SUCCESS
        }
        ["cold", count] => {
            cold::measure(rig::backend(), count.parse().unwrap());
            ExitCode::SUCCESS
        }
        ["--list", ..] => {
            tests(Backend::Kernel).iter().for_each(|(name, _)| println!("{name}: test"));
            ExitCode::SUCCESS
        }
        _ => run(rig::backend(), &args),
    }
}

fn tests(backend: Backend) -> Vec<Test> {
    let mut tests = Vec::new();
    tests.extend(interface::TESTS);
    tests.extend(peers::TESTS);
    tests.extend(routes::TESTS);
    tests.extend(tunnel::TESTS);
    match backend {
        Backend::Userspace => tests.extend(device::TESTS),
        _ => tests.extend(peers::KERNEL_TESTS),
    }
    tests
}

fn run(backend: Backend, args: &[String]) -> ExitCode {
    println!("backend: {}", if backend == Backend::Kernel { "kernel" } else { "userspace" });
    let parts: Vec<_> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(*part));
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in tests(backend).into_iter().filter(|(name, _)| wanted(name)) {
        match catch_unwind(AssertUnwindSafe(|| test(backend))) {
            Ok(()) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Err(_) => {
                println!("test {name} ... FAILED");
                failed.push(name);
            }
        }
    }
    println!("\n{passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
