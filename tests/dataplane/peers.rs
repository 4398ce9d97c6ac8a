//! Peers: what is written, and what the kernel does without reporting it.

use std::time::Duration;

use gatepost::dataplane::{Backend, Dataplane, DataplaneError, SharedObserved};
use gatepost::model::{AllowedIps, Peer, PresharedKey};
use gatepost::plan::{Plan, Step};

use crate::rig::{Gateway, add, key, peer, prefixes, private_key, with_gateway};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("peers_are_added_changed_and_removed", changed),
    ("a_peer_with_the_gateways_own_key_is_refused", own_key),
    ("changing_an_unknown_peer_creates_none", unknown),
    ("a_peer_with_2500_prefixes_is_written_and_read_completely", many_prefixes),
    ("many_peers_are_added_and_removed_together", many_peers),
    ("a_job_that_is_interrupted_says_how_far_it_came", interrupted),
    ("a_prefix_given_to_another_peer_leaves_the_first", theft),
    ("an_unchanged_peer_keeps_its_endpoint_when_others_change", untouched),
];

pub const KERNEL_TESTS: &[Test] = &[("a_reading_during_changes_is_complete", read_under_change)];

fn changed(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let preshared_key = PresharedKey::from_bytes([9; 32]).ok();
        let full = Peer { preshared_key, keepalive_secs: 25, ..peer(&["10.7.0.3/32"]) };
        gateway.apply_all(vec![
            add(1, &["10.7.0.2/32", "fd07::2/128", "192.168.5.0/24"]),
            Step::AddPeer { key: key(2), peer: full },
            add(3, &[]),
        ]);
        gateway.apply_all(vec![Step::NarrowPeer {
            key: key(1),
            allowed_ips: prefixes(&["10.7.0.2/32"]),
        }]);
        gateway.apply_all(vec![
            Step::WidenPeer { key: key(1), allowed_ips: prefixes(&["fd07::9/128"]) },
            Step::SetPresharedKey {
                key: key(1),
                preshared_key: PresharedKey::from_bytes([8; 32]).ok(),
            },
            Step::SetPresharedKey { key: key(2), preshared_key: None },
            Step::SetKeepalive { key: key(2), keepalive_secs: 0 },
            Step::SetKeepalive { key: key(3), keepalive_secs: 11 },
        ]);
        gateway.apply_all(vec![
            Step::NarrowPeer { key: key(2), allowed_ips: AllowedIps::default() },
            Step::RemovePeer { key: key(1) },
            Step::RemovePeer { key: key(99) },
        ]);
        assert_eq!(gateway.observed.peers.len(), 2);
    });
}

fn own_key(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let own = private_key(1).public_key();
        let outcome = gateway.apply(vec![
            add(1, &["10.7.0.2/32"]),
            Step::AddPeer { key: own, peer: peer(&["10.7.0.3/32"]) },
            add(2, &["10.7.0.4/32"]),
        ]);
        assert_eq!((outcome.applied, outcome.refused.len()), (2, 1));
        assert!(matches!(*outcome.refused[0].error, DataplaneError::OwnKey), "{outcome:?}");
        gateway.check();
    });
}

fn unknown(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        gateway.apply_all(vec![
            Step::NarrowPeer { key: key(1), allowed_ips: prefixes(&["10.7.0.2/32"]) },
            Step::WidenPeer { key: key(2), allowed_ips: prefixes(&["10.7.0.3/32"]) },
            Step::SetPresharedKey { key: key(3), preshared_key: None },
            Step::SetKeepalive { key: key(4), keepalive_secs: 25 },
        ]);
        assert!(gateway.observed.peers.is_empty());
    });
}

fn many_prefixes(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let prefix = |n: u32| format!("10.{}.{}.{}/32", 8 + (n >> 16), (n >> 8) & 255, n & 255);
        let texts: Vec<String> = (0..2500).map(prefix).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        gateway.apply_all(vec![add(1, &["10.7.0.2/32"]), add(2, &texts), add(3, &["10.7.0.3/32"])]);
        gateway.apply_all(vec![Step::NarrowPeer {
            key: key(2),
            allowed_ips: prefixes(&texts[..2000]),
        }]);
        assert_eq!(gateway.observed.peers[&key(2)].allowed_ips.as_slice().len(), 2000);
    });
}

fn many_peers(backend: Backend) {
    let count = if backend == Backend::Kernel { 2000 } else { 200 };
    with_gateway(backend, |_, gateway| {
        let address = |n: u32| format!("10.7.{}.{}/32", 1 + n / 250, 1 + n % 250);
        gateway.apply_all((0..count).map(|n| add(n, &[&address(n)])).collect());
        let even = (0..count).step_by(2).map(|n| Step::RemovePeer { key: key(n) });
        let more = (count..count + 10).map(|n| add(n, &[&address(n)]));
        gateway.apply_all(even.chain(more).collect());
        assert_eq!(gateway.observed.peers.len(), count as usize / 2 + 10);
    });
}

/// Why a plan must remove before it adds: the kernel moves the prefix without reporting it.
fn interrupted(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let steps: Vec<_> = (0..1_100).map(|number| add(number, &[])).collect();
        let observed = SharedObserved::from(std::mem::take(&mut gateway.observed));
        observed.interrupt(Duration::ZERO);
        let outcome = gateway.host.apply(&Plan::new(steps.clone()), &observed);
        gateway.observed = observed.read().clone();
        assert!(outcome.untried > 0 && outcome.refused.is_empty(), "{outcome:?}");
        assert_eq!(outcome.applied + outcome.untried, steps.len());
        assert!((1..steps.len()).contains(&outcome.applied), "{} steps", outcome.applied);
        gateway.check();
        gateway.apply_all(steps[outcome.applied..].to_vec());
    });
}

fn theft(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        gateway.apply_all(vec![add(1, &["10.7.0.2/32"])]);
        let outcome = gateway.apply(vec![add(2, &["10.7.0.2/32"])]);
        assert_eq!((outcome.applied, outcome.refused.len()), (1, 0));
        let peers = gateway.host.observe().unwrap().state.peers;
        assert!(peers[&key(1)].allowed_ips.is_empty());
        assert_eq!(peers[&key(2)].allowed_ips, prefixes(&["10.7.0.2/32"]));
    });
}

fn untouched(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        gateway.apply_all(vec![add(1, &["10.7.0.2/32"]), add(2, &["10.7.0.3/32"])]);
        let set = format!("wg set {} peer {} endpoint 192.0.2.1:9", gateway.name, key(1));
        netns.exec(&set);
        gateway.apply_all(vec![
            Step::RemovePeer { key: key(2) },
            add(3, &["10.7.0.3/32"]),
            Step::WidenPeer { key: key(1), allowed_ips: prefixes(&["10.7.0.9/32"]) },
        ]);
        let traffic = gateway.host.observe().unwrap().traffic;
        assert_eq!(traffic[&key(1)].endpoint, "192.0.2.1:9".parse().ok());
    });
}

/// A reading during removals has every peer that stayed. The kernel ends a dump early when the peer at
/// which it stopped is removed, so the removed peers lie between those that stay.
fn read_under_change(backend: Backend) {
    for _ in 0..5 {
        with_gateway(backend, |_, gateway| {
            let address =
                |n: u32| format!("10.{}.{}.{}/32", 8 + (n >> 16), (n >> 8) & 255, n & 255);
            gateway.apply_all((0..6000).map(|n| add(n, &[&address(n)])).collect());
            let mut other = Gateway::open(gateway.name.clone(), backend);
            other.host.observe().unwrap();
            let going = (0..6000).filter(|n| n % 2 == 0).map(|n| Step::RemovePeer { key: key(n) });
            let going: Vec<Step> = going.collect();
            std::thread::scope(|scope| {
                let remover = scope.spawn(|| other.apply(going).applied);
                while !remover.is_finished() {
                    if let Ok(reading) = gateway.host.observe() {
                        let peers = reading.state.peers;
                        let stayed = (0..6000).filter(|n| n % 2 == 1).map(key);
                        assert_eq!(stayed.filter(|key| peers.contains_key(key)).count(), 3000);
                    }
                }
                assert_eq!(remover.join().unwrap(), 3000);
            });
        });
    }
}
