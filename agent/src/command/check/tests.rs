#[path = "tests/firewall.rs"]
mod firewall;
#[path = "tests/running.rs"]
mod running;

use std::io;

use gatepost::dataplane::NetlinkError;
use gatepost::dataplane::nft::{Flowtable, Manager, NftError};
use gatepost::model::psk::PskKeys;
use gatepost::model::{BlockList, FailClosed, GatewayId, HostRouting, PublicKey};
use gatepost::reconcile::status::{State, Status};
use gatepost::reconcile::{BlockFileError, Provenance};
use gatepost::store::Place;

use super::super::finding::{Level, exit};
use super::*;
use crate::config::ConfigError;
use crate::exit::Exit;

const OURS: &str = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
const OTHER: &str = "4V5ShwAxMwr1PyLW4mZs0CjWBpSMLMDJiyDdLCT3XnE=";

fn key(text: &str) -> PublicKey {
    text.parse().unwrap()
}

fn config() -> Config {
    let mut config = Config::default();
    config.gateway.name = Some("fra-1".into());
    config.file = "/etc/gatepost/gatepost.toml".into();
    config
}

fn healthy() -> Facts {
    Facts {
        warnings: vec![],
        exposures: vec![],
        public_key: Ok(key(OURS)),
        psk_keys: Ok(0),
        database: Ok(DatabaseFacts {
            place: "database vpn at db1:5432 as role gw".into(),
            schema_version: gatepost::store::SCHEMA_VERSION,
            wrong_rights: vec![],
            unannounced: vec![],
            refusals: vec![],
            shared_role: None,
            writable_schemas: vec![],
            prepared_at_most: 0,
            gateway_id: GatewayId(uuid::Uuid::nil()),
            gateway_name: "fra-1".into(),
            gateway_key: KeyText::Key(key(OURS)),
            gateway_active: true,
            listen_port: Some(51820),
            vpn_cidr: "10.99.0.0/16".parse().unwrap(),
            peers: 100,
            sealed_peers: 0,
            clock: Clock::Ahead(Duration::from_millis(20)),
        }),
        host: HostFacts {
            kernel_release: "6.12.0".into(),
            kernel_wireguard: true,
            tun_device: true,
            forwarding_ipv4: Some(1),
            forwarding_ipv6: Some(1),
            rp_filter: Some(2),
            conntrack_max: Some(262_144),
            conntrack_count: Some(12),
            uplink: Some(("eth0".into(), 1500)),
            networkd_drops_routes: false,
            managers: vec![],
            legacy_tables: false,
        },
        networks: [("192.0.2.0/24".parse().unwrap(), "eth0".into())].into(),
        foreign_drops: Ok(vec![]),
        foreign_rules: Ok(vec![]),
        legacy: vec![],
        flowtables: Ok(vec![]),
        lists_flows: Some(true),
        labels_flows: Some(true),
        keeps_owned_tables: Some(true),
        routing: Some(HostRouting::default()),
        last_good: Ok(Some(Provenance::Sealed)),
        last_good_room: Ok(1 << 30),
        block_list: Ok(BlockList::default()),
        hints: None,
        taken_ports: vec![],
        agent: Ok(Status { state: State::Ready, ..Status::default() }),
    }
}

/// The findings that are not ok after the change, and the exit code.
fn found(change: impl FnOnce(&mut Config, &mut Facts)) -> (Vec<String>, Exit) {
    let (mut config, mut facts) = (config(), healthy());
    change(&mut config, &mut facts);
    let findings = evaluate(&config, &facts);
    let texts = findings.iter().filter(|finding| finding.level != Level::Ok).map(|finding| {
        let remedy = finding.remedy.as_deref().map(|remedy| format!(" -> {remedy}"));
        format!("{}: {}{}", finding.subject, finding.text, remedy.unwrap_or_default())
    });
    (texts.collect(), exit(&findings))
}

fn with_database(change: impl FnOnce(&mut DatabaseFacts)) -> (Vec<String>, Exit) {
    found(|_, facts| change(facts.database.as_mut().unwrap()))
}

#[test]
fn healthy_gateway_has_only_ok_findings() {
    assert_eq!(found(|_, _| {}), (vec![], Exit::Success));
}

#[test]
fn key_mismatch_is_a_wrong_configuration_and_names_both_keys() {
    let (texts, exit) = with_database(|database| database.gateway_key = KeyText::Key(key(OTHER)));
    assert_eq!(exit, Exit::Config);
    assert!(texts[0].contains(OURS) && texts[0].contains(OTHER), "{texts:?}");
    let (texts, exit) = with_database(|database| database.gateway_key = KeyText::parse("pending"));
    assert_eq!(exit, Exit::Config);
    assert!(texts[0].contains("\"pending\", which is not base64"), "{texts:?}");
}

#[test]
fn role_of_another_gateway_is_a_wrong_configuration_but_not_a_wrong_key() {
    let (texts, exit) = with_database(|database| {
        database.gateway_name = "ber-1".into();
        database.gateway_key = KeyText::Key(key(OTHER));
    });
    assert_eq!((texts.len(), exit), (1, Exit::Config));
    let text =
        "gateway: the database role is bound to gateway ber-1, but [gateway] name is fra-1: ";
    assert!(texts[0].starts_with(text), "{texts:?}");
}

#[test]
fn unusable_sealing_keys_are_wrong_and_missing_ones_a_warning() {
    let (texts, exit) = found(|_, facts| {
        let source = "k1".parse::<PskKeys>().unwrap_err();
        facts.psk_keys = Err(ConfigError::PskKeys { path: "psk.keys".into(), source });
    });
    assert_eq!((texts.len(), exit), (1, Exit::Config));
    assert!(texts[0].starts_with("psk_keys: psk.keys: psk_keys, line 1: "), "{texts:?}");
    let (texts, exit) = with_database(|database| database.sealed_peers = 3);
    assert_eq!((texts.len(), exit), (1, Exit::Failure));
    assert!(texts[0].starts_with("psk_keys: 3 peers with a preshared key, but no sealing key"));
    let (texts, _) = found(|_, facts| {
        facts.psk_keys = Ok(2);
        facts.database.as_mut().unwrap().sealed_peers = 3;
    });
    assert_eq!(texts, [""; 0]);
}

#[test]
fn network_that_another_link_has_is_a_wrong_pool_and_one_within_it_a_warning() {
    let link = |network: &str| {
        found(|_, facts| {
            facts.networks.insert(network.parse().unwrap(), "eth1".into());
        })
    };
    for network in ["10.99.0.0/16", "10.0.0.0/8"] {
        let (texts, exit) = link(network);
        assert_eq!(exit, Exit::Config);
        let named = texts[0].contains("10.99.0.0/16") && texts[0].contains(network);
        assert!(named && texts[0].contains("eth1"), "{texts:?}");
    }
    let (texts, exit) = link("10.99.7.0/24");
    assert_eq!((texts.len(), exit), (1, Exit::Failure));
    assert!(texts[0].starts_with("pool: link eth1 has 10.99.7.0/24"), "{texts:?}");
    assert_eq!(link("10.98.0.0/16"), (vec![], Exit::Success));
    let (texts, exit) =
        with_database(|database| database.vpn_cidr = "169.254.7.0/24".parse().unwrap());
    assert_eq!(exit, Exit::Config);
    assert!(texts[0].contains("169.254.0.0/16"), "{texts:?}");
}

#[test]
fn unused_address_family_needs_no_forwarding() {
    let (texts, exit) = found(|_, facts| facts.host.forwarding_ipv6 = Some(0));
    let note = "forwarding: IPv6 forwarding is off, and no peer has an IPv6 address -> none, unless \
                peers need IPv6";
    assert_eq!((texts, exit), (vec![note.to_owned()], Exit::Success));
    let (texts, exit) = found(|_, facts| {
        facts.host.forwarding_ipv6 = Some(0);
        facts.database.as_mut().unwrap().vpn_cidr = "fd00:9::/64".parse().unwrap();
    });
    let warning = "forwarding: IPv6 forwarding is off, so peers reach only this host -> sysctl -w \
                   net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.all.forwarding=1, in this order, \
                   and save both in /etc/sysctl.d/";
    assert_eq!((texts, exit), (vec![warning.to_owned()], Exit::Failure));
}

#[test]
fn missing_key_and_name_are_wrong_configurations() {
    let (texts, exit) = found(|config, facts| {
        config.gateway.name = None;
        facts.public_key = Err(unreadable_key(io::ErrorKind::NotFound));
    });
    assert_eq!((texts.len(), exit), (2, Exit::Config));
}

#[test]
fn key_that_may_not_be_read_is_no_wrong_configuration() {
    let denied = unreadable_key(io::ErrorKind::PermissionDenied);
    let (texts, exit) = found(|_, facts| facts.public_key = Err(denied));
    assert_eq!((texts.len(), exit), (1, Exit::Failure));
}

fn unreadable_key(kind: io::ErrorKind) -> ConfigError {
    let (what, path) = ("the private key", "private.key".into());
    ConfigError::Secret { what, path, source: kind.into(), remedy: "correct the path" }
}

#[test]
fn unreachable_database_is_a_warning_and_a_wrong_url_is_not() {
    let exit = |error: DatabaseError| found(|_, facts| facts.database = Err(error)).1;
    let (hosts, database, role) = ("db1:5432".into(), "vpn".into(), "gw".into());
    let place = Place { hosts, database, role, ..Place::default() };
    let closed = StoreError::Closed { place: Box::new(place) };
    assert_eq!(exit(closed.into()), Exit::Failure);
    let wrong = StoreError::Config { what: "database.url".into(), fix: "correct it" };
    assert_eq!(exit(wrong.into()), Exit::Config);
    let missing = Config::default().database_url().unwrap_err();
    assert_eq!(exit(missing.into()), Exit::Config);
}

#[test]
fn what_guards_the_table_itself_is_noted() {
    assert_eq!(
        found(|_, facts| facts.keeps_owned_tables = Some(false)).0,
        [
            "ownership: this kernel lets every program change the table, and the agent puts it back -> none \
          needed; kernels from 6.9 let the agent own it"
        ]
    );
    assert_eq!(
        found(|config, _| config.firewall.fail_closed = FailClosed::Never).0,
        ["fail_closed: off: packets of peers pass unfiltered while the table is gone -> set \
          firewall.fail_closed = \"auto\""]
    );
}

/// One that holds our interface.
fn flowtable(takes_ours: bool) -> Flowtable {
    let (table, name) = ("filter".into(), "fast".into());
    Flowtable { family: "inet", table, name, has_ours: true, takes_ours }
}

#[test]
fn each_fault_of_the_host_has_its_remedy() {
    type Change = fn(&mut Config, &mut Facts);
    let cases: [(Change, &str); 15] = [
        (
            |_, facts| facts.flowtables = Ok(vec![flowtable(true)]),
            "firewall: a rule adds flows of peers to flowtable inet filter fast, and they pass every rule until \
             their peer is removed -> write iifname != gatepost0 oifname != gatepost0 before `flow add` there",
        ),
        (
            |_, facts| facts.flowtables = Ok(vec![flowtable(false)]),
            "firewall: flowtable inet filter fast holds gatepost0, and its flows pass every rule until they \
             end -> take gatepost0 out of the flowtable's devices",
        ),
        (
            |_, facts| facts.routing.as_mut().unwrap().checks_sources = true,
            "fail_closed: packets of peers pass unfiltered while the table is gone: rp_filter is on and \
             net.ipv4.conf.all.src_valid_mark is 0, so the gate would drop everything: sysctl -w \
             net.ipv4.conf.all.src_valid_mark=1 -> remove the cause, or accept it with \
             firewall.fail_closed = false",
        ),
        (
            |_, facts| facts.lists_flows = Some(false),
            "conntrack: tracked flows cannot be listed, so no peer can be added or removed -> modprobe \
             nf_conntrack_netlink, or set firewall.flush_conntrack = false",
        ),
        (
            |_, facts| facts.labels_flows = Some(false),
            "conntrack: this kernel has no connection labels, so the gateway itself cannot open \
             connections to peers -> use a kernel with CONFIG_NF_CONNTRACK_LABELS",
        ),
        (
            |_, facts| facts.host.forwarding_ipv4 = Some(0),
            "forwarding: IPv4 forwarding is off, so peers reach only this host -> sysctl -w \
             net.ipv4.ip_forward=1, and save it in /etc/sysctl.d/",
        ),
        (
            |config, facts| {
                config.interface.backend = Backend::Kernel;
                facts.host.kernel_wireguard = false;
            },
            "wireguard: kernel 6.12.0 has no WireGuard module -> install the distribution's kernel \
             modules, or set interface.backend = \"userspace\"",
        ),
        (
            |_, facts| {
                facts.host.kernel_wireguard = false;
                facts.host.tun_device = false;
            },
            "wireguard: the userspace device needs /dev/net/tun, which does not exist -> modprobe tun, \
             or pass the device to the container",
        ),
        (
            |config, facts| {
                config.interface.site_prefixes = vec!["10.0.0.0/8".parse().unwrap()];
                facts.host.rp_filter = Some(1);
            },
            "rp_filter: strict, but with fwmark or site_prefixes replies may take another link -> sysctl -w net.ipv4.conf.gatepost0.rp_filter=2",
        ),
        (
            |_, facts| facts.host.conntrack_max = Some(400),
            "conntrack: room for 400 flows, 12 in use; too little for 100 peers -> sysctl -w \
             net.netfilter.nf_conntrack_max=800, and save it in /etc/sysctl.d/",
        ),
        (
            |_, facts| facts.host.uplink = Some(("eth0".into(), 1450)),
            "mtu: 1420 plus 80 of WireGuard exceed the 1450 of eth0 -> set interface.mtu_bytes = 1370",
        ),
        (
            |config, facts| {
                config.interface.mtu_bytes = 1280;
                facts.host.uplink = Some(("eth0".into(), 1300));
            },
            "mtu: 1280 plus 80 of WireGuard exceed the 1300 of eth0 -> raise the MTU of eth0 to 1360",
        ),
        (
            |_, facts| facts.host.networkd_drops_routes = true,
            "networkd: systemd-networkd removes routes that it did not create, also those of gatepost0 \
             -> write [Network] ManageForeignRoutes=no to /etc/systemd/networkd.conf.d/gatepost.conf \
             and restart systemd-networkd",
        ),
        (
            |_, facts| {
                let database = facts.database.as_mut().unwrap();
                database.clock = Clock::Behind(Duration::from_secs(90));
            },
            "clock: 90 s behind the database's clock -> synchronise both clocks (timedatectl set-ntp \
             true); handshake times come from this host's",
        ),
        (
            |_, facts| facts.database.as_mut().unwrap().gateway_active = false,
            "gateway: gateway fra-1 is inactive or deleted, so no peer is served -> set is_active in \
             its row, or stop this agent",
        ),
    ];
    for (change, text) in cases {
        assert_eq!(found(change), (vec![text.to_owned()], Exit::Failure));
    }
}

#[test]
fn note_is_no_failure() {
    let (texts, exit) = found(|_, facts| {
        facts.foreign_drops = Err(NftError::Open(NetlinkError::Unsuited("no privilege")));
        facts.host.managers = vec![Manager::Docker];
    });
    assert_eq!((texts.len(), exit), (2, Exit::Success));
    assert!(texts[1].contains("DOCKER-USER -i gatepost0"), "{texts:?}");
}

#[test]
fn unreadable_block_list_is_named() {
    let (texts, exit) = found(|_, facts| {
        let path = "/var/lib/gatepost/blocked".into();
        facts.block_list = Err(BlockFileError::Unreadable { path, why: "EOF".into() });
    });
    assert_eq!(exit, Exit::Failure);
    assert!(texts[0].contains("/var/lib/gatepost/blocked"), "{texts:?}");
}

#[test]
fn last_good_rows_that_cannot_be_used_or_written_are_named() {
    let named = |change: fn(&mut Facts), wanted: &str| {
        let (texts, _) = found(|_, facts| change(facts));
        assert!(texts.len() == 1 && texts[0].contains(wanted), "{texts:?}");
    };
    named(|facts| facts.last_good = Err("line 2 was altered".into()), "line 2 was altered");
    named(|facts| facts.last_good = Ok(Some(Provenance::Unsealed)), "no checksum");
    named(|facts| facts.last_good_room = Ok(0), "0 B left");
    named(|facts| facts.last_good_room = Err("/var is read-only".into()), "/var is read-only");
    assert_eq!(found(|_, facts| facts.last_good = Ok(None)), (vec![], Exit::Success));
}
