//! The host runs out of something.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{SPACING_MS, Scene};
use crate::lab::{Fault, LAN_OTHER, LAN_SERVER, LISTEN_PORT, Lab, eventually, run};

#[test]
fn agent_out_of_file_descriptors_lets_no_revoked_peer_through() {
    let scene = Scene::open();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    let pid = scene.agent.pid().to_string();
    let is_open = |number: &usize| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_ok();
    let first_free = (0..).find(|number| !is_open(number)).unwrap();
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    let limit =
        |number: usize| drop(run("prlimit", &["--pid", &pid, &format!("--nofile={number}:1024")]));
    limit(first_free);
    let asks = || drop(UnixStream::connect(lab.folder.path().join("control.sock")));
    asks();
    eventually("the agent has no descriptor left", || lab.log().contains("Too many open files"));
    Fault::new(
        lab,
        "out of file descriptors while a revocation is committed",
        "no packet passes; the rest follows when there are some",
    )
    .spares(ping)
    .cause(|| lab.database.exec(&bob.revocation()), || !bob.reaches(LAN_OTHER));
    limit(1024);
    eventually("the peer is gone", || scene.has_only(alice));
    eventually("ready", || scene.is_ready());
}

#[test]
fn listen_port_that_another_program_takes_is_taken_back_when_it_is_free() {
    let scene = Scene::open();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    let link = lab.link();
    scene.agent.signal(Signal::SIGSTOP);
    lab.gateway.run("wg", &["set", &link, "listen-port", "51999"]);
    let taken = lab.gateway.within(|| UdpSocket::bind(("0.0.0.0", LISTEN_PORT)).unwrap());
    scene.agent.signal(Signal::SIGCONT);
    let port = LISTEN_PORT.to_string();
    eventually("the agent names the port", || {
        let status = lab.status();
        status["state"] != "ready" && status["why"].as_str().unwrap_or_default().contains(&port)
    });
    ping.await_answers(10);
    Fault::new(
        lab,
        "listen port changed by hand and taken by another program",
        "sessions go on over the other port; taken back when it is free",
    )
    .may_cost(Duration::from_secs(1), ping)
    .cause(|| drop(taken), || scene.is_ready());
    assert_eq!(lab.gateway.run("wg", &["show", &link, "listen-port"]), port);
}

/// A route of ours that a peer's row asks for.
const ROUTE: &str = "fd99::11";

fn scene_with_route() -> Scene {
    let scene = Scene::open_with(|lab| {
        lab.database.exec(&format!(
            "update wireguard_peers set allowed_ips = array['{ROUTE}/128'::cidr]
             where assigned_ip = '10.99.0.11'"
        ));
    });
    eventually("there is a route", || has_route(&scene.lab));
    scene
}

fn has_route(lab: &Lab) -> bool {
    lab.gateway.run("ip", &["-6", "route", "show", "dev", &lab.link()]).contains(ROUTE)
}

#[test]
fn ipv6_switched_off_costs_ipv4_nothing_and_comes_back() {
    let scene = scene_with_route();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    let switch = |value: &str| {
        lab.gateway.within(|| {
            fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", value).unwrap();
        });
    };
    switch("1");
    eventually("the agent says so", || !scene.is_ready());
    assert!(!has_route(lab));
    ping.await_answers(20);
    Fault::new(lab, "IPv6 switched off and on again", "IPv4 loses nothing; IPv6 comes back")
        .lasts()
        .spares(ping)
        .cause(|| switch("0"), || has_route(lab) && scene.is_ready());
}

/// Routes of another link that come and go: more announcements than the agent's queue takes.
const ROUTES: u32 = 60_000;

/// How many announcements about links, addresses and routes the kernel could not queue.
fn lost_announcements(lab: &Lab) -> u64 {
    let sockets =
        lab.gateway.within(|| fs::read_to_string("/proc/thread-self/net/netlink").unwrap());
    let lines = sockets.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    // sk, Eth (0: NETLINK_ROUTE), Pid, Groups, Rmem, Wmem, Dump, Locks, Drops, Inode
    lines.filter(|it| it[1] == "0").map(|it| it[8].parse::<u64>().unwrap()).sum()
}

#[test]
fn announcements_of_the_kernel_that_are_lost_cost_a_reading() {
    let scene = scene_with_route();
    let (lab, alice) = (&scene.lab, &scene.alice);
    let ping = alice.ping(LAN_SERVER, SPACING_MS);
    let (repairs, lost) = (scene.repairs(), lost_announcements(lab));
    scene.agent.signal(Signal::SIGSTOP);
    let network = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + n * 128);
    let route = |verb: &str, n: u32| format!("route {verb} {}/25 dev lan0", network(n));
    let routes = |verb: &str| (0..ROUTES).map(|n| route(verb, n)).collect::<Vec<_>>();
    let changes = [routes("add"), routes("delete")].concat();
    lab.gateway.ip(&changes.iter().map(String::as_str).collect::<Vec<_>>());
    lab.gateway.run("ip", &["-6", "route", "delete", ROUTE, "dev", &lab.link()]);
    assert!(!has_route(lab));
    assert!(lost_announcements(lab) > lost, "the queue took all");
    Fault::new(
        lab,
        "announcements of the kernel lost (ENOBUFS), that of a removed route among them",
        "everything is read again, and the route put back",
    )
    .spares(ping)
    .cause(|| scene.agent.signal(Signal::SIGCONT), || scene.repairs() > repairs);
    assert!(has_route(lab));
}
