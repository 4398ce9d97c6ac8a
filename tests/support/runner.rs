//! A `main` for tests that are also the userspace device they use: called as `<test> device <name>
//! --serve alone` the program runs one. Otherwise the arguments are parts of test names.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use gatepost::dataplane::{Backend, run_userspace_device};

use crate::netns::Netns;

pub type Test = (&'static str, fn(Backend));

/// Runs the device, or lists or runs the tests of a backend.
pub fn main(tests: fn(Backend) -> Vec<Test>, args: &[String]) -> ExitCode {
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["device", name, "--serve", "alone"] => {
            run_userspace_device(&name.parse().unwrap()).unwrap();
            ExitCode::SUCCESS
        }
        ["--list", ..] => {
            tests(Backend::Kernel).iter().for_each(|(name, _)| println!("{name}: test"));
            ExitCode::SUCCESS
        }
        _ => {
            let backend = backend();
            run(backend, &tests(backend), args)
        }
    }
}

/// The backend to test: what `GATEPOST_TEST_BACKEND` says; without it, the kernel if it can.
pub fn backend() -> Backend {
    match std::env::var("GATEPOST_TEST_BACKEND").as_deref() {
        Ok("kernel") => Backend::Kernel,
        Ok("userspace") => Backend::Userspace,
        Ok(other) => panic!("GATEPOST_TEST_BACKEND is {other:?}: kernel or userspace"),
        Err(_) => {
            let probe = Netns::new("Bp");
            match probe.succeeds("ip link add probe type wireguard") {
                true => Backend::Kernel,
                false => Backend::Userspace,
            }
        }
    }
}

fn run(backend: Backend, tests: &[Test], args: &[String]) -> ExitCode {
    println!("backend: {}", if backend == Backend::Kernel { "kernel" } else { "userspace" });
    let (skipped, parts) = skipped_and_wanted(args);
    let is_skipped = |name: &str| skipped.iter().any(|part| name.contains(part));
    let is_named = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(part));
    let wanted = |name: &str| is_named(name) && !is_skipped(name);
    let wanted: Vec<_> = tests.iter().filter(|(name, _)| wanted(name)).collect();
    if wanted.is_empty() {
        println!("no test is called like any of {parts:?}");
        return ExitCode::FAILURE;
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for (name, test) in wanted {
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

/// As libtest reads them: what follows `--skip` is left out, other options are ignored, the rest are
/// parts of names.
fn skipped_and_wanted(args: &[String]) -> (Vec<&str>, Vec<&str>) {
    let (mut skipped, mut wanted) = (Vec::new(), Vec::new());
    let mut args = args.iter().map(String::as_str);
    while let Some(arg) = args.next() {
        match arg {
            "--skip" => skipped.extend(args.next()),
            option if option.starts_with('-') => {}
            part => wanted.push(part),
        }
    }
    (skipped, wanted)
}
