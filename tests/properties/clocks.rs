//! Whatever this host's clock shows, the database's counts.

use gatepost::model::{PeerId, SnapshotRows, Traffic};
use gatepost::plan::ModelKernel;
use gatepost::reconcile::{Event, LastGood, Provenance};

use super::machine::Happening;
use super::rows::id;
use super::trouble::{HOUR, MINUTE, SECOND, key};
use super::world::{World, away, quiet_tables, quiet_world};

/// The rows of the database as they are now are the last good ones.
fn keep_rows(world: &mut World) {
    let rows = SnapshotRows { taken_at: world.database_now(), ..world.tables.snapshot() };
    let (changes, provenance) = (Vec::new(), Provenance::Sealed);
    world.last_good = Some(LastGood { rows, changes, provenance });
}

#[test]
fn a_revocation_ahead_comes_although_the_host_boots_without_a_clock_and_without_its_database() {
    let mut world = quiet_world();
    let revoked_at = world.database_now() + HOUR;
    world.tables.peers.get_mut(&PeerId(id(2, 1))).unwrap().revoked_at = Some(revoked_at);
    keep_rows(&mut world);
    (world.database_up, world.booted, world.clock_set_secs) = (false, true, -86_400);
    world.happen(Happening::Kill);
    world.pass_time(HOUR - MINUTE);
    assert!(world.kernel.state.peers.contains_key(&key(1)), "not before its time");
    world.pass_time(2 * MINUTE);
    assert!(!world.kernel.state.peers.contains_key(&key(1)));
}

#[test]
fn handshakes_are_reported_by_the_databases_clock_although_the_agent_began_without_it() {
    let mut world = quiet_world();
    keep_rows(&mut world);
    (world.database_up, world.booted, world.clock_set_secs) = (false, true, 86_400);
    world.happen(Happening::Kill);
    world.pass_time(MINUTE);
    let (shaken, stamp) = (world.database_now(), world.now().wall);
    let traffic = Traffic { last_handshake: Some(stamp), ..Traffic::default() };
    world.traffic.insert(key(1), traffic);
    world.pass_time(3 * MINUTE);
    world.database_up = true;
    world.reports.clear();
    world.pass_time(3 * MINUTE);
    let seen: Vec<_> =
        world.reports.iter().flat_map(|it| it.handshakes.values()).map(|it| it.seen_at).collect();
    assert_eq!(seen, [shaken]);
}

#[test]
fn a_revocation_ahead_comes_by_the_databases_clock_however_this_hosts_is_set() {
    let cases = [-86_400, 0, 86_400].map(|secs| [(secs, false), (secs, true)]);
    for (set_secs, is_killed) in cases.into_iter().flatten() {
        let mut world = quiet_world();
        let read_by = world.database_now();
        let row = world.tables.peers.get_mut(&PeerId(id(2, 1))).unwrap();
        row.revoked_at = Some(read_by + HOUR);
        world.tell(Event::Notified);
        world.pass_time(SECOND);
        world.database_up = false;
        world.tell(Event::Disconnected { error: away() });
        world.clock_set_secs = set_secs;
        world.reports.clear();
        if is_killed {
            keep_rows(&mut world);
            world.happen(Happening::Kill);
        }
        world.pass_time(HOUR / 2);
        assert!(world.kernel.state.peers.contains_key(&key(1)), "not before its time");
        world.pass_time(HOUR / 2);
        assert!(!world.kernel.state.peers.contains_key(&key(1)), "but then");
        let told = world.machine.view().status().sync.last_sync_at.unwrap().0;
        assert!(told <= read_by + 2 * SECOND, "no row was read after that");
        world.database_up = true;
        world.tell(Event::Tick);
        world.pass_time(MINUTE);
        assert!(world.kernel_equals_database());
        let now = world.database_now();
        let told = world.reports.iter().filter_map(|report| report.synced_as_of);
        assert!(told.max().unwrap() <= now, "the future was proven");
    }
}

#[test]
fn handshakes_seen_before_the_rows_are_reported_and_are_no_new_sessions() {
    let mut world = World::new(quiet_tables(20), ModelKernel::default());
    let shaken = world.now().wall - SECOND;
    let traffic = Traffic { last_handshake: Some(shaken), ..Traffic::default() };
    world.traffic.insert(key(1), traffic);
    world.database_up = false;
    world.tell(Event::Tick);
    world.pass_time(SECOND);
    assert!(world.observations > 0, "the kernel was read first");
    world.database_up = true;
    world.pass_time(MINUTE);
    let seen = world.reports.iter().flat_map(|report| report.handshakes.values());
    let seen: Vec<_> = seen.map(|seen| (seen.seen_at, seen.connected_at)).collect();
    assert_eq!(seen, [(shaken, None)]);
}
