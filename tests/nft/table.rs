//! Values for the tests, and random ones.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use gatepost::model::{
    FirewallBase, FirewallChange, FixedRules, MarkBit, Masquerade, Networks, ObservedFirewall,
    Openings, Profile, ProfileId,
};
use ipnet::IpNet;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

pub const WG: &str = "wg0";

pub fn base() -> FirewallBase {
    FirewallBase {
        interface: WG.parse().unwrap(),
        masquerade: Masquerade::All,
        deny_log: Some(gatepost::model::NflogGroup::DEFAULT),
        allow_inbound: false,
        gateway_opens: Some(openings()),
        networks: networks(&[]),
        flows_per_address: None,
        gate: Some(MarkBit::default()),
    }
}

pub fn networks(sites: &[&str]) -> Networks {
    let sites: Vec<IpNet> = sites.iter().map(|site| site.parse().unwrap()).collect();
    Networks::new("10.64.0.0/24".parse().unwrap(), sites.iter())
}

/// Datagrams from the ports that the kernel gives to sockets without one.
pub fn openings() -> Openings {
    Openings { udp_ports: [(32_768, 60_999)].into_iter().collect(), ..Openings::default() }
}

/// Every possible base for one interface.
pub fn bases() -> Vec<FirewallBase> {
    let mut bases = Vec::new();
    for masquerade in [Masquerade::All, Masquerade::Internet, Masquerade::None] {
        for (deny_log, allow_inbound) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            let with_more = Openings {
                udp_ports: [(4_789, 4_789), (32_768, 60_999)].into_iter().collect(),
                protocols: [47, 132, 253].into(),
            };
            let pool = |pool: &str| Networks::new(pool.parse().unwrap(), [].iter());
            let sites = networks(&["10.9.0.0/16", "10.10.0.0/16", "fd65::/33"]);
            let others = ["10.64.0.0/20", "fd66::/65"].map(|it| it.parse().unwrap());
            let both = pool("fd64::/64").with_others(others.into_iter());
            for (gateway_opens, networks, gate, most) in [
                (None, both, Some(MarkBit::default()), NonZeroU32::new(7)),
                (Some(Openings::default()), pool("10.64.0.0/20"), MarkBit::new(1 << 31), None),
                (Some(with_more), sites, None, None),
            ] {
                bases.push(FirewallBase {
                    masquerade,
                    deny_log: deny_log.then_some(gatepost::model::NflogGroup(81)),
                    allow_inbound,
                    gateway_opens,
                    networks,
                    gate,
                    flows_per_address: most,
                    ..base()
                });
            }
        }
    }
    bases
}

/// A profile that allows these prefixes or `first-last` ranges, and these DNS servers.
pub fn profile(ranges: &[&str], dns_servers: &[&str]) -> Arc<Profile> {
    let ends = |text: &str| -> (IpAddr, IpAddr) {
        if let Some((first, last)) = text.split_once('-') {
            return (first.parse().unwrap(), last.parse().unwrap());
        }
        let prefix: IpNet =
            text.parse().unwrap_or_else(|_| IpNet::from(text.parse::<IpAddr>().unwrap()));
        (prefix.network(), prefix.broadcast())
    };
    let (mut allow4, mut allow6) = (vec![], vec![]);
    for range in ranges {
        match ends(range) {
            (IpAddr::V4(first), IpAddr::V4(last)) => allow4.push((first.into(), last.into())),
            (IpAddr::V6(first), IpAddr::V6(last)) => allow6.push((first.into(), last.into())),
            _ => panic!("{range} mixes families"),
        }
    }
    let dns_servers = dns_servers.iter().map(|server| server.parse().unwrap()).collect();
    Arc::new(Profile {
        allow4: allow4.into_iter().collect(),
        allow6: allow6.into_iter().collect(),
        dns_servers,
    })
}

/// Many single addresses: more than fit into rules.
pub fn many(count: u32, first: u32) -> Arc<Profile> {
    let ends = |index: u32| (first + index * 2, first + index * 2);
    let ends6 = |index: u32| (u128::from(first + index * 3), u128::from(first + index * 3 + 1));
    Arc::new(Profile {
        allow4: (0..count).map(ends).collect(),
        allow6: (0..count).map(ends6).collect(),
        dns_servers: [].into(),
    })
}

pub type World = (BTreeMap<ProfileId, Arc<Profile>>, BTreeMap<IpNet, ProfileId>);

/// The change that loads a world into a new table.
pub fn load(base: &FirewallBase, (profiles, assignments): &World) -> FirewallChange {
    FirewallChange {
        load_base: Some(base.clone()),
        put_profiles: profiles.iter().map(|(id, put)| (*id, (true, Arc::clone(put)))).collect(),
        assign: assignments.clone(),
        ..FirewallChange::default()
    }
}

/// The change from one world to another.
pub fn change((old, held): &World, (new, wanted): &World) -> FirewallChange {
    let puts = new.iter().filter(|(id, put)| old.get(id) != Some(put));
    FirewallChange {
        load_base: None,
        unassign: held.keys().filter(|prefix| !wanted.contains_key(prefix)).copied().collect(),
        put_profiles: puts
            .map(|(id, put)| (*id, (!old.contains_key(id), Arc::clone(put))))
            .collect(),
        assign: wanted
            .iter()
            .filter(|(prefix, id)| held.get(prefix) != Some(id))
            .map(|(prefix, id)| (*prefix, *id))
            .collect(),
        remove_profiles: old.keys().filter(|id| !new.contains_key(id)).copied().collect(),
    }
}

pub fn observed(base: &FirewallBase, (profiles, assignments): World) -> ObservedFirewall {
    ObservedFirewall::new(FixedRules::Ours(base.clone()), profiles, assignments)
}

/// Few numbers and prefixes, so that two random worlds have much in common.
pub fn world() -> impl Strategy<Value = World> {
    let ids = prop_oneof![1..5u32, Just(0x1_0000), Just(u32::MAX - 1)].prop_map(ProfileId);
    let profiles = btree_map(ids, any_profile().prop_map(Arc::new), 1..5);
    (profiles, btree_map(any_prefix(), any::<prop::sample::Index>(), 0..30)).prop_map(
        |(profiles, holders)| {
            let ids: Vec<ProfileId> = profiles.keys().copied().collect();
            let of = |index: prop::sample::Index| ids[index.index(ids.len())];
            (profiles, holders.into_iter().map(|(prefix, index)| (prefix, of(index))).collect())
        },
    )
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let near4 = prop_oneof![0..200u32, u32::MAX - 200..=u32::MAX, any::<u32>()];
    let near6 = prop_oneof![0..200u128, u128::MAX - 200..=u128::MAX, any::<u128>()];
    let size = || prop_oneof![3 => 0..6usize, 1 => 60..80usize];
    let ranges4 = size().prop_flat_map(move |size| vec((near4.clone(), 0..6u32), size));
    let ranges6 = size().prop_flat_map(move |size| vec((near6.clone(), 0..6u128), size));
    let servers = btree_set(any_prefix().prop_map(|prefix| prefix.addr()), 0..3);
    (ranges4, ranges6, servers).prop_map(|(ranges4, ranges6, servers)| Profile {
        allow4: ranges4.iter().map(|(first, more)| (*first, first.saturating_add(*more))).collect(),
        allow6: ranges6.iter().map(|(first, more)| (*first, first.saturating_add(*more))).collect(),
        dns_servers: servers.into_iter().collect(),
    })
}

/// Hosts and nested site prefixes of both families.
fn any_prefix() -> impl Strategy<Value = IpNet> {
    let four = (0..6u8, prop_oneof![3 => Just(32u8), 1 => 1..32u8])
        .prop_map(|(host, len)| IpNet::new(IpAddr::from([10, 64, 0, host]), len).unwrap().trunc());
    let six = (0..6u16, prop_oneof![3 => Just(128u8), 1 => 1..128u8]).prop_map(|(host, len)| {
        IpNet::new(IpAddr::from([0xfd64, 0, 0, 0, 0, 0, 0, host]), len).unwrap().trunc()
    });
    prop_oneof![four, six]
}
