//! What held peers keep, and how they are shown.

use std::sync::Arc;
use std::time::Duration;

use gatepost::model::{
    Absence, AllowedIps, BarredBy, DesiredState, Effect, PeerId, PolicyId, PolicyRow, PresharedKey,
    Profile, Profiles, PublicKey, SettingRow, Traffic, Whom,
};
use gatepost::plan::{Held, Scope, plan, plan_around};
use gatepost::reconcile::status::{PeerState, State};
use gatepost::reconcile::{Event, LastGood, Machine, MachineOptions, Note, Provenance};
use ipnet::IpNet;
use proptest::prelude::*;

use super::blocks::block;
use super::guard::{key, reaches, unwanted, world_of};
use super::machine::Happening;
use super::plans::{holders, kernel_of};
use super::rows::{id, local_without_psk_keys, tables};
use super::world::{Trouble, World, options};

/// What a prefix of a held peer may reach at most, as the rows say; `None`: it is not kept.
fn still_said(
    desired: &DesiredState,
    key: &PublicKey,
    prefix: &IpNet,
    prefixes: &AllowedIps,
) -> Option<Said> {
    let given = desired.firewall().assignments.contains_key(prefix);
    match desired.absence_with(key, prefixes) {
        _ if given => None,
        Absence::Gone { .. } => Some(Said::Nothing),
        Absence::Barred(_, why) if !why.is_deletion() => None,
        Absence::Quarantined(_, reason) if !reason.may_concern_many() => None,
        Absence::Barred(row, _) | Absence::Quarantined(row, _) => {
            let reach = desired.reach_of(row, &mut Profiles::default());
            desired.prefixes_of(row).contains(prefix).then_some(Said::Reach(reach))
        }
        Absence::Admitted => None,
    }
}

enum Said {
    Nothing,
    Reach(Arc<Profile>),
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn held_peers_keep_the_meet_and_all_else_is_put_right(
        old in tables(), new in tables(), flushed: bool, lost_routes: bool,
    ) {
        let mut kernel = kernel_of(&old);
        let desired = new.build();
        let before = kernel.state.clone();
        let held = Held::of(unwanted(&desired, &before), &desired, &before, &Held::default());
        if flushed {
            kernel.state.firewall = None;
        }
        if lost_routes {
            kernel.state.routes.clear();
        }
        let held = Held::of(unwanted(&desired, &before), &desired, &kernel.state, &held);
        let around = plan_around(&desired, &kernel.state, &Scope::Everything, &held).unwrap();
        for step in around.steps() {
            let had = holders(&kernel.state);
            kernel.apply_step(step).unwrap();
            for (prefix, keys) in holders(&kernel.state) {
                prop_assert!(had.get(&prefix).is_none_or(|had| *had == keys), "{prefix}: {step}");
            }
        }
        let firewall = kernel.state.firewall.as_ref().unwrap();
        for key in unwanted(&desired, &before) {
            let has = kernel.state.peers.get(&key);
            let prefixes = &before.peers[&key].allowed_ips;
            for prefix in prefixes.iter() {
                let keeps = has.is_some_and(|peer| peer.allowed_ips.contains(&prefix));
                let said = still_said(&desired, &key, &prefix, prefixes);
                prop_assert_eq!(keeps, said.is_some(), "{}", prefix);
                let Some(said) = said else { continue };
                let had = before.firewall.as_ref().unwrap().profile_of(&prefix).unwrap();
                let reach = firewall.profile_of(&prefix).cloned().unwrap_or_default();
                match said {
                    Said::Nothing => prop_assert_eq!(&reach, had),
                    Said::Reach(said) => prop_assert_eq!(&*reach, &had.meet(&said)),
                }
                let inside = |route: &IpNet| route.contains(&prefix);
                prop_assert!(kernel.state.routes.keys().any(inside));
            }
        }
        for (key, wanted) in desired.peers() {
            prop_assert_eq!(&kernel.state.peers[key], wanted);
        }
        let again = plan_around(&desired, &kernel.state, &Scope::Everything, &held).unwrap();
        prop_assert!(again.is_empty(), "left over: {:?}", again.steps());
        let release = plan(&desired, &kernel.state, &Scope::Everything).unwrap();
        kernel.apply_first(&release, usize::MAX).unwrap();
        prop_assert!(plan(&desired, &kernel.state, &Scope::Everything).unwrap().is_empty());
    }
}

#[test]
fn a_held_peer_that_is_revoked_is_removed_at_once() {
    let mut world = world_of(28, "172.16.0.0/24");
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.kernel.state.peers.len(), 28);
    let row = world.tables.peers.get_mut(&PeerId(id(2, 3))).unwrap();
    row.bars = row.bars.union(BarredBy::DEVICE_STATUS);
    world.tell(Event::Notified);
    world.settle();
    assert!(!world.kernel.state.peers.contains_key(&key(3)));
    assert_eq!(world.machine.view().held_back().unwrap().removals, 14);
}

#[test]
fn policies_narrow_held_peers_at_once_and_never_widen_them() {
    let mut world = world_of(20, "172.16.0.0/23");
    world.deactivate(1..=20);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(reaches(&world, 7, "172.16.1.1"), "held");
    let office = world.tables.policies.values().next().unwrap().clone();
    let (name, effect) = ("lockdown".into(), Effect::Deny);
    let lockdown = PolicyRow { id: PolicyId(id(6, 2)), name, priority: 0, effect, ..office };
    world.tables.policies.insert(lockdown.id, lockdown.clone());
    world.tell(Event::Notified);
    world.settle();
    assert_eq!(world.kernel.state.peers.len(), 20);
    for number in 1..=20 {
        assert!(!reaches(&world, number, "172.16.0.1"), "{number} is denied everything");
    }
    world.tables.policies.remove(&lockdown.id);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    assert!(!reaches(&world, 7, "172.16.0.1"), "it is given nothing");
    world.restore_all();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database() && reaches(&world, 7, "172.16.0.1"));
}

/// Of 28 peers 15 were held, and the rows of 7 are back: 8 wait, which alone would be few enough to go.
fn world_where_few_still_wait() -> World {
    let mut world = world_of(28, "172.16.0.0/24");
    world.deactivate(1..=15);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    for number in 1..=7 {
        world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap().bars = BarredBy::default();
    }
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(waiting(&world), Some(8));
    world
}

pub fn waiting(world: &World) -> Option<u64> {
    world.machine.view().held_back().map(|held| held.removals)
}

fn assert_all_pass(world: &World) {
    for number in 1..=28 {
        assert!(reaches(world, number, "172.16.0.1"), "{number}");
    }
}

#[test]
fn a_restart_releases_no_held_peer() {
    let mut world = world_where_few_still_wait();
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(60));
    assert_all_pass(&world);
    assert_eq!(waiting(&world), Some(8));
    // Nor does one without any rows, whatever the rows say when they come.
    world.database_up = false;
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(60));
    assert_eq!(waiting(&world), None, "nothing judges them");
    assert_all_pass(&world);
    world.tables.peers.remove(&PeerId(id(2, 8)));
    world.database_up = true;
    world.pass_time(Duration::from_secs(60));
    assert_all_pass(&world);
    assert_eq!(waiting(&world), Some(8));
    world.confirm();
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database() && world.kernel.state.peers.len() == 20);
    assert!(world.remembered.held.is_empty());
}

#[test]
fn last_good_rows_release_no_held_peer_and_prove_nothing() {
    let mut world = world_where_few_still_wait();
    let now = world.tables.clone();
    world.restore_all();
    let (changes, provenance) = (Vec::new(), Provenance::Sealed);
    world.last_good = Some(LastGood { rows: world.tables.snapshot(), changes, provenance });
    world.tables = now;
    let proven = world.machine.view().last_sync_at();
    world.database_up = false;
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(60));
    assert_all_pass(&world);
    assert!(proven > world.machine.view().last_sync_at(), "rows that lack the held removals");
    let status = world.machine.view().status();
    assert_eq!((status.held_back, status.held.len()), (None, 0), "nothing can be confirmed");
    let State::NotReady { why } = status.state else { panic!("{:?}", status.state) };
    assert!(why.contains("of up to 15 peers"), "{why}");
    world.confirm();
    world.pass_time(Duration::from_secs(60));
    assert_all_pass(&world);
    // A block is no matter of rows.
    block(&mut world, [Whom::Key(key(8))]);
    world.pass_time(Duration::from_secs(1));
    assert!(!world.kernel.state.peers.contains_key(&key(8)));
    let State::NotReady { why } = world.machine.view().status().state else { panic!("ready") };
    assert!(why.contains("of up to 14 peers"), "{why}");
    world.database_up = true;
    world.pass_time(Duration::from_secs(60));
    assert_eq!(world.machine.view().status().held.len(), 7);
    assert_eq!((waiting(&world), world.kernel.state.peers.len()), (Some(7), 27));
    world.confirm();
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database() && world.kernel.state.peers.len() == 20);
}

#[test]
fn setting_that_the_last_good_rows_have_confirms_the_removals_that_they_lack() {
    let mut world = world_where_few_still_wait();
    world.pass_time(Duration::from_secs(10));
    let at = humantime::format_rfc3339_micros(world.database_now()).to_string();
    let (category, key) = ("gateway".into(), "guard_confirmed_at".into());
    let value = serde_json::json!(at).to_string();
    world.tables.settings = vec![SettingRow { category, key, value }];
    let now = world.tables.clone();
    world.restore_all();
    let (changes, provenance) = (Vec::new(), Provenance::Sealed);
    world.last_good = Some(LastGood { rows: world.tables.snapshot(), changes, provenance });
    world.tables = now;
    world.database_up = false;
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(60));
    assert_all_pass(&world);
    world.database_up = true;
    world.pass_time(Duration::from_secs(60));
    assert!(world.kernel_equals_database() && world.kernel.state.peers.len() == 20);
}

#[test]
fn rows_that_may_be_another_gateways_release_no_held_peer() {
    let mut world = world_where_few_still_wait();
    world.troubles.insert(Trouble::WrongKey);
    world.tell(Event::Resync);
    world.pass_time(Duration::from_secs(5));
    assert!(world.machine.view().obstacle().is_some());
    assert_eq!(waiting(&world), None, "what such rows say waits for no confirmation");
    assert_all_pass(&world);
    // Neither does an agent that was restarted meanwhile.
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(5));
    assert_all_pass(&world);
    world.troubles.clear();
    world.tell(Event::Resync);
    world.pass_time(Duration::from_secs(60));
    assert_all_pass(&world);
    assert_eq!(waiting(&world), Some(8));
    world.restore_all();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database() && waiting(&world).is_none());
    assert!(world.remembered.held.is_empty());
}

#[test]
fn setting_confirms_also_what_an_earlier_run_held() {
    let mut world = world_where_few_still_wait();
    world.pass_time(Duration::from_secs(10));
    let at = humantime::format_rfc3339_micros(world.database_now()).to_string();
    let (category, key) = ("gateway".into(), "guard_confirmed_at".into());
    let value = serde_json::json!(at).to_string();
    world.tables.settings = vec![SettingRow { category, key, value }];
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(5));
    assert!(world.kernel_equals_database() && world.kernel.state.peers.len() == 20);
}

#[test]
fn held_peers_are_shown_with_their_names_and_figures() {
    let mut world = world_of(28, "172.16.0.0/24");
    for number in 1..=28 {
        let traffic = Traffic { rx_bytes: number.into(), ..Default::default() };
        world.traffic.insert(key(number), traffic);
    }
    world.tell(Event::Resync);
    world.pass_time(Duration::from_secs(1));
    world.deactivate(1..=14);
    world.tables.peers.remove(&PeerId(id(2, 20)));
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    let (peers, status) = (world.machine.view().peers(), world.machine.view().status());
    let held: Vec<_> =
        peers.iter().filter(|peer| matches!(peer.state, PeerState::Held { .. })).collect();
    assert_eq!((peers.len(), held.len()), (28, 15));
    for peer in held {
        let number: u8 = peer.user.strip_prefix("user-").unwrap().parse().unwrap();
        let address: IpNet = format!("10.64.0.{}/32", number + 1).parse().unwrap();
        assert_eq!((peer.rx_bytes, &peer.addresses[..]), (number.into(), &[address][..]));
        assert!(peer.peer_id.is_some() && peer.user_id.is_some() && peer.device_id.is_some());
        let why = if number == 20 { "held: its row is gone" } else { "held: user not active" };
        assert_eq!(peer.state.text(), why);
    }
    assert_eq!(status.held.len(), 15);
    assert_eq!(status.held[14].name(), "user-20/laptop");
    assert_eq!((status.peers.in_kernel, status.peers.held, status.peers.ineligible), (28, 15, 0));
    assert!(!status.state.is_ready());
    // An agent that was restarted knows the name, and one that never saw the row says so.
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(world.machine.view().status().held[14].name(), "user-20/laptop");
    world.remembered.departed.clear();
    world.happen(Happening::Kill);
    world.pass_time(Duration::from_secs(1));
    let peers = world.machine.view().peers();
    let unnamed: Vec<_> = peers.iter().filter(|peer| peer.peer_id.is_none()).collect();
    assert_eq!((unnamed.len(), &*unnamed[0].public_key), (1, &*key(20).to_string()));
    assert!(world.machine.view().status().held[14].name().starts_with("a device without a row"));
}

#[test]
fn without_a_sealing_key_peers_keep_what_they_have() {
    let mut world = world_of(20, "172.16.0.0/24");
    let sealed = PresharedKey::from_bytes([9; 32]).unwrap();
    for number in [1, 2, 3] {
        world.kernel.state.peers.get_mut(&key(number)).unwrap().preshared_key =
            Some(sealed.clone());
    }
    for number in [1, 2, 3, 20] {
        let row = world.tables.peers.get_mut(&PeerId(id(2, number))).unwrap();
        row.preshared_key = Some("gp1.k1.AAAA".into());
    }
    world.kernel.state.peers.remove(&key(20));
    let local = local_without_psk_keys();
    world.local = local.clone();
    world.machine = Machine::new(MachineOptions { local, ..options() }, world.now());
    (world.read, world.announced) = (None, false);
    world.reports.clear();
    world.tell(Event::Tick);
    world.pass_time(Duration::from_secs(30));
    let kept = |world: &World, number| {
        world.kernel.state.peers.get(&key(number)).map(|peer| peer.preshared_key.clone())
    };
    for number in [1, 2, 3] {
        assert_eq!(kept(&world, number), Some(Some(sealed.clone())), "{number} keeps its key");
    }
    assert_eq!(kept(&world, 20), None, "it is not added without its preshared key");
    let places = world.kernel.state.firewall.as_ref().unwrap().assignments();
    let place =
        |number| places.get(&format!("10.64.0.{}/32", number + 1).parse::<IpNet>().unwrap());
    assert!(
        place(3).is_some() && place(20).is_none(),
        "a site around it is not judged by its place"
    );
    let State::NotReady { why } = world.machine.view().status().state else { panic!("ready") };
    assert!(why.contains("4 peers with a preshared key"), "{why}");
    assert!(world.reports.iter().all(|report| report.synced_as_of.is_none()), "nothing is proven");
    let said = world.notes.iter().filter(|note| matches!(note, Note::NoSealingKey { .. })).count();
    assert_eq!(said, 1);
    // Everything else goes on.
    world.revoke([1]);
    world.tables.policies.values_mut().next().unwrap().destinations = Vec::new();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert_eq!(kept(&world, 1), None, "it is revoked");
    assert!(kept(&world, 2).is_some() && !reaches(&world, 2, "172.16.0.1"), "it is narrowed");
}
