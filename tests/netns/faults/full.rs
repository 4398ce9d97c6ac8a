//! The kernel's table of connections is full.

use std::fs;

use super::Scene;
use super::tries::{ping, scene};
use crate::lab::{Fault, LAN_OTHER, LAN_SERVER, Space, eventually};
use crate::tracked::{Max, others, track};

/// The kernel has one limit for all network namespaces, and others have fewer connections than this.
const MOST: u32 = 8_192;

/// The first client, before the gateway.
const ALICE_WAN: &str = "198.51.100.11";

/// How many packets of new connections the kernel dropped, for want of room.
fn dropped(space: &Space) -> u64 {
    let table =
        space.within(|| fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack").unwrap());
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let column = lines.next().unwrap().iter().position(|name| *name == "drop").unwrap();
    lines.map(|line| u64::from_str_radix(line[column], 16).unwrap()).sum()
}

/// The kernel makes room by forgetting those that sent little so far. What Alice has counts as more.
fn forget_all_but_alice(scene: &Scene) {
    let lab = &scene.lab;
    lab.gateway.run("conntrack", &["--flush"]);
    for (protocol, address) in [("icmp", LAN_SERVER), ("udp", ALICE_WAN)] {
        eventually("she has connections", || {
            // The side that sends first after the flush is the source.
            ["--src", "--dst"].iter().any(|end| {
                let update = ["--update", "--proto", protocol, end, address, "--status", "ASSURED"];
                lab.gateway.output("conntrack", &update).status.success()
            })
        });
    }
}

#[test]
fn full_table_of_connections_costs_no_session_and_holds_up_no_revocation() {
    let scene = scene();
    let (lab, alice, bob) = (&scene.lab, &scene.alice, &scene.bob);
    let ping = ping(&scene);
    ping.await_answers(5);
    forget_all_but_alice(&scene);
    let limit = Max::at_most(MOST);
    lab.gateway.within(|| track(others(limit.flows() + 1_000)));
    let before = dropped(&lab.gateway);
    assert!(!alice.reaches(LAN_OTHER), "the table has room");
    assert!(!bob.reaches(LAN_OTHER) && !bob.reaches(LAN_SERVER));
    eventually("the kernel counts what it drops", || dropped(&lab.gateway) > before);
    lab.database.exec(&bob.revocation());
    eventually("the revocation is carried out", || scene.has_only(alice));
    assert!(!alice.reaches(LAN_OTHER), "the table has room again");
    Fault::new(
        lab,
        "table of connections full (nf_conntrack_max), while a revocation is committed",
        "sessions go on, new connections wait for room, the revocation acts at once",
    )
    .spares(ping)
    .cause(|| drop(limit), || alice.reaches(LAN_OTHER));
    assert!(scene.is_ready() && !bob.reaches(LAN_SERVER));
    lab.database.exec(scene.admission());
    eventually("both are in", || scene.holds_both());
}
