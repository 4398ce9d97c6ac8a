//! Findings about the firewalls of other programs.

use gatepost::dataplane::NetlinkError;
use gatepost::dataplane::nft::{ForeignDrop, Hook, Lost, Manager, NftError, Packets};

use super::*;

#[test]
fn firewall_that_could_not_be_read_is_not_called_fine() {
    let refused = || NftError::Open(NetlinkError::Unsuited("no privilege"));
    let unread: [fn(&mut Facts, NftError); 3] = [
        |facts, error| facts.foreign_drops = Err(error),
        |facts, error| facts.foreign_rules = Err(error),
        |facts, error| facts.flowtables = Err(error),
    ];
    for change in unread {
        let (texts, exit) = found(|_, facts| change(facts, refused()));
        assert_eq!((texts.len(), exit), (1, Exit::Success), "{texts:?}");
        assert!(texts[0].starts_with("firewall: cannot read the "), "{texts:?}");
    }
    let all = found(|_, facts| unread.iter().for_each(|change| change(facts, refused())));
    assert_eq!(all.0.len(), 1, "one failure is told once: {all:?}");
}

#[test]
fn chain_that_accepts_half_is_a_warning_unless_it_accepts_answers() {
    let said = |lost| {
        let (texts, exit) = found(|_, facts| {
            let (table, chain) = ("filter".into(), "FORWARD".into());
            let found = ForeignDrop {
                family: "ip",
                table,
                chain,
                hook: Hook::Forward,
                packets: Packets::Forwarded,
                lost,
                manager: None,
            };
            facts.foreign_drops = Ok(vec![found]);
        });
        (texts.concat(), exit)
    };
    let (text, exit) = said(Lost::Answers);
    assert!(text.contains("drops every answer to peers") && exit == Exit::Failure, "{text}");
    let (text, exit) = said(Lost::Most);
    assert!(text.contains("but for what single rules accept") && exit == Exit::Failure, "{text}");
    let (text, exit) = said(Lost::Some);
    assert!(text.contains("-> if packets are lost") && exit == Exit::Success, "{text}");
}

#[test]
fn dropping_chain_of_another_program_has_its_remedy() {
    let drop = |hook, packets, manager| ForeignDrop {
        family: "ip",
        table: "filter".into(),
        chain: "FORWARD".into(),
        hook,
        packets,
        lost: Lost::All,
        manager,
    };
    let forward = |manager| drop(Hook::Forward, Packets::Forwarded, manager);
    let input = |manager| drop(Hook::Input, Packets::WireGuard, manager);
    let cases = [
        (forward(Some(Manager::Docker)), "iptables -I DOCKER-USER -i gatepost0 -j"),
        (forward(None), "nft insert rule ip filter FORWARD iifname gatepost0 accept"),
        (input(Some(Manager::Ufw)), "ufw allow 51820/udp"),
        (input(None), "nft insert rule ip filter FORWARD udp dport 51820 accept"),
        (drop(Hook::Output, Packets::WireGuard, None), "FORWARD udp sport 51820 accept"),
        (drop(Hook::Prerouting, Packets::Forwarded, None), "FORWARD iifname gatepost0 accept; add"),
    ];
    for (drop, remedy) in cases {
        let (texts, exit) = found(|_, facts| facts.foreign_drops = Ok(vec![drop]));
        assert_eq!((texts.len(), exit), (1, Exit::Failure));
        assert!(texts[0].starts_with("firewall: chain FORWARD "), "{texts:?}");
        assert!(texts[0].contains("of table ip filter drops "), "{texts:?}");
        assert!(texts[0].contains(remedy), "{texts:?}");
    }
}
