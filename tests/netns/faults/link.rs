//! Other programs change the link while clients send.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{Backend, Fault, LAN_SERVER, eventually};

/// A client would begin a session anew only after 15 s.
const SESSION_ANEW: Duration = Duration::from_secs(4);
const REPAIR: Duration = Duration::from_secs(1);

/// Several commands come between two looks of the agent.
fn ip(scene: &Scene, commands: &str) {
    let commands = commands.replace("LINK", &scene.lab.link());
    scene.agent.signal(Signal::SIGSTOP);
    for command in commands.split("; ") {
        scene.lab.gateway.run("ip", &command.split(' ').collect::<Vec<_>>());
    }
    scene.agent.signal(Signal::SIGCONT);
}

#[test]
fn link_is_put_right_and_sessions_begin_at_once() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let faults = [
        ("routes of the link flushed", "route flush dev LINK", REPAIR),
        ("addresses of the link flushed", "address flush dev LINK", REPAIR),
        ("MTU of the link changed", "link set LINK mtu 1300", REPAIR),
        ("link taken down", "link set LINK down", SESSION_ANEW),
        // A kernel before 6.2 renames no link that is up.
        ("link renamed", "link set LINK down; link set LINK name theirs", SESSION_ANEW),
        ("link deleted", "link delete LINK", SESSION_ANEW),
    ];
    for (what, commands, bound) in faults {
        let before = scene.repairs();
        Fault::new(lab, what, "put right at once; the gateway begins lost sessions itself")
            .may_cost(bound, alice.ping(LAN_SERVER, SPACING_MS))
            .cause(|| ip(&scene, commands), || scene.repairs() > before);
        assert_eq!(lab.gatepost(&["plan"]).0, 0, "{what}");
    }
}

#[test]
fn link_that_was_down_for_a_moment_has_its_sessions_at_once() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let before = scene.repairs();
    // A userspace device keeps its sessions, and the kernel makes the routes: nothing is to be repaired.
    let is_seen = || lab.backend == Backend::Userspace || scene.repairs() > before;
    let expected = "the gateway begins lost sessions itself";
    Fault::new(lab, "link taken down and up", expected)
        .may_cost(SESSION_ANEW, alice.ping(LAN_SERVER, SPACING_MS))
        .cause(|| ip(&scene, "link set LINK down; link set LINK up"), is_seen);
    assert_eq!(lab.gatepost(&["plan"]).0, 0);
}

#[test]
fn link_whose_name_another_link_takes_comes_back_when_the_name_is_free() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    ip(&scene, "link delete LINK; link add LINK type bridge");
    eventually("the agent names the other link", || {
        let why = lab.status()["why"].as_str().unwrap_or_default().to_owned();
        why.contains(&lab.link()) && why.contains("not ours")
    });
    let shown = lab.gateway.run("ip", &["-d", "link", "show", &lab.link()]);
    assert!(shown.contains("bridge"), "the other link was touched: {shown}");
    assert!(!alice.reaches(LAN_SERVER));
    let began = std::time::Instant::now();
    ip(&scene, "link delete LINK");
    eventually("the LAN answers", || alice.reaches(LAN_SERVER));
    Fault::new(
        lab,
        "link replaced by one of another kind",
        "left alone and named; our link comes back, with its sessions, when the name is free",
    )
    .lasts()
    .converged(began.elapsed());
}

#[test]
fn link_moved_to_another_namespace_is_made_anew() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let before = scene.repairs();
    let other = lab.lan.name().to_owned();
    Fault::new(lab, "link moved to another network namespace", "another one is made")
        .may_cost(SESSION_ANEW, alice.ping(LAN_SERVER, SPACING_MS))
        .cause(|| ip(&scene, &format!("link set LINK netns {other}")), || scene.repairs() > before);
    assert_eq!(lab.gatepost(&["plan"]).0, 0);
}

/// Not every kernel has VRFs; that of the guest does.
#[test]
fn link_put_into_a_vrf_is_taken_out_and_a_bridge_takes_none() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    lab.gateway.ip(&["link add bridge9 type bridge"]);
    let enslaved = lab.gateway.output("ip", &["link", "set", &lab.link(), "master", "bridge9"]);
    assert!(!enslaved.status.success(), "a bridge took a tunnel");
    let refuses = "the kernel refuses: a tunnel is no Ethernet device";
    Fault::told(lab, "link put into a bridge", refuses, None);
    let vrf = ["link", "add", "vrf9", "type", "vrf", "table", "99"];
    if !lab.gateway.output("ip", &vrf).status.success() {
        return println!("this kernel has no VRFs");
    }
    let before = scene.repairs();
    let expected = "taken out at once; the gateway begins lost sessions itself";
    Fault::new(lab, "link put into a VRF", expected)
        .may_cost(SESSION_ANEW, alice.ping(LAN_SERVER, SPACING_MS))
        .cause(
            || ip(&scene, "link set vrf9 up; link set LINK master vrf9"),
            || scene.repairs() > before,
        );
    let shown = lab.gateway.run("ip", &["link", "show", &lab.link()]);
    assert!(!shown.contains("master"), "{shown}");
    assert_eq!(lab.gatepost(&["plan"]).0, 0);
}
