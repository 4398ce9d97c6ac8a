//! Firewalls of other programs are loaded anew while clients send: firewalld's, ufw's and Docker's.

use std::fs;
use std::time::Duration;

use super::tries::{Tries, ping, scene};
use super::userland::Userland;
use crate::lab::{Fault, LAN_SERVER, LISTEN_PORT, Lab, eventually};

/// While a program loads its rules one by one, or lacks one, it drops what peers may send.
const RULES_ANEW: Duration = Duration::from_secs(2);
const UNTOUCHED: &str = "nothing of ours is touched";

/// The handles of the rules of a table: those that are loaded anew have others.
fn handles(lab: &Lab, table: &str) -> Vec<String> {
    let list = format!("--handle --stateless list table {table}");
    let listing = lab.gateway.run("nft", &list.split(' ').collect::<Vec<_>>());
    let handle = |line: &str| Some(line.split_once("# handle ")?.1.to_owned());
    listing.lines().filter_map(handle).collect()
}

/// No chain of another program stops peers or their tunnel. Notes tell of single rules.
fn check_is_content(lab: &Lab) {
    let (code, found, _) = lab.gatepost(&["check"]);
    let warns = found.lines().any(|line| line.starts_with("warning firewall"));
    assert!(!warns, "{code}: {found}");
}

#[test]
fn firewalld_that_reloads_costs_no_packet() {
    let scene = scene();
    let (lab, tries) = (&scene.lab, Tries::open(&scene));
    let host = Userland::open(lab);
    let _bus = host.bus();
    let link = format!("<interface name=\"{}\"/>", lab.link());
    let trusted = format!("<zone target=\"ACCEPT\">{link}</zone>");
    host.write("/etc/firewalld/zones/trusted.xml", &trusted);
    let port = format!("<zone><port port=\"{LISTEN_PORT}\" protocol=\"udp\"/></zone>");
    host.write("/etc/firewalld/zones/public.xml", &port);
    let _firewalld = host.start("firewalld --nofork --nopid");
    eventually("firewalld runs", || host.output("firewall-cmd --state").status.success());
    check_is_content(lab);
    let (before, repairs) = (handles(lab, "inet firewalld"), scene.repairs());
    assert!(!before.is_empty());
    tries.cause(
        Fault::new(lab, "firewalld reloaded", UNTOUCHED).spares(ping(&scene)),
        || drop(host.run("firewall-cmd --reload")),
        || handles(lab, "inet firewalld") != before,
    );
    assert_eq!(scene.repairs(), repairs);
}

#[test]
fn ufw_that_reloads_touches_nothing_of_ours() {
    let scene = scene();
    let (lab, tries) = (&scene.lab, Tries::open(&scene));
    let host = Userland::open(lab);
    let own = [
        "before.rules",
        "before6.rules",
        "after.rules",
        "after6.rules",
        "user.rules",
        "user6.rules",
    ];
    for file in own.iter().chain(&["ufw.conf"]) {
        host.run(&format!("cp /usr/share/ufw/{file} /etc/ufw/{file}"));
    }
    host.run(&format!("ufw allow {LISTEN_PORT}/udp"));
    host.run(&format!("ufw route allow in on {}", lab.link()));
    host.run("ufw --force enable");
    check_is_content(lab);
    let (before, repairs) = (handles(lab, "ip filter"), scene.repairs());
    assert!(!before.is_empty());
    tries.cause(
        Fault::new(
            lab,
            "ufw reloaded",
            "its policy drops while it has no rules; nothing of ours is touched",
        )
        .may_cost(RULES_ANEW, ping(&scene)),
        || drop(host.run("ufw reload")),
        || handles(lab, "ip filter") != before,
    );
    assert_eq!(scene.repairs(), repairs);
}

const DOCKER: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/nft/rulesets/docker-28.iptables");

#[test]
fn rules_of_docker_are_named_with_the_command_that_lets_peers_through() {
    let scene = scene();
    let (lab, tries) = (&scene.lab, Tries::open(&scene));
    let load = |rules: &str| {
        let file = lab.folder.path().join("docker.iptables");
        fs::write(&file, rules).unwrap();
        lab.gateway.run("iptables-nft-restore", &["--noflush", file.to_str().unwrap()]);
    };
    let (rules, repairs, link) = (fs::read_to_string(DOCKER).unwrap(), scene.repairs(), lab.link());
    let follow_check = || {
        let (_, found, _) = lab.gatepost(&["check"]);
        let remedy = format!("iptables -I DOCKER-USER -i {link} -j ACCEPT");
        assert!(found.contains("FORWARD") && found.contains(&remedy), "{found}");
        for direction in ["-i", "-o"] {
            let accept = ["-I", "DOCKER-USER", direction, &link, "-j", "ACCEPT"];
            lab.gateway.run("iptables-nft", &accept);
        }
    };
    tries.cause(
        Fault::new(
            lab,
            "Docker's rules loaded, which forward nothing of others",
            "check names the commands that let peers through; the test runs them",
        )
        .may_cost(RULES_ANEW, ping(&scene)),
        || {
            load(&rules);
            eventually("they drop", || !scene.alice.reaches(LAN_SERVER));
            follow_check();
        },
        || scene.alice.reaches(LAN_SERVER),
    );
    // Docker keeps this chain, and puts its own at the front.
    let again = rules.replace(":DOCKER-USER - [0:0]\n", "").replace(
        "-A FORWARD -j DOCKER-USER\n-A FORWARD -j DOCKER-FORWARD",
        "-I FORWARD -j DOCKER-FORWARD\n-I FORWARD -j DOCKER-USER",
    );
    let before = handles(lab, "ip filter");
    tries.cause(
        Fault::new(lab, "Docker's rules loaded again", UNTOUCHED).spares(ping(&scene)),
        || load(&again),
        || handles(lab, "ip filter") != before,
    );
    assert_eq!(scene.repairs(), repairs);
}
