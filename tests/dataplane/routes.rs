//! Routes: many at once, and only ours.

use std::collections::BTreeSet;

use gatepost::dataplane::{Backend, Dataplane};
use gatepost::model::Tag;
use gatepost::plan::Step;
use ipnet::IpNet;

use crate::rig::with_gateway;
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("many_routes_are_written_and_read_back", many),
    ("the_kernels_routes_are_seen_and_ours_take_their_place", flushed),
    ("a_foreign_route_is_neither_replaced_nor_removed", foreign),
];

fn many(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        let v4 = (0..1500).map(|n| format!("10.{}.{}.0/24", 20 + n / 250, n % 250));
        let v6 = (0..100).map(|n| format!("fd08:{n:x}::/48"));
        let prefixes: Vec<IpNet> = v4.chain(v6).map(|text| text.parse().unwrap()).collect();
        let add = |prefix: &IpNet| Step::AddRoute { prefix: *prefix };
        gateway.apply_all(prefixes.iter().map(add).collect());
        let shown: BTreeSet<IpNet> = netns
            .exec("ip route show proto 71")
            .lines()
            .chain(netns.exec("ip -6 route show proto 71").lines())
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(shown, prefixes.iter().copied().collect());
        let remove = |prefix: &IpNet| Step::RemoveRoute { prefix: *prefix };
        gateway.apply_all(prefixes[..1000].iter().map(remove).collect());
        let networks = 2;
        assert_eq!(gateway.observed.routes.len(), 600 + networks);
    });
}

fn flushed(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        let networks = ["10.7.0.0/24", "fd07::/64"].map(|text| text.parse::<IpNet>().unwrap());
        // The kernel's route to a network that no address of ours has is not ours.
        netns.exec(&format!("ip route add 10.23.0.0/24 dev {} proto kernel", gateway.name));
        gateway.check();
        assert_eq!(gateway.observed.routes, networks.map(|network| (network, Tag::Foreign)).into());
        for family in ["-4", "-6"] {
            netns.exec(&format!("ip {family} route flush dev {}", gateway.name));
        }
        let state = gateway.host.observe().unwrap().state;
        assert!(state.routes.is_empty(), "{:?}", state.routes);
        assert_eq!(state.interface, gateway.observed.interface);
        gateway.observed = state;
        gateway.apply_all(networks.map(|prefix| Step::AddRoute { prefix }).into());
        assert_eq!(gateway.observed.routes, networks.map(|network| (network, Tag::Ours)).into());
    });
}

fn foreign(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        netns.exec("ip link add other type veth peer name end");
        netns.exec("ip link set other up");
        netns.exec("ip route add 10.20.0.0/24 dev other");
        netns.exec(&format!("ip route add 10.21.0.0/24 dev {}", gateway.name));
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        let outcome = gateway.apply(vec![
            Step::AddRoute { prefix: prefix("10.19.0.0/24") },
            Step::AddRoute { prefix: prefix("10.20.0.0/24") },
            Step::AddRoute { prefix: prefix("10.22.0.0/24") },
            Step::RemoveRoute { prefix: prefix("10.21.0.0/24") },
        ]);
        let [refused] = &outcome.refused[..] else {
            panic!("{outcome:?}");
        };
        let reason = refused.error.to_string();
        assert!(reason.contains("10.20.0.0/24"), "{reason}");
        assert_eq!(refused.foreign_route(), Some(prefix("10.20.0.0/24")));
        let routes = gateway.host.observe().unwrap().state.routes;
        let ours = routes.iter().filter(|(_, tag)| **tag == Tag::Ours).map(|(prefix, _)| *prefix);
        assert!(ours.eq([prefix("10.19.0.0/24"), prefix("10.22.0.0/24")]), "{routes:?}");
        let all = netns.exec("ip route");
        assert!(all.contains("10.20.0.0/24 dev other"), "{all}");
        assert!(all.contains(&format!("10.21.0.0/24 dev {}", gateway.name)), "{all}");
    });
}
