//! The `nft` program lists what we load as its own language says it, and can load the listing again.

mod text;

use gatepost::dataplane::nft::Nft;
use gatepost::model::ProfileId;
use proptest::prelude::*;

use super::netns::Netns;
use super::table::{base, bases, change, load, many, observed, profile, world};
use text::text;

const LIST: &str = "nft -s list table inet gatepost";

const NO_PEERS: &str = "map peer4 { type ipv4_addr : classid; }
    map peer6 { type ipv6_addr : classid; }
    map profile { type classid : verdict; }
    map block { type classid : verdict; }";

/// The blocks of a listing, sorted, because it lists them in the order of their creation.
fn blocks(listing: &str) -> Vec<String> {
    let mut blocks: Vec<String> =
        listing.split("\n\n").map(|block| block.replace("\n}\n", "\n").trim().to_owned()).collect();
    for block in &mut blocks {
        *block = block
            .lines()
            .filter(|line| !line.starts_with("table ") && !line.contains("comment") && *line != "}")
            .map(str::trim)
            .collect::<Vec<_>>()
            .join("\n");
    }
    blocks.sort_unstable();
    blocks
}

#[test]
fn every_base_equals_what_nft_loads_from_text() {
    let (ours, theirs) = (Netns::new(), Netns::new());
    ours.enter();
    let mut nft = Nft::open().unwrap();
    for base in bases() {
        nft.apply(&load(&base, &Default::default()), None).unwrap();
        theirs.load(&format!("flush ruleset\n{}", text(&base, NO_PEERS, "", "")));
        let listing = ours.run(LIST);
        assert!(listing.contains("comment \"managed by gatepost; do not edit\""));
        assert_eq!(blocks(&listing), blocks(&theirs.run(LIST)), "{base:?}");
        let read = nft.observe().unwrap().unwrap();
        assert_eq!(read.base(), Some(&base), "{:?}", nft.difference());
        // A table that nft restored from a listing is recognised, too.
        theirs.enter();
        let mut nft = Nft::open().unwrap();
        let read = nft.observe().unwrap().unwrap();
        assert_eq!(read.base(), Some(&base), "{:?}", nft.difference());
        ours.enter();
    }
}

#[test]
fn peers_and_profiles_equal_what_nft_loads_from_text() {
    let (ours, theirs) = (Netns::new(), Netns::new());
    let addresses = |step: u32| (0..40).map(move |index| format!("0.0.0.{}", 9 + index * step));
    let base = base();
    let world = (
        [
            (
                ProfileId(1),
                profile(
                    &[
                        "10.0.0.0/8",
                        "172.16.0.0/13",
                        "192.0.2.1",
                        "192.0.2.8-192.0.2.10",
                        "fd10::/64",
                    ],
                    &["10.0.0.53", "fd10::53"],
                ),
            ),
            (ProfileId(0x2_0003), many(40, 9)),
            (
                ProfileId(0x402),
                profile(&["10.0.0.0/8", "192.0.2.8-192.0.2.10", "fd10::/64"], &["10.0.0.53"]),
            ),
            (ProfileId(0x403), profile(&["0.0.0.0/0", "fd10::7"], &["fd10::53"])),
        ]
        .into(),
        [
            ("10.64.0.2/32", 1),
            ("10.64.0.3/32", 0x2_0003),
            ("fd64::2/128", 1),
            ("10.9.0.0/16", 1),
            ("10.9.8.0/21", 0x2_0003),
            ("fd65::/48", 1),
            ("10.64.0.4/32", 0x402),
            ("fd64::4/128", 0x403),
        ]
        .map(|(prefix, id)| (prefix.parse().unwrap(), ProfileId(id)))
        .into(),
    );
    let peers = "map peer4 { type ipv4_addr : classid; elements = { 10.64.0.2 : 0:1, 10.64.0.3 : 2:3, 10.64.0.4 : 0:402 }; }
        map peer6 { type ipv6_addr : classid; elements = { fd64::2 : 0:1, fd64::4 : 0:403 }; }
        map site4_16 { type ipv4_addr : classid; elements = { 10.9.0.0 : 0:1 }; }
        map site4_21 { type ipv4_addr : classid; elements = { 10.9.8.0 : 2:3 }; }
        map site6_48 { type ipv6_addr : classid; elements = { fd65:: : 0:1 }; }
        map profile { type classid : verdict; elements = { 0:1 : jump p_1, 2:3 : jump p_131075 }; }
        map block { type classid : verdict; elements = { 0:400 : jump b_1 }; }";
    let sites = "meta priority set ct original ip saddr & 255.255.0.0 map @site4_16
        meta priority set ct original ip saddr & 255.255.248.0 map @site4_21
        meta priority set ct original ip6 saddr & ffff:ffff:ffff:: map @site6_48";
    let six = (0..40).map(|index| format!("::{:x}-::{:x}", 9 + index * 3, 10 + index * 3));
    let more = format!(
        "set p_131075_4 {{ type ipv4_addr; flags interval; elements = {{ {} }}; }}
         set p_131075_6 {{ type ipv6_addr; flags interval; elements = {{ {} }}; }}
         chain p_131075 {{
            meta priority set none counter
            ct reply ip saddr @p_131075_4 goto passed
            ct reply ip6 saddr @p_131075_6 goto passed
            counter goto deny
         }}
         chain p_1 {{
            meta priority set none counter
            ct reply ip saddr 10.0.0.0/8 goto passed
            ct reply ip saddr 172.16.0.0/13 goto passed
            ct reply ip saddr 192.0.2.1 goto passed
            ct reply ip saddr 192.0.2.8-192.0.2.10 goto passed
            ct reply ip6 saddr fd10::/64 goto passed
            ct reply ip saddr 10.0.0.53 jump dns
            ct reply ip6 saddr fd10::53 jump dns
            counter goto deny
         }}
         set b_1_all {{ type classid; counter; elements = {{ 0:402, 0:403 }}; }}
         set b_1_4_0 {{ type classid . ipv4_addr; elements = {{ 0:403 . 0.0.0.0 }}; }}
         set b_1_4_8 {{ type classid . ipv4_addr; elements = {{ 0:402 . 10.0.0.0 }}; }}
         set b_1_4_31 {{ type classid . ipv4_addr; elements = {{ 0:402 . 192.0.2.8 }}; }}
         set b_1_4_32 {{ type classid . ipv4_addr; elements = {{ 0:402 . 192.0.2.10 }}; }}
         set b_1_6_64 {{ type classid . ipv6_addr; elements = {{ 0:402 . fd10:: }}; }}
         set b_1_6_128 {{ type classid . ipv6_addr; elements = {{ 0:403 . fd10::7 }}; }}
         set b_1_dns4 {{ type classid . ipv4_addr; elements = {{ 0:402 . 10.0.0.53 }}; }}
         set b_1_dns6 {{ type classid . ipv6_addr; elements = {{ 0:403 . fd10::53 }}; }}
         set b_1_deny {{ type classid; counter; elements = {{ 0:402, 0:403 }}; }}
         chain b_1 {{
            meta priority @b_1_all
            meta priority . ct reply ip saddr & 0.0.0.0 @b_1_4_0 meta priority set none goto passed
            meta priority . ct reply ip saddr & 255.0.0.0 @b_1_4_8 meta priority set none goto passed
            meta priority . ct reply ip saddr & 255.255.255.254 @b_1_4_31 meta priority set none goto passed
            meta priority . ct reply ip saddr @b_1_4_32 meta priority set none goto passed
            meta priority . ct reply ip6 saddr & ffff:ffff:ffff:ffff:: @b_1_6_64 meta priority set none goto passed
            meta priority . ct reply ip6 saddr @b_1_6_128 meta priority set none goto passed
            meta l4proto tcp ct original proto-dst 53 meta priority . ct reply ip saddr @b_1_dns4 meta priority set none goto passed
            meta l4proto udp ct original proto-dst 53 meta priority . ct reply ip saddr @b_1_dns4 meta priority set none goto passed
            meta l4proto icmp ct protocol tcp ct original proto-dst 53 meta priority . ct reply ip saddr @b_1_dns4 meta priority set none goto passed
            meta l4proto icmp ct protocol udp ct original proto-dst 53 meta priority . ct reply ip saddr @b_1_dns4 meta priority set none goto passed
            meta l4proto tcp ct original proto-dst 53 meta priority . ct reply ip6 saddr @b_1_dns6 meta priority set none goto passed
            meta l4proto udp ct original proto-dst 53 meta priority . ct reply ip6 saddr @b_1_dns6 meta priority set none goto passed
            meta l4proto ipv6-icmp ct protocol tcp ct original proto-dst 53 meta priority . ct reply ip6 saddr @b_1_dns6 meta priority set none goto passed
            meta l4proto ipv6-icmp ct protocol udp ct original proto-dst 53 meta priority . ct reply ip6 saddr @b_1_dns6 meta priority set none goto passed
            meta priority @b_1_deny
            goto deny
         }}",
        addresses(2).collect::<Vec<_>>().join(", "),
        six.collect::<Vec<_>>().join(", "),
    );
    theirs.load(&text(&base, peers, sites, &more));
    ours.enter();
    let mut nft = Nft::open().unwrap();
    nft.apply(&load(&base, &world), None).unwrap();
    assert_eq!(blocks(&ours.run(LIST)), blocks(&theirs.run(LIST)));
    theirs.enter();
    let mut nft = Nft::open().unwrap();
    let read = nft.observe().unwrap().unwrap();
    assert_eq!(nft.difference(), None);
    assert_eq!(read, observed(&base, world));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any table that is loaded and changed is read back as intended, lists, loads again from its own
    /// listing, and is then still recognised.
    #[test]
    fn an_applied_change_is_observed_and_reloads(first in world(), second in world()) {
        let netns = Netns::new();
        netns.enter();
        let base = base();
        let mut nft = Nft::open().unwrap();
        nft.apply(&load(&base, &first), None).unwrap();
        let read = nft.observe().unwrap().unwrap();
        prop_assert_eq!(nft.difference(), None);
        prop_assert_eq!(&read, &observed(&base, first.clone()));
        prop_assert!(nft.is_current().unwrap());

        let wanted = observed(&base, second.clone());
        nft.apply(&change(&first, &second), Some(&read)).unwrap();
        prop_assert!(nft.is_current().unwrap(), "our own change leaves the table known");
        let read = nft.observe().unwrap().unwrap();
        prop_assert_eq!(nft.difference(), None);
        prop_assert_eq!(&read, &wanted);

        let listing = netns.run(LIST);
        netns.load(&format!("flush ruleset\n{listing}"));
        prop_assert!(!nft.is_current().unwrap());
        let read = nft.observe().unwrap().unwrap();
        prop_assert_eq!(nft.difference(), None);
        prop_assert_eq!(&read, &wanted);
    }
}
