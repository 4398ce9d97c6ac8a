//! The userspace device as a command.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, eventually};

#[test]
fn a_device_in_the_foreground_ends_in_order() {
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
