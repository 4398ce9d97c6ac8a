//! Profiles that the kernel refuses to load: each costs only those who should have it.

use std::collections::BTreeSet;
use std::time::Duration;

use gatepost::model::{DesiredState, Unloadable};
use gatepost::plan::{ModelKernel, Plan, Scope, Step, plan};
use gatepost::reconcile::status::State;
use gatepost::reconcile::{Event, Note};
use gatepost::store::AuditEvent;
use ipnet::IpNet;
use proptest::prelude::*;

use super::packets::{Before, before, kernel_of, opened_by_hand};
use super::probes::{Filter, Packet, Probes, send_all};
use super::rows::{allowing, tables};
use super::world::{World, quiet_world};

/// Applies a plan, after each step of which no other packets may pass. Returns the profiles that the kernel refused.
fn applied_without_a_leak(
    kernel: &mut ModelKernel,
    plan: &Plan,
    probes: &Probes,
    desired: &DesiredState,
    allowed: &BTreeSet<Packet>,
) -> Result<Vec<Unloadable>, TestCaseError> {
    let (mut observed, mut leak) = (kernel.state.clone(), None);
    let refused = kernel.apply_plan(
        plan,
        &mut observed,
        |_| None,
        |kernel, step, _| {
            let passing = send_all(kernel, probes, desired);
            if let (None, Some(packet)) = (&leak, passing.difference(allowed).next()) {
                leak = Some(format!("{packet:?} passes after {step}"));
            }
        },
    );
    prop_assert!(leak.is_none(), "{leak:?}");
    prop_assert_eq!(&observed, &kernel.state);
    Ok(refused)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_profile_that_the_kernel_refuses_costs_only_the_peers_that_should_have_it(
        old in tables(), new in tables(), before in before(), bad in any::<prop::sample::Index>(),
    ) {
        let (old, mut new) = (old.build(), new.build());
        let probes = Probes::of([&old, &new]);
        let mut kernel = kernel_of(&old);
        send_all(&mut kernel, &probes, &old);
        before.befall(&mut kernel);
        let profiles: Vec<_> = new.firewall().assignments.values().cloned().collect();
        if profiles.is_empty() {
            return Ok(());
        }
        let bad = profiles[bad.index(profiles.len())].clone();
        let had = kernel.state.firewall.clone();
        kernel.unloadable.insert(bad.clone());

        let wanted = probes.allowed_by(&new);
        let mut allowed = probes.allowed_by(&old);
        allowed.extend(opened_by_hand(&mut kernel, &probes, &old));
        allowed.extend(&wanted);
        for round in 0.. {
            let planned = plan(&new, &kernel.state, &Scope::Everything).unwrap();
            if planned.is_empty() {
                break;
            }
            prop_assert!(round < 4, "still planned: {:#?}", planned.steps());
            let refused = applied_without_a_leak(&mut kernel, &planned, &probes, &new, &allowed)?;
            // What is not granted any more has stopped with the first attempt.
            allowed.clone_from(&wanted);
            new.quarantine_profiles(refused);
        }

        let passing = probes.passing(&kernel.state, &Filter::of(&kernel.state, &new));
        prop_assert!(passing.is_subset(&wanted));
        prop_assert_eq!(&kernel.state.peers, new.peers());
        let table = kernel.state.firewall.as_ref().unwrap();
        for (prefix, profile) in &new.firewall().assignments {
            let reaches = table.profile_of(prefix);
            if *profile != bad {
                prop_assert_eq!(reaches, Some(profile), "{}", prefix);
            } else if let (Before::Nothing, Some(had)) =
                (before, had.as_ref().and_then(|had| had.profile_of(prefix)))
                && had.is_within(profile)
                && old.row_at(prefix).map(|row| &row.public_key)
                    == new.row_at(prefix).map(|row| &row.public_key)
            {
                prop_assert_eq!(reaches, Some(had), "{} gained nothing and lost something", prefix);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_profile_without_room_costs_only_the_peers_that_should_have_it(
        old in tables(), new in tables(), bad in any::<prop::sample::Index>(),
    ) {
        let (old, new) = (old.build(), new.build());
        let probes = Probes::of([&old, &new]);
        let mut kernel = kernel_of(&old);
        send_all(&mut kernel, &probes, &old);
        let profiles: Vec<_> = new.firewall().assignments.values().cloned().collect();
        if profiles.is_empty() {
            return Ok(());
        }
        let bad = profiles[bad.index(profiles.len())].clone();
        kernel.too_large.insert(bad.clone());

        let wanted = probes.allowed_by(&new);
        let mut allowed = probes.allowed_by(&old);
        allowed.extend(&wanted);
        for _ in 0..3 {
            let planned = plan(&new, &kernel.state, &Scope::Everything).unwrap();
            // A table that is loaded anew is loaded as a whole: the former one stays in force.
            let loads = |step: &Step| {
                matches!(step, Step::Firewall { change, .. } if change.load_base.is_some())
            };
            if planned.steps().iter().any(loads) {
                return Ok(());
            }
            applied_without_a_leak(&mut kernel, &planned, &probes, &new, &allowed)?;
            allowed.clone_from(&wanted);
        }
        let table = kernel.state.firewall.as_ref().unwrap();
        let places = &new.firewall().assignments;
        let is_bad = |prefix: &IpNet| places.get(prefix) == Some(&bad);
        let bad_places: Vec<IpNet> = places.keys().copied().filter(is_bad).collect();
        for (key, peer) in new.peers() {
            let concerned = |prefix: IpNet| bad_places.iter().any(|bad| bad.contains(&prefix));
            if peer.allowed_ips.iter().any(concerned) {
                continue;
            }
            prop_assert_eq!(kernel.state.peers.get(key), Some(peer));
            for prefix in peer.allowed_ips.iter().filter(|prefix| places.contains_key(prefix)) {
                prop_assert_eq!(table.profile_of(&prefix), places.get(&prefix), "{}", prefix);
            }
        }
    }
}

/// Changes policies so that the kernel refuses what user 1 gets.
fn world_that_refuses(destination: &str) -> World {
    let mut world = quiet_world();
    for number in [1, 2] {
        let policy = allowing(number, "172.16.0.0/24", [number]);
        world.tables.policies.insert(policy.id, policy);
    }
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    for (number, destination) in [(1, destination), (2, "172.16.9.0/24")] {
        let policy = allowing(number, destination, [number]);
        world.tables.policies.insert(policy.id, policy);
    }
    let wanted = world.tables.build();
    let bad = wanted.firewall().assignments[&"10.64.0.2/32".parse().unwrap()].clone();
    world.kernel.unloadable.insert(bad);
    world.notes.clear();
    world.reports.clear();
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(60));
    world
}

fn reaches(world: &World, source: &str, destination: &str) -> bool {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    let table = world.kernel.state.firewall.as_ref().unwrap();
    table.profile_of(&source).is_some_and(|profile| profile.allows(destination))
}

fn said(world: &World) -> Vec<String> {
    let about =
        |note: &&Note| matches!(note, Note::PolicyQuarantined { .. } | Note::PolicyReleased { .. });
    world.notes.iter().filter(about).map(|note| note.to_string()).collect()
}

#[test]
fn a_policy_that_the_kernel_refuses_is_quarantined_and_named_and_all_others_are_proven() {
    let mut world = world_that_refuses("172.16.0.0/22");
    let status = world.machine.view().status();
    assert_eq!(status.state, State::Ready);
    let named: Vec<_> =
        status.quarantined_policies.iter().map(|it| (&*it.policy, it.peers)).collect();
    assert_eq!(named, [("policy-1", 1)]);
    assert!(reaches(&world, "10.64.0.3/32", "172.16.9.1"), "another policy is in force");
    assert!(reaches(&world, "10.64.0.2/32", "172.16.0.1"), "what the policy still grants is kept");
    assert!(!reaches(&world, "10.64.0.2/32", "172.16.1.1"));
    let audited = world.reports.iter().flat_map(|report| &report.audit);
    let audited: Vec<_> =
        audited.filter(|entry| entry.event == AuditEvent::PolicyQuarantined).collect();
    assert_eq!(audited.len(), 1);
    assert!(said(&world)[0].starts_with("quarantined policy \"policy-1\""), "{:?}", said(&world));

    // It is tried again with the next full read, and said once.
    let applied = world.applied_steps;
    world.tell(Event::Resync);
    world.pass_time(Duration::from_secs(60));
    assert_eq!(said(&world).len(), 1);
    assert_eq!(world.machine.view().status().quarantined_policies.len(), 1);
    assert_eq!(world.applied_steps, applied);

    // The kernel takes it after all.
    world.kernel.unloadable.clear();
    world.tell(Event::Resync);
    world.pass_time(Duration::from_secs(60));
    assert!(world.kernel_equals_database());
    assert!(world.machine.view().status().quarantined_policies.is_empty());
    assert_eq!(said(&world)[1..], ["policy \"policy-1\" is no longer quarantined"]);
}

#[test]
fn a_narrowed_policy_that_the_kernel_refuses_denies_until_it_changes() {
    let mut world = world_that_refuses("172.16.0.0/25");
    assert!(!reaches(&world, "10.64.0.2/32", "172.16.0.200"), "a narrowing waits for nothing");
    let policy = allowing(1, "172.16.0.0/26", [1]);
    world.tables.policies.insert(policy.id, policy);
    world.tell(Event::Notified);
    world.pass_time(Duration::from_secs(1));
    assert!(world.kernel_equals_database());
    assert!(world.machine.view().status().quarantined_policies.is_empty());
    let quarantined: BTreeSet<_> = said(&world).into_iter().collect();
    assert_eq!(quarantined.len(), 2, "quarantined and released: {quarantined:?}");
}
