//! The userspace device's process.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use gatepost::dataplane::{Backend, Dataplane, DeviceError, Monitor, spawn_device};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::{Pid, getpgid};

use crate::netns::Netns;
use crate::rig::{Gateway, add, interface, with_gateway};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("the_device_is_in_a_process_group_of_its_own", own_group),
    ("a_killed_device_is_started_again", killed),
    ("a_device_whose_file_is_removed_goes_on", file_removed),
    ("a_device_that_does_not_answer_is_asked_once", silent),
    ("a_device_that_cannot_be_started_is_an_error", not_started),
];

/// The process of the device, on the calling thread's namespace.
pub fn pid(name: &gatepost::model::InterfaceName) -> Pid {
    let address = SocketAddr::from_abstract_name(format!("gatepost/{name}")).unwrap();
    let stream = UnixStream::connect_addr(&address).unwrap();
    Pid::from_raw(getsockopt(&stream, PeerCredentials).unwrap().pid())
}

/// Ends the device, and waits for the kernel to announce that the link is gone.
pub fn end(gateway: &mut Gateway, how: impl FnOnce(&Gateway)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let index = gateway.host.link_index().unwrap();
        let mut monitor = Monitor::open(gateway.name.clone(), index, gateway.host.port()).unwrap();
        how(gateway);
        while gateway.host.link_index().unwrap().is_some() {
            let event = tokio::time::timeout(Duration::from_secs(10), monitor.next()).await;
            event.expect("the link goes").unwrap();
        }
    });
}

fn own_group(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let device = pid(&gateway.name);
        assert_eq!(getpgid(Some(device)).unwrap(), device);
        assert_ne!(getpgid(None).unwrap(), device);
    });
}

fn killed(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        gateway.apply_all(vec![add(1, &["10.7.0.2/32"])]);
        end(gateway, |gateway| kill(pid(&gateway.name), Signal::SIGKILL).unwrap());
        let file = format!("/var/run/wireguard/{}.sock", gateway.name);
        assert!(std::path::Path::new(&file).exists());
        // The file that it left behind hinders no tool.
        let shown = Command::new("timeout").args(["20", "wg", "show", "interfaces"]).output();
        assert!(shown.unwrap().status.success());
        gateway.observed = gateway.host.observe().unwrap().state;
        assert_eq!(gateway.observed.interface, None);
        let mut steps = gateway.steps_up();
        steps.push(add(1, &["10.7.0.2/32"]));
        gateway.apply_all(steps);
    });
}

fn file_removed(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let device = pid(&gateway.name);
        std::fs::remove_file(format!("/var/run/wireguard/{}.sock", gateway.name)).unwrap();
        let outcome = gateway.apply(vec![add(1, &["10.7.0.2/32"])]);
        assert_eq!((outcome.applied, outcome.refused.len()), (1, 0), "{outcome:?}");
        assert_eq!(pid(&gateway.name), device);
    });
}

/// A device that hangs.
fn silent(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let device = pid(&gateway.name);
        kill(device, Signal::SIGSTOP).unwrap();
        let begun = Instant::now();
        let outcome = gateway.apply((1..=5).map(|n| add(n, &[])).collect());
        let took = begun.elapsed();
        kill(device, Signal::SIGCONT).unwrap();
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 5));
        let reason = outcome.refused[4].error.to_string();
        assert!(reason.contains("does not answer"), "{reason}");
        assert!(took < Duration::from_secs(10), "{took:?} for five steps");
    });
}

fn not_started(_: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let name = interface();
        let error = spawn_device("/bin/false".as_ref(), &name).unwrap_err();
        assert!(matches!(error, DeviceError::Died { .. }), "{error}");
        let number = "1234".parse().unwrap();
        let error = spawn_device("/bin/false".as_ref(), &number).unwrap_err();
        assert!(matches!(error, DeviceError::NumericName(_)), "{error}");
    });
}
