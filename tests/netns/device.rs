//! The userspace device as a command.

use std::path::Path;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, eventually};

fn start(lab: &Lab, name: &str) -> Child {
    let mut command = lab.command(&["device", name]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let device = lab.gateway.spawn(&mut command);
    eventually("the device answers", || lab.gateway.output("wg", &["show", name]).status.success());
    device
}

#[test]
fn device_in_the_foreground_cleans_up_when_it_is_stopped() {
    let lab = Lab::open();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let name = format!("gpd{}", std::process::id());
        let mut device = start(&lab, &name);
        kill(Pid::from_raw(device.id().try_into().unwrap()), signal).unwrap();
        assert_eq!(device.wait().unwrap().code(), Some(0), "{signal}");
        assert!(!Path::new(&format!("/var/run/wireguard/{name}.sock")).exists());
        eventually("the link goes", || {
            !lab.gateway.output("ip", &["link", "show", &name]).status.success()
        });
    }
}

#[test]
fn device_without_its_link_fails_and_a_second_of_its_name_is_refused() {
    let lab = Lab::open();
    let name = format!("gps{}", std::process::id());
    let device = start(&lab, &name);
    let second = lab.gateway.within(|| lab.command(&["device", &name]).output().unwrap());
    let error = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("a userspace device {name} is running already")), "{error}");

    lab.gateway.run("ip", &["link", "delete", &name]);
    let ended = device.wait_with_output().unwrap();
    let error = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{error}");
    assert!(error.contains("was deleted or left this network namespace"), "{error}");
}
