//! Changes that concern many, and many changes at once.

use std::time::{Duration, Instant};

use super::RARE_REPORT;
use super::figures::{Bar, Row, grouped, timed, words};
use super::fleet::{Fleet, RAW};
use super::lab::eventually;
use super::reader::{Peers, generation, until_changed};

const STORM: usize = 10_000;

pub fn measure(fleet: &Fleet) {
    for mode in ["poll", "auto"] {
        fleet.configure_mode(RARE_REPORT, mode);
        let _agent = fleet.start();
        policy(fleet);
        membership(fleet);
        if mode == "auto" {
            storm(fleet);
            revocation(fleet);
        }
    }
}

/// A policy of a fifth of all users loses a destination.
fn policy(fleet: &Fleet) {
    let took = until_firewall(
        fleet,
        "delete from policy_destinations where id = (select d.id from policy_destinations d
         join policies on policies.id = policy_id where policies.name = 'staff' limit 1)",
    );
    let touched = fleet.peers / 5;
    row(
        fleet,
        "a policy changed: commit to kernel",
        format!("{} peers of it", grouped(touched)),
        took,
    );
}

/// Every user of `staff` joins one more group, then one user leaves it.
fn membership(fleet: &Fleet) {
    let many = until_firewall(
        fleet,
        "insert into group_memberships (group_id, user_id)
             select guests.id, user_id from group_memberships
             join groups on groups.id = group_id, (select id from groups where name = 'guests') as guests
             where groups.name = 'staff'",
    );
    let touched = fleet.peers / 5;
    row(
        fleet,
        "many users join a group: commit to kernel",
        format!("{} peers", grouped(touched)),
        many,
    );
    let one = until_firewall(
        fleet,
        "delete from group_memberships where ctid = (select m.ctid from group_memberships m
             join groups on groups.id = group_id where groups.name = 'guests' limit 1)",
    );
    row(fleet, "one user leaves a group: commit to kernel", "5 peers".into(), one);
    fleet.lab.database.exec(
        "delete from group_memberships using groups where groups.id = group_id and name = 'guests'",
    );
    eventually("all have left again", || fleet.lab.gatepost(&["plan"]).0 == 0);
}

/// One change of policy is one transaction: the first that follows is the whole. Then until it is
/// proven, so that the next measures nothing of it.
fn until_firewall(fleet: &Fleet, sql: &str) -> Duration {
    let (since, passes) = (generation(&fleet.lab.gateway), fleet.passes());
    fleet.lab.database.exec(sql);
    let took = until_changed(&fleet.lab.gateway, since);
    eventually("the change is proven", || fleet.passes() > passes);
    took
}

/// Commits one after another, each a transaction with its notification, that revoke device after
/// device.
fn storm(fleet: &Fleet) {
    let devices = STORM.min(fleet.peers / 4);
    let last = fleet.lab.database.value(&format!(
        "select host(assigned_ip) from wireguard_peers join devices on devices.id = device_id
         where device_fingerprint::int = 1 + {} % {devices}",
        STORM - 1
    ));
    let passes = fleet.passes();
    let peers = Peers::open(&fleet.lab.gateway);
    let committing = timed(|| {
        fleet.lab.database.exec(&format!(
            "do $$ begin
                 for n in 0..{} loop
                     update devices set status = 'storm ' || n
                         where device_fingerprint = (1 + n % {devices})::text;
                     commit;
                 end loop;
             end $$",
            STORM - 1
        ));
    });
    let after = peers.until(&last, false);
    fleet.lab.database.exec("update devices set status = 'active' where status like 'storm%'");
    peers.until(&last, true);
    eventually("what the storm left is proven", || fleet.passes() > passes);
    let made = fleet.passes() - passes;
    Row {
        what: "a storm of commits: the last one to kernel",
        size: format!("{} commits in {}", grouped(STORM), words(committing)),
        ours: format!("{}; {made} passes ended until all were admitted again", words(after)),
        beside: String::new(),
        ratio: None,
        bar: Bar::None,
    }
    .print();
}

/// A tenth of all devices in one statement, beside `wg set` of the same.
fn revocation(fleet: &Fleet) {
    let revoked = fleet.peers / 10;
    let condition = format!("device_fingerprint::int <= {revoked}");
    let rows = fleet.lab.database.column(&format!(
        "select wireguard_peers.public_key || ' ' || host(assigned_ip) from wireguard_peers
         join devices on devices.id = device_id where {condition}"
    ));
    let (keys, addresses): (Vec<&str>, Vec<&str>) =
        rows.iter().map(|row| row.split_once(' ').unwrap()).unzip();
    let mut arguments = vec!["set", RAW];
    arguments.extend(keys.iter().flat_map(|key| ["peer", key, "remove"]));
    let raw = timed(|| fleet.lab.gateway.run("wg", &arguments));
    let peers = Peers::open(&fleet.lab.gateway);
    fleet.lab.database.exec(&format!("update devices set status = 'revoked' where {condition}"));
    let started = Instant::now();
    for address in addresses {
        peers.until(address, false);
    }
    let ours = started.elapsed();
    Row {
        what: "many revoked at once: commit to the last one gone",
        size: format!("{} of {}", grouped(revoked), fleet.size()),
        ours: words(ours),
        beside: format!("{} `wg set ... remove`", words(raw)),
        ratio: Some(ours.as_secs_f64() / raw.as_secs_f64()),
        bar: Bar::None,
    }
    .print();
}

fn row(fleet: &Fleet, what: &str, size: String, took: Duration) {
    let size = format!("{size}, {}", fleet.mode());
    let ours = words(took);
    Row { what, size, ours, beside: String::new(), ratio: None, bar: Bar::None }.print();
}
