//! What a plan promises, on any database and any kernel left behind by any other.

use std::collections::{BTreeMap, BTreeSet};

use gatepost::model::{
    AllowedIps, DesiredState, LinkOwner, ObservedState, Peer, PublicKey, Standing, Tag,
};
use gatepost::plan::{ModelKernel, Scope, Step, plan};
use ipnet::IpNet;
use proptest::prelude::*;

use super::rows::{Tables, tables};

fn apply_all(kernel: &mut ModelKernel, desired: &DesiredState) -> Vec<Step> {
    let plan = plan(desired, &kernel.state, &Scope::Everything).unwrap();
    kernel.apply_first(&plan, usize::MAX).unwrap();
    plan.steps().to_vec()
}

pub fn kernel_of(tables: &Tables) -> ModelKernel {
    let mut kernel = ModelKernel::default();
    apply_all(&mut kernel, &tables.build());
    kernel
}

/// Things others put beside ours.
fn litter(kernel: &mut ModelKernel, stolen: &[u8], stranger: bool) {
    for octet in stolen {
        let prefix: IpNet = format!("10.64.0.{octet}/32").parse().unwrap();
        for peer in kernel.state.peers.values_mut() {
            peer.allowed_ips = peer.allowed_ips.difference(&AllowedIps::from_iter([prefix]));
        }
    }
    if stranger {
        let key = PublicKey::from_bytes([200; 32]).unwrap();
        let prefix = "10.64.0.9/32".parse().unwrap();
        for peer in kernel.state.peers.values_mut() {
            peer.allowed_ips = peer.allowed_ips.difference(&AllowedIps::from_iter([prefix]));
        }
        let peer = Peer { allowed_ips: [prefix].into_iter().collect(), ..Peer::default() };
        kernel.state.peers.insert(key, peer);
        if let Some(link) = &mut kernel.state.interface {
            link.addresses.insert("198.51.100.1/32".parse().unwrap(), Tag::Foreign);
            link.mtu_bytes = 1300;
            link.name = "theirs".into();
        }
    }
}

fn assert_is(kernel: &ObservedState, desired: &DesiredState) {
    assert_eq!(&kernel.peers, desired.peers());
    assert!(kernel.routes.keys().eq(desired.routes()), "{:?}", kernel.routes);
    let link = kernel.interface.as_ref().unwrap();
    assert!(link.up);
    assert_eq!(*link.name, *desired.interface().name.as_str());
    assert_eq!(link.owner, LinkOwner::Ours(desired.gateway().id));
    let granted: BTreeMap<_, _> = desired.firewall().assignments.clone();
    let firewall = kernel.firewall.as_ref().unwrap();
    for (prefix, profile) in &granted {
        assert_eq!(firewall.profile_of(prefix), Some(profile), "{prefix}");
    }
    assert_eq!(firewall.assignments().len(), granted.len());
}

/// Which prefixes each key holds, to see that no step gives one to two.
pub fn holders(state: &ObservedState) -> BTreeMap<IpNet, BTreeSet<PublicKey>> {
    let mut holders: BTreeMap<IpNet, BTreeSet<PublicKey>> = BTreeMap::new();
    for (key, peer) in &state.peers {
        for prefix in peer.allowed_ips.iter() {
            holders.entry(prefix).or_default().insert(*key);
        }
    }
    holders
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn applying_a_plan_gives_the_desired_state_and_the_next_plan_is_empty(
        old in tables(), new in tables(), stolen in prop::collection::vec(0u8..32, 0..3), stranger: bool,
    ) {
        let mut kernel = kernel_of(&old);
        litter(&mut kernel, &stolen, stranger);
        let desired = new.build();
        apply_all(&mut kernel, &desired);
        assert_is(&kernel.state, &desired);
        prop_assert!(plan(&desired, &kernel.state, &Scope::Everything).unwrap().is_empty());
    }

    #[test]
    fn any_prefix_of_a_plan_then_planning_anew_converges(
        old in tables(), new in tables(), cut in any::<prop::sample::Index>(), lose_link: bool,
    ) {
        let mut kernel = kernel_of(&old);
        let desired = new.build();
        let first = plan(&desired, &kernel.state, &Scope::Everything).unwrap();
        kernel.apply_first(&first, cut.index(first.steps().len() + 1)).unwrap();
        if lose_link {
            kernel.lose_link();
        }
        apply_all(&mut kernel, &desired);
        assert_is(&kernel.state, &desired);
    }

    #[test]
    fn the_order_of_rows_does_not_matter(tables in tables(), seed: u64) {
        let mut shuffled = tables.snapshot();
        let by = |n: usize| (n as u64).wrapping_mul(seed | 1).rotate_left(17);
        let order = |len: usize| {
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by_key(|n| by(*n));
            order
        };
        shuffled.peers = order(shuffled.peers.len()).iter().map(|n| shuffled.peers[*n].clone()).collect();
        shuffled.policies = order(shuffled.policies.len()).iter().map(|n| shuffled.policies[*n].clone()).collect();
        let one = tables.build();
        let other = DesiredState::build(super::rows::local(), shuffled).unwrap();
        super::incremental::assert_same(&one, &other);
    }

    #[test]
    fn unchanged_peers_are_never_written_and_foreign_things_never_appear(
        old in tables(), new in tables(),
    ) {
        let mut kernel = kernel_of(&old);
        litter(&mut kernel, &[], true);
        let desired = new.build();
        let plan = plan(&desired, &kernel.state, &Scope::Everything).unwrap();
        for step in plan.steps() {
            match step {
                Step::AddPeer { key, .. } | Step::WidenPeer { key, .. } | Step::NarrowPeer { key, .. }
                | Step::SetPresharedKey { key, .. } | Step::SetKeepalive { key, .. } => {
                    prop_assert_ne!(kernel.state.peers.get(key), desired.peers().get(key));
                }
                Step::RemoveAddress { address } => {
                    prop_assert_ne!(address, &"198.51.100.1/32".parse::<IpNet>().unwrap());
                }
                _ => {}
            }
        }
    }

    #[test]
    fn no_prefix_ever_has_two_holders_or_moves_by_theft(old in tables(), new in tables()) {
        let mut kernel = kernel_of(&old);
        let desired = new.build();
        let plan = plan(&desired, &kernel.state, &Scope::Everything).unwrap();
        for step in plan.steps() {
            let before = holders(&kernel.state);
            kernel.apply_step(step).unwrap();
            for (prefix, keys) in holders(&kernel.state) {
                prop_assert_eq!(keys.len(), 1);
                let had = before.get(&prefix);
                prop_assert!(had.is_none_or(|had| *had == keys), "{prefix} moved in one step: {step}");
            }
        }
    }

    #[test]
    fn every_peer_is_admitted_or_has_a_reason(tables in tables()) {
        let desired = tables.build();
        let mut admitted = 0;
        for (row, standing) in desired.rows() {
            match standing {
                Standing::Admitted(key) => {
                    admitted += 1;
                    prop_assert!(desired.peers().contains_key(key));
                    prop_assert_eq!(desired.row_of(key).map(|row| row.id), Some(row.id));
                }
                Standing::Quarantined(reason) => prop_assert!(!reason.to_string().is_empty()),
                Standing::Ineligible(why) => prop_assert!(!why.to_string().is_empty()),
            }
        }
        prop_assert_eq!(admitted, desired.peers().len());
        prop_assert_eq!(desired.row_count(), tables.peers.len());
    }

    #[test]
    fn the_order_of_phases_holds(old in tables(), new in tables()) {
        let kernel = kernel_of(&old);
        let plan = plan(&new.build(), &kernel.state, &Scope::Everything).unwrap();
        let phases: Vec<_> = plan.steps().iter().map(Step::phase).collect();
        prop_assert!(phases.is_sorted());
    }
}
