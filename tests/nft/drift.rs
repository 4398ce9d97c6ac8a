//! Every edit of our table is noticed, foreign tables are left alone, and a refused change leaves
//! everything as it was.

use std::sync::mpsc;

use gatepost::dataplane::nft::{Nft, NftError};
use gatepost::model::{FirewallBase, FirewallChange, Masquerade, ObservedFirewall, ProfileId};

use ipnet::IpNet;

use super::fault::{Bound, Row};
use super::netns::Netns;
use super::table::{World, base, load, many, networks, observed, profile};

/// A small profile, a large one and one in a block, with peers of each.
fn world() -> World {
    let profiles = [
        (ProfileId(1), profile(&["10.0.0.0/8", "fd10::/64"], &["10.0.0.53"])),
        (ProfileId(2), many(40, 9)),
        (ProfileId(1_025), profile(&["10.0.0.0/8", "fd10::/64"], &["10.0.0.53"])),
    ];
    let assignments = [
        ("10.64.0.2/32", 1),
        ("10.64.0.3/32", 2),
        ("fd64::2/128", 1),
        ("10.9.0.0/16", 1),
        ("10.64.0.4/32", 1_025),
    ];
    let parsed = assignments.map(|(prefix, id)| (prefix.parse().unwrap(), ProfileId(id)));
    (profiles.into(), parsed.into())
}

fn full() -> FirewallBase {
    FirewallBase {
        masquerade: Masquerade::Internet,
        allow_inbound: true,
        networks: networks(&["10.9.0.0/16"]),
        ..base()
    }
}

fn loaded() -> (Netns, Nft) {
    let netns = Netns::new();
    netns.enter();
    let mut nft = Nft::open().unwrap();
    nft.apply(&load(&full(), &world()), None).unwrap();
    (netns, nft)
}

#[test]
fn every_edit_is_noticed() {
    let (netns, mut nft) = loaded();
    let table = "inet gatepost";
    let handle = |chain: &str, text: &str| {
        let listing = netns.run(&format!("nft -a list chain {table} {chain}"));
        let line = listing.lines().find(|line| line.contains(text)).unwrap();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    // An edit, and the object that we must name.
    let edits: Vec<(String, &str)> = vec![
        (format!("nft insert rule {table} forward accept"), "chain forward"),
        (format!("nft add rule {table} input counter"), "chain input"),
        (format!("nft add rule {table} output counter"), "chain output"),
        (format!("nft add rule {table} openings udp sport 7 ct label set 31"), "chain openings"),
        (format!("nft delete rule {table} deny handle {}", handle("deny", "drop")), "chain deny"),
        (
            format!(
                "nft replace rule {table} deny handle {} iifname wg0 limit rate 101/second \
                 burst 200 packets reject with icmpx admin-prohibited",
                handle("deny", "reject")
            ),
            "chain deny",
        ),
        (
            format!(
                "nft replace rule {table} deny handle {} 'update @denied4 {{ ip saddr limit rate \
                 7/minute burst 5 packets }} log prefix \"gatepost-deny \" group 71 snaplen 80'",
                handle("deny", "denied4")
            ),
            "chain deny",
        ),
        (
            format!(
                "nft replace rule {table} p_1 handle {} ct reply ip saddr 10.0.0.0/7 counter accept",
                handle("p_1", "10.0.0.0/8")
            ),
            "chain p_1",
        ),
        (format!("nft insert rule {table} p_2 accept"), "chain p_2"),
        (format!("nft add chain {table} extra"), "chain extra"),
        (
            format!("nft add chain {table} p_9 '{{ type filter hook forward priority 0; }}'"),
            "chain p_9",
        ),
        (format!("nft add chain {table} forward '{{ policy drop; }}'"), "chain forward"),
        (format!("nft add set {table} extra '{{ type ipv4_addr; }}'"), "set extra"),
        (format!("nft add set {table} p_2_7 '{{ type ipv4_addr; }}'"), "set p_2_7"),
        (format!("nft add set {table} p_1_4 '{{ type ipv4_addr; flags interval; }}'"), "chain p_1"),
        (format!("nft add counter {table} extra"), "an object"),
        (format!("nft add element {table} p_2_4 '{{ 1.2.3.4 }}'"), "1.2.3.4"),
        (format!("nft add element {table} internet4 '{{ 10.0.0.0/24 }}'"), "set internet4"),
        (format!("nft delete element {table} profile '{{ 0:1 }}'"), "map profile"),
        (format!("nft add element {table} profile '{{ 0:9 : accept }}'"), "set profile"),
        (format!("nft add element {table} profile '{{ 0:1 : jump p_2 }}'"), "refused"),
        (format!("nft insert rule {table} b_1 accept"), "chain b_1"),
        (format!("nft flush chain {table} b_1"), "chain b_1"),
        (format!("nft delete element {table} block '{{ 0:400 }}'"), "map block"),
        (format!("nft add element {table} block '{{ 0:800 : accept }}'"), "set block"),
        (format!("nft add chain {table} b_2"), "map block"),
        (format!("nft add set {table} b_2_4_8 '{{ type classid . ipv4_addr; }}'"), "set b_2_4_8"),
        (format!("nft add set {table} b_1_4_9 '{{ type ipv4_addr; }}'"), "set b_1_4_9"),
        (format!("nft delete element {table} b_1_deny '{{ 0:401 }}'"), "profile 1025"),
        (format!("nft add element {table} b_1_4_8 '{{ 0:402 . 9.0.0.0 }}'"), "profile 1026"),
        (format!("nft add element {table} site4_16 '{{ 10.1.1.5 : 0:1 }}'"), "set site4_16"),
        (format!("nft add element {table} b_1_4_8 '{{ 0:401 . 9.0.0.1 }}'"), "set b_1_4_8"),
        (format!("nft add map {table} site4_32 '{{ type ipv4_addr : classid; }}'"), "set site4_32"),
        (format!("nft flush chain {table} sites"), "chain sites"),
        (format!("nft insert rule {table} sites accept"), "chain sites"),
        (format!("nft flush chain {table} sites_by"), "chain sites_by"),
        (format!("nft add rule {table} arrivals counter"), "chain arrivals"),
        (format!("nft add table {table} '{{ flags dormant; }}'"), "flags 0x1"),
        (format!("nft flush chain {table} judge"), "chain judge"),
        (format!("nft delete chain {table} postrouting"), "chain postrouting"),
    ];
    for (edit, object) in edits {
        let done = netns.succeeds(&edit);
        assert_eq!(done, object != "refused", "{edit}");
        let read = nft.observe().unwrap().unwrap();
        if object == "refused" {
            assert_eq!(read.base(), Some(&full()), "{:?}", nft.difference());
        } else if object == "1.2.3.4" {
            // Elements are values, not structure: they show as what the profile allows.
            let address = "1.2.3.4".parse().unwrap();
            assert!(read.profiles()[&ProfileId(2)].allows(address));
        } else {
            assert_eq!(read.base(), None, "{edit}");
            let difference = nft.difference().unwrap().to_string();
            assert!(difference.contains(object), "{edit}: {difference}");
        }
        nft.apply(&load(&full(), &world()), Some(&read)).unwrap();
        let read = nft.observe().unwrap().unwrap();
        assert_eq!(nft.difference(), None, "after the repair of {edit}");
        assert_eq!(read, observed(&full(), world()), "after the repair of {edit}");
    }
}

#[test]
fn only_an_edited_table_that_still_judges_counts_as_guarding() {
    let (netns, mut nft) = loaded();
    let edits = [
        ("nft flush table inet gatepost", false),
        ("nft flush chain inet gatepost forward", false),
        ("nft flush chain inet gatepost input", false),
        ("nft flush chain inet gatepost output", false),
        ("nft flush chain inet gatepost arrivals", false),
        ("nft flush chain inet gatepost forged", false),
        ("nft insert rule inet gatepost errors accept", false),
        ("nft insert rule inet gatepost sites_by accept", false),
        ("nft flush chain inet gatepost openings", false),
        ("nft delete chain inet gatepost output", false),
        ("nft insert rule inet gatepost output accept", false),
        ("nft insert rule inet gatepost icmp_out accept", false),
        ("nft insert rule inet gatepost output ct label set 30", false),
        ("nft flush chain inet gatepost judge", false),
        ("nft flush chain inet gatepost deny", false),
        ("nft flush chain inet gatepost inbound", false),
        ("nft insert rule inet gatepost forward ip saddr 10.64.0.2 accept", false),
        ("nft insert rule inet gatepost input return", false),
        ("nft insert rule inet gatepost sites accept", false),
        ("nft add rule inet gatepost judge meta priority set 0:1", false),
        ("nft add rule inet gatepost deny accept", false),
        ("nft add table inet gatepost '{ flags dormant; }'", false),
        ("nft insert rule inet gatepost forward counter", true),
        ("nft insert rule inet gatepost input ip saddr 10.64.0.2 log", true),
        ("nft insert rule inet gatepost deny counter", true),
        ("nft add chain inet gatepost extra", true),
        ("nft flush chain inet gatepost postrouting", true),
        ("nft add element inet gatepost site4_16 '{ 10.1.1.5 : 0:1 }'", true),
    ];
    for (edit, guards) in edits {
        netns.run(edit);
        let read = nft.observe().unwrap().unwrap();
        assert_eq!((read.base(), read.guards("wg0")), (None, guards), "{edit}");
        assert!(!read.guards("wg1"), "{edit}");
        nft.apply(&load(&full(), &world()), Some(&read)).unwrap();
        assert!(nft.observe().unwrap().unwrap().guards("wg0"), "after the repair of {edit}");
    }
}

#[test]
fn a_missing_table_is_none() {
    let (netns, mut nft) = loaded();
    netns.run("nft flush ruleset");
    assert!(!nft.is_current().unwrap());
    assert_eq!(nft.observe().unwrap(), None);
    nft.apply(&load(&full(), &world()), None).unwrap();
    assert!(nft.is_current().unwrap());
    nft.remove_table().unwrap();
    nft.remove_table().unwrap();
    assert_eq!(nft.observe().unwrap(), None);
}

#[test]
fn foreign_tables_are_untouched() {
    let (netns, mut nft) = loaded();
    netns.load(
        "table inet filter {
           set s { type ipv4_addr; elements = { 1.1.1.1 }; }
           chain p_1 { counter accept; }
           chain forward { type filter hook forward priority 0; policy drop; jump p_1; }
         }
         table ip gatepost {
           chain forward { type filter hook forward priority 0; accept; }
         }",
    );
    let foreign =
        || netns.run("nft list table inet filter") + &netns.run("nft list table ip gatepost");
    let before = foreign();
    let read = nft.observe().unwrap();
    assert_eq!(read, Some(observed(&full(), world())), "{:?}", nft.difference());
    nft.apply(&load(&base(), &world()), read.as_ref()).unwrap();
    nft.remove_table().unwrap();
    assert_eq!(foreign(), before);
}

#[test]
fn a_refused_change_names_its_object_and_changes_nothing() {
    let (netns, mut nft) = loaded();
    let before = netns.run("nft list table inet gatepost");
    // We believe that the table lacks what it has.
    let nothing = observed(&full(), Default::default());
    let change = FirewallChange {
        put_profiles: [(ProfileId(7), (true, many(40, 1))), (ProfileId(1), (true, many(1, 1)))]
            .into(),
        ..FirewallChange::default()
    };
    let refused = nft.apply(&change, Some(&nothing)).unwrap_err();
    assert!(matches!(refused, NftError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("chain p_1"), "{refused}");
    assert_eq!(netns.run("nft list table inet gatepost"), before);

    let change = FirewallChange {
        put_profiles: [(ProfileId(3), (false, many(1, 1)))].into(),
        ..FirewallChange::default()
    };
    let refused = nft.apply(&change, Some(&nothing)).unwrap_err();
    assert!(matches!(refused, NftError::UnknownProfile(ProfileId(3))), "{refused}");

    let read = nft.observe().unwrap().unwrap();
    netns.run("nft delete chain inet gatepost postrouting");
    netns.run("nft delete element inet gatepost peer4 '{ 10.64.0.2 }'");
    let change = FirewallChange {
        unassign: vec!["10.64.0.2/32".parse().unwrap(), "10.64.0.3/32".parse().unwrap()],
        ..FirewallChange::default()
    };
    let refused = nft.apply(&change, Some(&read)).unwrap_err();
    assert!(refused.to_string().contains("elements of set peer4"), "{refused}");
    assert!(netns.run("nft list map inet gatepost peer4").contains("10.64.0.3"));
    assert!(!nft.is_current().unwrap(), "another program changed the table meanwhile");
}

#[test]
fn a_foreign_change_elsewhere_does_not_hinder_ours() {
    let (netns, mut nft) = loaded();
    let read = nft.observe().unwrap();
    netns.run("nft add table ip other");
    let change = FirewallChange {
        unassign: vec!["10.64.0.2/32".parse().unwrap()],
        ..FirewallChange::default()
    };
    nft.apply(&change, read.as_ref()).unwrap();
    assert!(nft.is_current().unwrap(), "the change elsewhere was heard of");
    let read = nft.observe().unwrap().unwrap();
    assert!(!read.assignments().contains_key(&"10.64.0.2/32".parse().unwrap()));

    netns.run(
        "nft add table ip another && nft add element inet gatepost peer4 '{ 10.64.0.9 : 0:1 }'",
    );
    netns.run("nft delete table ip another");
    let change = FirewallChange {
        unassign: vec!["10.64.0.3/32".parse().unwrap()],
        ..FirewallChange::default()
    };
    nft.apply(&change, Some(&read)).unwrap();
    assert!(!nft.is_current().unwrap(), "a change that we did not read is owned up to");
    let read = nft.observe().unwrap().unwrap();
    assert!(read.assignments().contains_key(&"10.64.0.9/32".parse().unwrap()));
    assert!(nft.is_current().unwrap());
}

#[test]
fn an_unchanged_table_is_not_read_again() {
    let (netns, mut nft) = loaded();
    let first = nft.observe().unwrap().unwrap();
    let again = nft.observe().unwrap().unwrap();
    let same = |one: &ObservedFirewall, other: &ObservedFirewall| {
        std::ptr::eq(one.assignments(), other.assignments())
    };
    assert!(same(&first, &again), "the same reading");

    // Nor when other programs change their own tables, however often.
    for _ in 0..3 {
        netns.run("nft add table inet elsewhere");
        netns.run("nft flush table inet elsewhere && nft delete table inet elsewhere");
        assert!(nft.is_current().unwrap());
        assert!(same(&first, &nft.observe().unwrap().unwrap()));
    }

    // After any change of ours it is read again, and read as it is.
    netns.run("nft add element inet gatepost peer4 '{ 10.64.0.77 : 0:1 }'");
    netns.run("nft delete element inet gatepost peer4 '{ 10.64.0.77 }'");
    let anew = nft.observe().unwrap().unwrap();
    assert!(!same(&first, &anew) && first == anew);
    let gone = "10.64.0.2/32".parse().unwrap();
    let change = FirewallChange { unassign: vec![gone], ..FirewallChange::default() };
    nft.apply(&change, Some(&anew)).unwrap();
    let changed = nft.observe().unwrap().unwrap();
    assert!(anew.assignments().contains_key(&gone) && !changed.assignments().contains_key(&gone));
    netns.run("nft delete table inet gatepost");
    assert_eq!(nft.observe().unwrap(), None);
}

/// The kernel flags a dump that another program's change fell into, or ends it early. Each change here takes the first
/// place or the last and gives the other, so a part of a reading may have both or neither. It begins a little later
/// in each round, so that some fall into the dump itself.
#[test]
fn a_reading_that_a_change_interrupts_is_of_one_moment() {
    const PLACES: usize = 5_000;
    const ROUNDS: usize = 60;
    const LATER: usize = 20;
    let (netns, mut nft) = loaded();
    let place = |net: usize, n: usize| -> IpNet {
        format!("10.{net}.{}.{}/32", n / 250, n % 250).parse().unwrap()
    };
    let ends = [place(70, 0), place(90, 0)];
    let given = |places: &[IpNet]| places.iter().map(|it| (*it, ProfileId(1))).collect();
    let change_to = |number: usize| FirewallChange {
        unassign: vec![ends[1 - number]],
        assign: given(&ends[number..=number]),
        ..FirewallChange::default()
    };
    let mut first: Vec<_> = (0..PLACES).map(|n| place(80, n)).collect();
    first.push(ends[0]);
    nft.apply(&FirewallChange { assign: given(&first), ..FirewallChange::default() }, None)
        .unwrap();
    let ((begin, begun), (end, ended)) = (mpsc::channel(), mpsc::channel());
    let mut interrupted = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let end = end;
            netns.enter();
            let mut other = Nft::open().unwrap();
            for round in begun {
                let table = other.observe().unwrap();
                end.send(()).unwrap();
                for _ in 0..LATER * round {
                    other.generation().unwrap();
                }
                other.apply(&change_to((round + 1) % 2), table.as_ref()).unwrap();
                end.send(()).unwrap();
            }
        });
        for round in 0..ROUNDS {
            // One that has read nothing yet, and so must read all.
            let mut reader = Nft::open().unwrap();
            begin.send(round).unwrap();
            ended.recv().unwrap();
            let before = reader.generation().unwrap();
            let read = reader.observe().unwrap().unwrap();
            interrupted += usize::from(reader.generation().unwrap() != before);
            ended.recv().unwrap();
            let held = ends.map(|place| read.assignments().contains_key(&place));
            assert!(held[0] != held[1], "a part was read: {held:?}");
        }
        drop(begin);
    });
    assert!(interrupted > ROUNDS / 4, "only {interrupted} changes fell into a reading");
    println!("{interrupted} of {ROUNDS} changes fell into a reading");
    let fault = "a reading of the firewall interrupted by another program's change";
    let expected = "thrown away and repeated; a part is never taken for all";
    let (bound, lost, converged_in) = (Bound::NotMeasured, None, None);
    Row { fault, expected, bound, lost, converged_in, tier: "nftables" }.print();
}
