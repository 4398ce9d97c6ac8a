//! Which chains of other programs drop our packets.

use gatepost::dataplane::nft::{
    ForeignDrop, Hook, Lost, Manager, Nft, Packets, flowtables, foreign_drops, foreign_rules,
};

use super::netns::Netns;
use super::table::{base, load};

/// What is found in a ruleset that is loaded beside our table.
fn found(text: &str) -> Vec<ForeignDrop> {
    let netns = Netns::new();
    netns.enter();
    Nft::open().unwrap().apply(&load(&base(), &Default::default()), None).unwrap();
    netns.load(text);
    foreign_drops(&"gatepost0".parse().unwrap(), Some(51820)).unwrap()
}

fn drop(
    family: &'static str,
    table: &str,
    chain: &str,
    (hook, packets): (Hook, Packets),
) -> ForeignDrop {
    let (table, chain) = (table.into(), chain.into());
    ForeignDrop { family, table, chain, hook, packets, lost: Lost::All, manager: None }
}

const FORWARDED: (Hook, Packets) = (Hook::Forward, Packets::Forwarded);

fn chain(hook: &str, policy: &str, rules: &str) -> String {
    format!(
        "table inet theirs {{ chain it {{ type filter hook {hook} priority 0; policy {policy}; {rules}\n}}\n}}"
    )
}

#[test]
fn foreign_chains_that_end_in_a_drop_are_found() {
    let forward = [drop("inet", "theirs", "it", FORWARDED)];
    assert_eq!(found(&chain("forward", "drop", "")), forward);
    assert_eq!(found(&chain("forward", "drop", "iifname \"eth0\" accept")), forward);
    assert_eq!(
        found(&chain("forward", "accept", "iifname \"eth0\" accept; counter drop")),
        forward
    );
    assert_eq!(found(&chain("forward", "accept", "reject with icmpx admin-prohibited")), forward);
    let elsewhere = "table inet theirs {
        chain ours { iifname gatepost0 accept\n}
        chain it { type filter hook forward priority 0; policy drop;\n}
    }";
    assert_eq!(found(elsewhere), forward);
    let lost = |hook, packets: [Packets; 2]| {
        packets.map(|packets| drop("inet", "theirs", "it", (hook, packets)))
    };
    let input = lost(Hook::Input, [Packets::WireGuard, Packets::Host]);
    assert_eq!(found(&chain("input", "drop", "tcp dport 22 accept")), input);
    // The port and the link are two questions.
    let [port, peers] = input;
    assert_eq!(found(&chain("input", "drop", "udp dport { 53, 51820 } accept")), [peers]);
    assert_eq!(found(&chain("input", "drop", "iifname \"gatepost0\" accept")), [port]);
    let output = lost(Hook::Output, [Packets::WireGuard, Packets::Host]);
    assert_eq!(found(&chain("output", "drop", "")), output);
    let [wireguard, host] = output;
    assert_eq!(found(&chain("output", "drop", "oifname \"gatepost0\" accept")), [wireguard]);
    for wireguards in
        ["udp sport { 53, 51820 } accept", "oifname eth0 accept", "meta skuid 0 accept"]
    {
        let rules = format!("oifname lo accept; {wireguards}");
        assert_eq!(
            found(&chain("output", "drop", &rules)),
            std::slice::from_ref(&host),
            "{wireguards}"
        );
    }
    for hook in [Hook::Prerouting, Hook::Postrouting] {
        let both = lost(hook, [Packets::WireGuard, Packets::Forwarded]);
        assert_eq!(found(&chain(&hook.to_string(), "drop", "")), both);
    }
}

/// Whether a chain of the input hook that drops by default, with these rules of `iptables-nft`, is said to
/// drop what is sent to WireGuard's port.
fn keeps_wireguard_out(rules: &[&str]) -> bool {
    let netns = Netns::new();
    netns.enter();
    let lines: String = rules.iter().map(|rule| format!("-A INPUT {rule}\n")).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n{lines}COMMIT\n");
    std::fs::write(file.path(), text).unwrap();
    netns.run(&format!("iptables-nft-restore <{}", file.path().display()));
    let found = foreign_drops(&"gatepost0".parse().unwrap(), Some(51820)).unwrap();
    found.iter().any(|it| it.packets == Packets::WireGuard)
}

#[test]
fn rule_for_other_datagrams_does_not_let_wireguards_own_through() {
    let has_input = |rules: &str| {
        let rules = format!("iifname lo accept; ct state established accept; {rules}");
        found(&chain("input", "drop", &rules)).iter().any(|it| it.packets == Packets::WireGuard)
    };
    for rules in [
        "udp sport 53 accept",
        "udp dport != 53 ip saddr 192.0.2.1 accept",
        "udp sport 67 udp dport 68 accept",
    ] {
        assert!(has_input(rules), "{rules}");
    }
    for rules in ["udp dport 51820 ip saddr 192.0.2.1 accept", "udp sport 7 udp dport 51820 accept"]
    {
        assert!(!has_input(rules), "{rules}");
    }
    for other in [
        "-p udp --sport 53 -j ACCEPT",
        "-p udp --sport 67 --dport 68 -j ACCEPT",
        "-p udp --dport 53:67 -j ACCEPT",
        "-p udp -m multiport --dports 53,67 -j ACCEPT",
    ] {
        assert!(keeps_wireguard_out(&[other]), "{other}");
    }
    for ours in [
        "-p udp --sport 7 --dport 51820 -j ACCEPT",
        "-p udp --dport 51000:52000 -j ACCEPT",
        "-p udp ! --dport 53:67 -j ACCEPT",
        "-p udp -m multiport --dports 53,51000:52000 -j ACCEPT",
    ] {
        assert!(!keeps_wireguard_out(&[ours]), "{ours}");
    }
}

#[test]
fn chain_that_two_rules_call_accepts_what_either_asks_for() {
    let called = |rules: &str| {
        format!(
            "table inet theirs {{
            chain ok {{ accept\n}}
            chain it {{ type filter hook forward priority 0; policy drop; {rules}\n}}\n}}"
        )
    };
    let both = "ct state established,related jump ok; ct state new jump ok";
    assert_eq!(found(&called(both)), []);
    let one = found(&called("ct state new jump ok; ct state related jump ok"));
    assert_eq!(one.len(), 1, "answers are not among that: {one:?}");
}

#[test]
fn foreign_chains_that_let_us_through_are_not_found() {
    for text in [
        &chain("forward", "accept", "iifname \"eth0\" drop"),
        &chain("forward", "drop", "accept"),
        &chain("forward", "drop", "iifname gatepost0 accept; oifname gatepost0 accept"),
        &chain("forward", "drop", "iifname \"gate*\" accept; oifname \"gate*\" accept"),
        &chain("forward", "drop", "ct state { established, new } accept"),
        &chain("input", "drop", "udp dport 51820 accept; iifname \"gatepost0\" accept"),
        &chain("output", "drop", "oifname gatepost0 accept; udp sport 51820 accept"),
        &chain("prerouting", "drop", "iifname gatepost0 accept; udp dport 51820 accept"),
        // One rule anywhere on the way is enough, also when a map leads there.
        "table inet theirs {
            chain ours { accept\n}
            chain zones { iifname vmap { gatepost0 : jump ours }; oifname vmap { gatepost0 : goto ours }\n}
            chain it { type filter hook forward priority 0; policy drop; jump zones\n}
        }",
        "table bridge theirs { chain it { type filter hook forward priority 0; policy drop;
}
}",
    ] {
        assert_eq!(found(text), [], "{text}");
    }
}

#[test]
fn chain_that_lets_half_of_a_connection_through_is_found() {
    for (rules, lost) in [
        ("iifname gatepost0 accept", Lost::Answers),
        ("iifname { eth0, gatepost0 } accept", Lost::Answers),
        ("iifname gatepost0 accept; iifname eth0 ct state established accept", Lost::Answers),
        ("iifname gatepost0 accept; ct state established,related accept", Lost::Some),
        ("iifname gatepost0 accept; ct state vmap { established : accept }", Lost::Some),
        ("oifname gatepost0 accept", Lost::Most),
        ("oifname gatepost0 accept; ct state established accept", Lost::Most),
        ("iifname gatepost0 tcp dport 22 accept", Lost::Most),
        ("ct state established accept; iifname gatepost0 tcp dport 22 accept", Lost::Some),
        ("ct state established accept; iifname gatepost0 ct state new accept", Lost::Some),
        ("ct state established accept", Lost::All),
        ("iifname gatepost0 drop", Lost::All),
    ] {
        let [found] = &found(&chain("forward", "drop", rules))[..] else { panic!("{rules}") };
        assert_eq!((found.packets, found.lost), (Packets::Forwarded, lost), "{rules}");
    }
    // A chain whose last rule calls one that drops has no policy that says so.
    let logged = |rules: &str| {
        format!(
            "table inet theirs {{
            chain LOGDROP {{ log prefix \"no: \"\n drop\n}}
            chain it {{ type filter hook forward priority 0; {rules}; jump LOGDROP\n}}\n}}"
        )
    };
    for rules in ["ct state established accept", "tcp dport 25 jump LOGDROP"] {
        let found = found(&logged(rules));
        assert_eq!(found.iter().map(|it| it.lost).collect::<Vec<_>>(), [Lost::All], "{rules}");
    }
}

#[test]
fn rules_that_drop_wireguards_own_packets_are_found() {
    let said = |hook: &str, rules: &str| {
        let netns = Netns::new();
        netns.enter();
        netns.load(&chain(hook, "accept", rules));
        let rules = foreign_rules(&"gatepost0".parse().unwrap(), Some(51820)).unwrap();
        rules.into_iter().flat_map(|found| found.first).collect::<Vec<_>>()
    };
    let of_wireguard = |rules: &str| {
        let mut said = said("input", rules);
        said.retain(|text| text.starts_with("to WireGuard"));
        said
    };
    let some = ["to WireGuard: iifname eth0"];
    assert_eq!(of_wireguard("iifname eth0 udp dport 51820 drop"), some);
    assert_eq!(of_wireguard("iifname eth0 udp dport { 53, 51820 } drop"), some);
    assert_eq!(of_wireguard("iifname eth0 udp dport 51000-52000 drop"), some);
    for harmless in
        ["iifname eth0 udp dport 53 drop", "ip saddr 203.0.113.7 drop", "tcp dport 25 drop"]
    {
        assert_eq!(of_wireguard(harmless), Vec::<String>::new(), "{harmless}");
    }
    for (hook, rules, wanted) in [
        ("prerouting", "iifname eth0 udp dport 51820 drop", "to WireGuard: iifname eth0"),
        ("output", "oifname eth0 udp sport 51820 drop", "by WireGuard: oifname eth0"),
        ("postrouting", "oifname eth0 udp sport 51820 drop", "by WireGuard: oifname eth0"),
    ] {
        assert!(said(hook, rules).iter().any(|said| said == wanted), "{hook} {rules}");
    }
    let all = found(&chain("input", "accept", "udp dport 51820 drop"));
    assert!(all.iter().any(|it| it.packets == Packets::WireGuard), "{all:?}");
}

#[test]
fn every_family_is_searched_and_the_manager_is_recognised() {
    let docker = "table ip filter {
        chain DOCKER-USER { }
        chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
    }";
    let docker = (docker, drop("ip", "filter", "FORWARD", FORWARDED), Manager::Docker);
    let ufw = "table ip6 filter {
        chain ufw6-before-forward { }
        chain FORWARD { type filter hook forward priority 0; policy drop; jump ufw6-before-forward; }
    }";
    let ufw = (ufw, drop("ip6", "filter", "FORWARD", FORWARDED), Manager::Ufw);
    let firewalld = "table inet firewalld { chain filter_INPUT {
        type filter hook input priority 10; ct state established accept; iifname lo accept; reject
}
}";
    let input = (Hook::Input, Packets::WireGuard);
    let firewalld =
        (firewalld, drop("inet", "firewalld", "filter_INPUT", input), Manager::Firewalld);
    for (text, expected, manager) in [docker, ufw, firewalld] {
        let mut found = found(text);
        found.retain(|found| found.packets != Packets::Host);
        assert_eq!(found, [ForeignDrop { manager: Some(manager), ..expected }]);
    }
}

/// What is said of a recorded ruleset: chains that drop by default, and the rules that drop some packets.
fn said(ruleset: &str) -> Vec<String> {
    let file = format!("{}/tests/nft/rulesets/{ruleset}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap();
    let netns = Netns::new();
    netns.enter();
    match ruleset.ends_with(".nft") {
        true => netns.load(&text),
        false => _ = netns.run(&format!("iptables-nft-restore <{file}")),
    }
    let link = "gatepost0".parse().unwrap();
    let drops = foreign_drops(&link, Some(51820)).unwrap();
    let drops =
        drops.into_iter().map(|found| format!("{found} {:?} {:?}", found.packets, found.lost));
    let rules = foreign_rules(&link, Some(51820)).unwrap();
    let rules = rules.iter().map(|found| format!("{found} {}", found.first.join("; ")));
    drops.chain(rules).collect()
}

#[test]
fn rulesets_of_other_programs_that_drop_are_never_called_fine() {
    let cases: [(&str, &[&str]); 10] = [
        (
            "docker-28.iptables",
            &[
                "chain FORWARD of table ip filter Forwarded",
                "chain FORWARD (forward) of table ip filter from peers: oifname docker0",
                "chain PREROUTING (prerouting) of table ip raw from peers: destination 172.17.0.2",
            ],
        ),
        (
            "docker-29.nft",
            &[
                "chain filter-FORWARD (forward) of table ip docker-bridges from peers: oifname docker0",
                "chain raw-PREROUTING (prerouting) of table ip docker-bridges from peers: destination 172.17.0.2",
            ],
        ),
        (
            "k3s.iptables",
            &["chain FORWARD (forward) of table ip filter from peers: destination 10.42.0.5, mark"],
        ),
        (
            "kube-proxy.iptables",
            &["chain FORWARD (forward) of table ip filter from peers: ct state, protocol tcp, \
                 destination 203.0.113.8, port 80; from peers: ct state, protocol tcp, \
                 destination 10.96.0.44, port 80"],
        ),
        (
            "calico.iptables",
            &[
                "chain FORWARD (forward) of table ip filter from peers: oifname cali*, oifname cali1a2b3c4d5e6",
            ],
        ),
        (
            "tailscale.iptables",
            &[
                "chain FORWARD (forward) of table ip filter from peers: oifname tailscale0, source 100.64.0.0",
                "chain INPUT (input) of table ip filter from peers: source 100.64.0.0",
            ],
        ),
        (
            "firewalld-port.nft",
            &[
                "chain filter_FORWARD of table inet firewalld Forwarded",
                "chain filter_INPUT of table inet firewalld Host",
            ],
        ),
        (
            "ufw.iptables",
            &["chain FORWARD of table ip filter Forwarded", "chain INPUT of table ip filter Host"],
        ),
        (
            "libvirt.iptables",
            &["chain FORWARD (forward) of table ip filter from peers: oifname virbr0"],
        ),
        (
            "mullvad.nft",
            &[
                "chain forward of table inet mullvad Forwarded",
                "chain input of table inet mullvad WireGuard",
                "chain output (output) of table inet mullvad Host",
            ],
        ),
    ];
    for (ruleset, wanted) in cases {
        let said = said(ruleset);
        for wanted in wanted {
            assert!(
                said.iter().any(|line| line.starts_with(wanted)),
                "{ruleset}: {wanted}\n{said:#?}"
            );
        }
    }
}

/// Those of ufw let in what has an address of this host, before its own rules decide.
#[test]
fn rules_for_local_addresses_are_for_what_is_sent_to_this_host() {
    let not_local = |rules: &str| {
        let netns = Netns::new();
        netns.enter();
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "*filter\n:INPUT DROP [0:0]\n:not-local - [0:0]\n-A INPUT -j not-local\n{rules}\n\
             -A not-local -m addrtype --dst-type LOCAL -j RETURN\n-A not-local -j DROP\nCOMMIT\n"
        );
        std::fs::write(file.path(), text).unwrap();
        netns.run(&format!("iptables-nft-restore <{}", file.path().display()));
        let found = foreign_drops(&"gatepost0".parse().unwrap(), Some(51820)).unwrap();
        found.into_iter().map(|found| found.packets).collect::<Vec<_>>()
    };
    assert_eq!(not_local("-A INPUT -p udp --dport 51820 -j ACCEPT"), [Packets::Host]);
    assert_eq!(not_local("-A INPUT -i gatepost0 -j ACCEPT"), [Packets::WireGuard]);
}

#[test]
fn nothing_is_said_of_rules_that_drop_no_packet_of_ours() {
    // It drops what others open to peers, and no answer.
    let both = said("firewalld-both.nft");
    let forward: Vec<_> = both.iter().filter(|line| line.contains("Forwarded")).collect();
    assert_eq!(forward, ["chain filter_FORWARD of table inet firewalld Forwarded Some"]);
    for rules in [
        "ct state invalid drop",
        "iifname \"gatepost0\" accept; ip daddr 10.0.0.1 drop; oifname \"gatepost0\" accept; drop",
        "iifname \"eth0\" oifname \"eth1\" accept",
    ] {
        let netns = Netns::new();
        netns.enter();
        netns.load(&chain("forward", "accept", rules));
        let found = foreign_rules(&"gatepost0".parse().unwrap(), Some(51820)).unwrap();
        let of_peers =
            found.iter().flat_map(|found| &found.first).filter(|it| it.starts_with("from"));
        assert_eq!(of_peers.count(), 0, "{rules}: {found:?}");
    }
}

/// Not every kernel has flowtables; that of the guest does.
#[test]
fn flowtables_that_packets_of_ours_go_by_are_found() {
    let netns = Netns::new();
    netns.enter();
    netns.run("ip link add gatepost0 type bridge; ip link add other type bridge");
    let theirs = |links: &str, rule: &str| {
        format!(
            "table inet theirs\ndelete table inet theirs\ntable inet theirs {{
               flowtable fast {{ hook ingress priority 0; devices = {{ {links} }};
               }}
               chain it {{ type filter hook forward priority 0; {rule}
               }}
             }}"
        )
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), theirs("other", "")).unwrap();
    if !netns.succeeds(&format!("nft -f {}", file.path().display())) {
        return println!("this kernel has no flowtables");
    }
    let found = |links: &str, rule: &str| {
        netns.load(&theirs(links, rule));
        let found = flowtables(&"gatepost0".parse().unwrap()).unwrap();
        let said = found.iter().map(|it| (it.to_string(), it.has_ours, it.takes_ours));
        said.collect::<Vec<_>>()
    };
    let it = |has_ours, takes_ours| vec![("inet theirs fast".to_owned(), has_ours, takes_ours)];
    assert_eq!(found("other", ""), []);
    assert_eq!(found("gatepost0, other", ""), it(true, false));
    for rule in [
        "flow add @fast",
        "ct state established flow add @fast",
        "ip protocol { tcp, udp } flow add @fast",
        "oifname gatepost0 flow add @fast",
        "iifname gatepost0 oifname gatepost0 flow add @fast",
        "iifname other accept; flow add @fast",
    ] {
        assert_eq!(found("other", rule), it(false, true), "{rule}");
        assert_eq!(found("gatepost0, other", rule), it(true, true), "{rule}");
    }
    for rule in [
        "iifname != gatepost0 oifname != gatepost0 flow add @fast",
        "iifname other oifname other2 flow add @fast",
        "iifname gatepost0 accept; oifname gatepost0 accept; flow add @fast",
    ] {
        assert_eq!(found("other", rule), [], "{rule}");
    }
}
