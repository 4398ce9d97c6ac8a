//! The userspace device as a command.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Pid;

use crate::lab::{Lab, eventually};

#[test]
fn device_in_the_foreground_cleans_up_when_it_is_stopped() {
    let lab = Lab::open();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let name = format!("gpd{}", std::process::id());
        let mut command = lab.command(&["device", &name]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut device = lab.gateway.spawn(&mut command);
        eventually("the device answers", || {
            lab.gateway.output("wg", &["show", &name]).status.success()
        });
        kill(Pid::from_raw(device.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(device.wait().unwrap().code(), Some(0), "{signal}");
        assert!(!Path::new(&format!("/var/run/wireguard/{name}.sock")).exists());
        eventually("the link goes", || {
            !lab.gateway.output("ip", &["link", "show", &name]).status.success()
        });
    }
}

#[test]
fn stopped_device_succeeds_and_one_without_its_socket_fails() {
    let lab = Lab::open();
    let name = format!("gps{}", std::process::id());
    let start = || {
        let mut command = lab.command(&["device", &name]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let device = lab.gateway.spawn(&mut command);
        eventually("the device answers", || {
            lab.gateway.output("wg", &["show", &name]).status.success()
        });
        device
    };
    let socket = format!("/var/run/wireguard/{name}.sock");
    let device = start();
    let server = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    let server = getsockopt(&server, PeerCredentials).unwrap().pid();
    // Like `gatepost down`, signal the device and not its parent.
    kill(Pid::from_raw(server), Signal::SIGTERM).unwrap();
    assert_eq!(device.wait_with_output().unwrap().status.code(), Some(0));

    let device = start();
    std::fs::remove_file(&socket).unwrap();
    let ended = device.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let error = String::from_utf8(ended.stderr).unwrap();
    let socket_removed = format!("the socket of the userspace device {name} was removed");
    assert!(error.contains(&socket_removed), "{error}");
}
