use gatepost::dataplane::nft::{ForeignDrop, Hook, Manager};
use gatepost::model::PublicKey;

use super::super::finding::exit;
use super::*;
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
            schema_version: 8,
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
            neighbours: vec![],
            legacy_filter: false,
        },
        foreign_drops: Ok(vec![]),
        lists_flows: Some(true),
    }
}

/// What is not well after the change, and the exit code.
fn found(change: impl FnOnce(&mut Config, &mut Facts)) -> (Vec<String>, Exit) {
    let (mut config, mut facts) = (config(), healthy());
    change(&mut config, &mut facts);
    let findings = judge(&config, &facts);
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
fn a_healthy_gateway_has_nothing_to_complain_of() {
    assert_eq!(found(|_, _| {}), (vec![], Exit::Success));
}

#[test]
fn another_key_than_the_rows_is_a_wrong_configuration_and_names_both() {
    let (texts, exit) = with_database(|database| database.gateway_key = KeyText::Key(key(OTHER)));
    assert_eq!(exit, Exit::Config);
    assert!(texts[0].contains(OURS) && texts[0].contains(OTHER), "{texts:?}");
    let (texts, exit) = with_database(|database| database.gateway_key = KeyText::parse("pending"));
    assert_eq!(exit, Exit::Config);
    assert!(texts[0].contains("\"pending\", which is not base64"), "{texts:?}");
}

#[test]
fn a_role_of_another_gateway_is_a_wrong_configuration_and_no_wrong_key() {
    let (texts, exit) = with_database(|database| {
        database.gateway_name = "ber-1".into();
        database.gateway_key = KeyText::Key(key(OTHER));
    });
    assert_eq!((texts.len(), exit), (1, Exit::Config));
    let said =
        "gateway: the database's role acts for gateway ber-1, the configuration says fra-1: ";
    assert!(texts[0].starts_with(said), "{texts:?}");
}

#[test]
fn keys_that_cannot_be_read_are_wrong_and_keys_that_are_missed_a_warning() {
    let (texts, exit) = found(|_, facts| facts.psk_keys = Err("psk.keys: line 1".into()));
    assert_eq!((texts, exit), (vec!["psk_keys: psk.keys: line 1".to_owned()], Exit::Config));
    let (texts, exit) = with_database(|database| database.sealed_peers = 3);
    assert_eq!((texts.len(), exit), (1, Exit::Failure));
    assert!(texts[0].starts_with("psk_keys: 3 peers with a preshared key, and no key here"));
    let (texts, _) = found(|_, facts| {
        facts.psk_keys = Ok(2);
        facts.database.as_mut().unwrap().sealed_peers = 3;
    });
    assert_eq!(texts, [""; 0]);
}

#[test]
fn a_family_that_no_peer_has_needs_no_forwarding() {
    let (texts, exit) = found(|_, facts| facts.host.forwarding_ipv6 = Some(0));
    let note = "forwarding: IPv6 is not forwarded, and no peer has an address of it -> nothing, \
                unless peers need IPv6";
    assert_eq!((texts, exit), (vec![note.to_owned()], Exit::Success));
    let (texts, exit) = found(|_, facts| {
        facts.host.forwarding_ipv6 = Some(0);
        facts.database.as_mut().unwrap().vpn_cidr = "fd00:9::/64".parse().unwrap();
    });
    let warning = "forwarding: IPv6 is not forwarded: peers reach this host and no other -> sysctl \
                   -w net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.all.forwarding=1, in this \
                   order, and write both to /etc/sysctl.d/";
    assert_eq!((texts, exit), (vec![warning.to_owned()], Exit::Failure));
}

#[test]
fn no_key_and_no_name_are_wrong_configurations() {
    let (texts, exit) = found(|config, facts| {
        config.gateway.name = None;
        facts.public_key = Err("cannot read the private key".into());
    });
    assert_eq!((texts.len(), exit), (2, Exit::Config));
}

#[test]
fn a_database_that_is_away_is_a_warning_and_a_wrong_url_is_not() {
    let away = |trouble: Trouble| found(|_, facts| facts.database = Err(trouble)).1;
    assert_eq!(away(Trouble::Database("out of reach".into())), Exit::Failure);
    assert_eq!(away(Trouble::Configuration("no URL".into())), Exit::Config);
}

#[test]
fn each_fault_of_the_host_has_its_remedy() {
    type Change = fn(&mut Config, &mut Facts);
    let cases: [(Change, &str); 10] = [
        (
            |_, facts| facts.lists_flows = Some(false),
            "conntrack: tracked flows cannot be listed: no peer can be added or removed -> modprobe \
             nf_conntrack_netlink, or set firewall.flush_conntrack = false",
        ),
        (
            |_, facts| facts.host.forwarding_ipv4 = Some(0),
            "forwarding: IPv4 is not forwarded: peers reach this host and no other -> sysctl -w \
             net.ipv4.ip_forward=1, and write it to /etc/sysctl.d/",
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
            "wireguard: there is no /dev/net/tun, which the userspace device needs -> modprobe \
             tun, or give the container the device",
        ),
        (
            |config, facts| {
                config.interface.site_prefixes = vec!["10.0.0.0/8".parse().unwrap()];
                facts.host.rp_filter = Some(1);
            },
            "rp_filter: strict, while fwmark or site_prefixes may lead packets back by another way \
             -> sysctl -w net.ipv4.conf.gatepost0.rp_filter=2",
        ),
        (
            |_, facts| facts.host.conntrack_max = Some(400),
            "conntrack: room for 400 flows, 12 in use, too few for 100 peers -> sysctl -w \
             net.netfilter.nf_conntrack_max=800, and write it to /etc/sysctl.d/",
        ),
        (
            |_, facts| facts.host.uplink = Some(("eth0".into(), 1450)),
            "mtu: 1420 and 80 of WireGuard do not fit in eth0's 1450 -> set interface.mtu_bytes = \
             1370",
        ),
        (
            |_, facts| facts.host.networkd_drops_routes = true,
            "networkd: systemd-networkd removes routes that it did not make, gatepost0's too -> \
             write [Network] ManageForeignRoutes=no to /etc/systemd/networkd.conf.d/gatepost.conf \
             and restart systemd-networkd",
        ),
        (
            |_, facts| {
                let database = facts.database.as_mut().unwrap();
                database.clock = Clock::Behind(Duration::from_secs(90));
            },
            "clock: 90 s behind the database's -> synchronise both clocks (timedatectl set-ntp \
             true): handshake times are reported by this one",
        ),
        (
            |_, facts| facts.database.as_mut().unwrap().gateway_active = false,
            "gateway: gateway fra-1 is inactive or deleted: no peer is served -> set is_active of \
             its row, or stop this agent",
        ),
    ];
    for (change, text) in cases {
        assert_eq!(found(change), (vec![text.to_owned()], Exit::Failure));
    }
}

#[test]
fn a_note_is_no_failure() {
    let (texts, exit) = found(|_, facts| {
        facts.foreign_drops = Err("no rights".into());
        facts.host.neighbours = vec![Manager::Docker];
    });
    assert_eq!((texts.len(), exit), (2, Exit::Success));
    assert!(texts[1].contains("DOCKER-USER -i gatepost0"), "{texts:?}");
}

#[test]
fn chains_of_others_that_drop_are_named_with_the_way_past_them() {
    let drop = |hook, manager| ForeignDrop {
        family: "ip",
        table: "filter".into(),
        chain: "FORWARD".into(),
        hook,
        manager,
    };
    let cases = [
        (drop(Hook::Forward, Some(Manager::Docker)), "iptables -I DOCKER-USER -i gatepost0 -j"),
        (drop(Hook::Forward, None), "nft insert rule ip filter FORWARD iifname gatepost0 accept"),
        (drop(Hook::Input, Some(Manager::Ufw)), "ufw allow 51820/udp"),
        (drop(Hook::Input, None), "nft insert rule ip filter FORWARD udp dport 51820 accept"),
    ];
    for (drop, remedy) in cases {
        let (texts, exit) = found(|_, facts| facts.foreign_drops = Ok(vec![drop]));
        assert_eq!((texts.len(), exit), (1, Exit::Failure));
        assert!(texts[0].starts_with("firewall: chain FORWARD of table ip filter drops what "));
        assert!(texts[0].contains(remedy), "{texts:?}");
    }
}
