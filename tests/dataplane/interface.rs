//! The link, its addresses and its port, and which of them are ours.

use std::net::UdpSocket;
use std::time::Duration;

use gatepost::dataplane::{
    Backend, Dataplane, DataplaneError, DataplaneHandle, Host, HostEvent, HostSettings, Monitor,
    RefusedStep, SharedObserved,
};
use gatepost::model::{LinkOwner, ObservedInterface, ObservedState, Stray, Tag};
use gatepost::plan::{Plan, Step};

use crate::netns::Netns;
use crate::rig::{Gateway, PORT, add, gateway_id, interface, key, ours, with_gateway};
use crate::runner::Test;

pub const TESTS: &[Test] = &[
    ("an_interface_is_created_marked_and_read_back", made_and_read_back),
    ("auto_takes_the_kernel_where_it_can", auto),
    ("a_new_agent_finds_the_interface_and_adopts_it", adopted),
    ("a_link_of_another_kind_is_left_alone", foreign_link),
    ("a_port_in_use_is_refused_and_the_other_steps_are_applied", port_in_use),
    ("a_foreign_address_is_left_alone", foreign_address),
    ("replacing_an_address_removes_no_other", moved_address),
    ("an_ipv6_address_gets_another_prefix_length", widened),
    ("a_link_local_address_of_ours_is_read_back", link_local),
    ("a_renamed_link_is_found_by_its_mark_and_gets_its_name_back", renamed),
    ("only_a_stray_link_with_our_mark_is_taken_down", strays),
    ("a_link_that_took_our_name_is_left_alone", replaced),
    ("only_links_with_our_mark_are_removed", removed),
    ("changes_by_other_programs_are_noticed", monitored),
    ("the_handle_serves_async_code", handled),
];

fn made_and_read_back(backend: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let mut gateway = Gateway::open(interface(), backend);
        assert_eq!(gateway.host.observe().unwrap().state.interface, None);
        gateway.apply_all(gateway.steps_up());
        gateway.apply_all(vec![Step::SetFwmark { fwmark: 0x51 }, Step::SetMtu { bytes: 1400 }]);
        let interface = gateway.host.observe().unwrap().state.interface.unwrap();
        assert_eq!(interface.owner, LinkOwner::Ours(gateway_id()));
        assert_eq!((interface.up, interface.listen_port, interface.fwmark), (true, PORT, 0x51));
        assert!(interface.addresses.values().all(|tag| *tag == Tag::Ours));
        let link = netns.exec(&format!("ip -d link show {}", gateway.name));
        assert!(link.contains(&format!("alias gatepost:{}", gateway_id())), "{link}");
        assert!(link.contains("mtu 1400"), "{link}");
        let fwmark = netns.exec(&format!("wg show {} fwmark", gateway.name));
        assert_eq!(fwmark.trim(), "0x51");
    });
}

fn auto(_: Backend) {
    with_gateway(Backend::Auto, |netns, gateway| {
        let link = netns.exec(&format!("ip -d link show {}", gateway.name));
        let kernel_can = netns.succeeds("ip link add probe type wireguard");
        assert_eq!(link.contains("wireguard"), kernel_can, "{link}");
        // The other backend, when named, does not take over an existing link.
        let other = if kernel_can { Backend::Userspace } else { Backend::Kernel };
        let mut strict = Gateway::open(gateway.name.clone(), other);
        let owner = strict.host.observe().unwrap().state.interface.unwrap().owner;
        assert!(matches!(owner, LinkOwner::Foreign(_)), "{owner:?}");
        // Dropping it stops a userspace device of this name, so it must live to the end.
        drop(strict);
    });
}

fn adopted(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        gateway.apply_all(vec![add(1, &["10.7.0.2/32"])]);
        let mut next = Gateway::open(gateway.name.clone(), backend);
        let state = next.host.observe().unwrap().state;
        assert_eq!(ours(state), gateway.observed);
    });
}

fn foreign_link(backend: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let mut gateway = Gateway::open(interface(), backend);
        netns.exec(&format!("ip link add {} type veth peer name other", gateway.name));
        let owner = gateway.host.observe().unwrap().state.interface.unwrap().owner;
        assert_eq!(owner, LinkOwner::Foreign("veth".to_owned()));
        let mut steps = gateway.steps_up();
        steps.extend([add(1, &["10.7.0.2/32"]), Step::RemovePeer { key: key(2) }]);
        let outcome = gateway.apply(steps);
        assert_eq!(outcome.applied, 0);
        let [RefusedStep { step: Step::CreateLink { .. }, error }] = &outcome.refused[..] else {
            panic!("{outcome:?}");
        };
        let reason = error.to_string();
        assert!(reason.contains(gateway.name.as_str()), "{reason}");
        assert!(!netns.exec("ip address").contains("10.7.0.1"));
        let link = netns.exec(&format!("ip -d link show {}", gateway.name));
        assert!(!link.contains("gatepost:"), "{link}");
    });
}

fn replaced(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        netns.exec(&format!("ip link del {}", gateway.name));
        netns.exec(&format!("ip link add {} type veth peer name other", gateway.name));
        let outcome = gateway.apply(vec![
            Step::SetMtu { bytes: 1300 },
            Step::AddRoute { prefix: "10.19.0.0/24".parse().unwrap() },
        ]);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 2));
        assert!(netns.exec(&format!("ip link show {}", gateway.name)).contains("mtu 1500"));
    });
}

fn port_in_use(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let taken = UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let outcome = gateway.apply(vec![Step::SetListenPort { port }, add(1, &["10.7.0.2/32"])]);
        assert_eq!(outcome.applied, 1);
        let [RefusedStep { step: Step::SetListenPort { .. }, error }] = &outcome.refused[..] else {
            panic!("{outcome:?}");
        };
        let reason = error.to_string();
        assert!(reason.contains(&format!("UDP port {port}")), "{reason}");
        // The old port is still set, and the peer was added.
        gateway.check();
        assert_eq!(gateway.observed.interface.as_ref().unwrap().listen_port, PORT);
    });
}

fn foreign_address(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        // The kernel lists it without an address of the other end.
        netns.exec("ip address add 10.98.9.9 peer 0.0.0.0/32 dev lo");
        netns.exec(&format!("ip address add 10.99.0.1/32 dev {}", gateway.name));
        let addresses = |gateway: &mut Gateway| {
            gateway.host.observe().unwrap().state.interface.unwrap().addresses
        };
        let before = addresses(gateway);
        assert_eq!(before[&"10.99.0.1/32".parse().unwrap()], Tag::Foreign);
        assert_eq!(before[&"10.7.0.1/24".parse().unwrap()], Tag::Ours);
        assert_eq!(before.len(), 3, "{before:?}");
        // The kernel keeps the tag, not this process.
        let mut next = Gateway::open(gateway.name.clone(), backend);
        assert_eq!(addresses(&mut next), before);
        let outcome =
            gateway.apply(vec![Step::RemoveAddress { address: "10.7.0.1/24".parse().unwrap() }]);
        assert_eq!(outcome.applied, 1);
        assert_eq!(addresses(gateway).len(), 2);
    });
}

fn moved_address(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        netns.exec(&format!("ip address add 10.7.0.5/24 dev {}", gateway.name));
        gateway.observed = gateway.host.observe().unwrap().state;
        gateway.apply_all(vec![Step::AddRoute { prefix: "10.30.0.0/24".parse().unwrap() }]);
        gateway.apply_all(vec![
            Step::AddAddress { address: "10.7.0.2/24".parse().unwrap() },
            Step::RemoveAddress { address: "10.7.0.1/24".parse().unwrap() },
        ]);
        let addresses = &gateway.observed.interface.as_ref().unwrap().addresses;
        assert_eq!(addresses[&"10.7.0.5/24".parse().unwrap()], Tag::Foreign);
        assert_eq!(gateway.observed.routes.len(), 3);
    });
}

fn widened(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        let (from, to) = ("fd07::1/64".parse().unwrap(), "fd07::1/48".parse().unwrap());
        gateway.apply_all(vec![Step::ReplaceAddress { from, to }]);
        let addresses = &gateway.observed.interface.as_ref().unwrap().addresses;
        assert_eq!((addresses.get(&from), addresses.get(&to)), (None, Some(&Tag::Ours)));
    });
}

fn link_local(backend: Backend) {
    with_gateway(backend, |_, gateway| {
        gateway.apply_all(vec![Step::AddAddress { address: "fe80::1/64".parse().unwrap() }]);
    });
}

fn removed(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        gateway.apply_all((1..=50).map(|n| add(n, &[&format!("10.7.0.{}/32", n + 1)])).collect());
        // Ours has another name; a foreign link has the interface's name.
        rename(netns, gateway.name.as_str(), "theirs");
        netns.exec(&format!("ip link add {} type veth peer name other", gateway.name));
        let error = gateway.host.remove_links().unwrap_err().to_string();
        assert!(error.contains(gateway.name.as_str()), "{error}");
        assert!(netns.succeeds("ip link show theirs"));
        netns.exec(&format!("ip link del {}", gateway.name));
        assert_eq!(gateway.host.remove_links().unwrap(), [Box::from("theirs")]);
        assert_eq!(ours(gateway.host.observe().unwrap().state), ObservedState::default());
        assert!(!netns.succeeds("ip link show theirs"));
        assert!(gateway.host.remove_links().unwrap().is_empty());
    });
}

/// A kernel before 6.2 renames no link that is up.
fn rename(netns: &Netns, from: &str, to: &str) {
    if !netns.succeeds(&format!("ip link set {from} name {to}")) {
        netns.exec(&format!("ip link set {from} down"));
        netns.exec(&format!("ip link set {from} name {to}"));
        netns.exec(&format!("ip link set {to} up"));
    }
}

/// A link is ours by its mark, not by its name.
fn renamed(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        gateway.apply_all(vec![add(1, &["10.7.0.2/32"])]);
        rename(netns, gateway.name.as_str(), "theirs");
        // Steps that were planned for a link of another name do nothing to this one.
        let outcome = gateway.apply(vec![add(2, &["10.7.0.3/32"])]);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
        let state = gateway.host.observe().unwrap().state;
        let before = std::mem::replace(&mut gateway.observed, state).interface.unwrap();
        let found = gateway.observed.interface.as_ref().unwrap();
        // A link that goes down loses its IPv6 addresses, and its sessions.
        let (addresses, sessions_ended) = (found.addresses.clone(), found.sessions_ended);
        let name = "theirs".into();
        assert_eq!(*found, ObservedInterface { name, addresses, sessions_ended, ..before });
        let to = gateway.name.clone();
        let rename = Step::RenameLink { from: "theirs".into(), to };
        gateway.apply_all(vec![rename, Step::OpenSessions, add(2, &[])]);
        assert_eq!(gateway.observed.peers.len(), 2);
    });
}

fn strays(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        netns.exec("ip link add stray type veth peer name theirs");
        netns.exec(&format!("ip link set stray alias gatepost:{} up", gateway_id()));
        netns.exec("ip link set theirs alias uplink up");
        gateway.observed.strays =
            [(Box::from("stray"), Stray { owner: gateway_id(), up: true })].into();
        gateway.check();
        gateway.apply_all(vec![Step::TakeDown { name: "stray".into() }]);
        let outcome = gateway.apply(vec![Step::TakeDown { name: "theirs".into() }]);
        assert_eq!((outcome.applied, outcome.refused.len()), (0, 1));
        assert!(netns.exec("ip link show up").contains("theirs"));
    });
}

fn monitored(backend: Backend) {
    with_gateway(backend, |netns, gateway| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let index = gateway.host.link_index().unwrap();
            let port = gateway.host.port();
            let name = &gateway.name.clone();
            // The kernel reports the link-local address that it gave a TUN link, once it has tried it.
            let tried = format!("ip -6 address show dev {name} tentative");
            while !netns.exec(&tried).trim().is_empty() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut monitor = Monitor::open(gateway.name.clone(), index, port).unwrap();
            // Neither our own changes nor those of another link may be reported before this.
            let prefix = "10.96.0.0/24".parse().unwrap();
            gateway.apply_all(vec![Step::AddRoute { prefix }]);
            gateway.apply_all(vec![Step::RemoveRoute { prefix }]);
            netns.exec("ip address add 10.98.0.1/32 dev lo");
            netns.exec(&format!("ip link set {name} alias ours"));
            assert_eq!(monitor.next().await, Ok(HostEvent::Link));
            let expect = [
                (format!("ip address add 10.99.0.1/32 dev {name}"), HostEvent::Address),
                (format!("ip route add 10.97.0.0/24 dev {name}"), HostEvent::Route),
                (format!("ip link set {name} alias theirs"), HostEvent::Link),
                (format!("ip link del {name}"), HostEvent::Link),
            ];
            for (command, event) in expect {
                netns.exec(&command);
                let mut heard = monitor.next().await.unwrap();
                // With an address comes a route of the kernel's own; with a link both go.
                while heard != event {
                    heard = monitor.next().await.unwrap();
                }
            }
        });
    });
}

fn handled(backend: Backend) {
    let netns = Netns::new("Bg");
    netns.enter(|| {
        let name = interface();
        let first = Gateway::open(name.clone(), backend);
        let steps = first.steps_up();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let settings = HostSettings {
            interface: name.clone(),
            backend,
            device_exe: std::env::current_exe().unwrap(),
        };
        let open = || Host::open(settings, crate::rig::NoFirewall);
        let handle = DataplaneHandle::spawn(open).unwrap();
        runtime.block_on(async {
            let observed = SharedObserved::from(handle.observe().await.unwrap().state);
            let outcome = handle.apply(Plan::new(steps), observed.clone()).await.unwrap();
            assert!(outcome.refused.is_empty(), "{outcome:?}");
            assert_eq!(handle.observe().await.unwrap().state, *observed.read());
            assert_eq!(handle.run(Host::remove_links).await.unwrap().unwrap().len(), 1);
            let dead = handle.run(|_| -> () { std::panic::resume_unwind(Box::new(())) }).await;
            assert!(matches!(dead, Err(DataplaneError::ThreadGone)));
            assert!(matches!(handle.observe().await, Err(DataplaneError::ThreadGone)));
        });
    });
}
