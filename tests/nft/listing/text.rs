//! What the table of a base is in the language of the `nft` program.

use std::num::NonZeroU32;

use gatepost::model::{FirewallBase, MarkBit, Masquerade, Networks, NflogGroup, Openings};

fn internet(base: &FirewallBase, family: char) -> String {
    let ranges = match family {
        '4' => gatepost::model::policy::internet::<u32>().to_string(),
        _ => gatepost::model::policy::internet::<u128>().to_string(),
    };
    match base.masquerade {
        Masquerade::Internet => {
            format!(
                "set internet{family} {{ type ipv{family}_addr; flags interval; \
                 elements = {{ {ranges} }}; }}\n"
            )
        }
        _ => String::new(),
    }
}

/// The sets of site prefixes, and the rules about forged sources.
fn networks(base: &FirewallBase) -> (String, String) {
    let Networks { pool, sites4, sites6, .. } = &base.networks;
    let ip = |is4| if is4 { "ip" } else { "ip6" };
    let mut rules = format!("{} saddr {pool} jump forged\n", ip(pool.addr().is_ipv4()));
    let mut sets = String::new();
    for (family, ranges) in [('4', sites4.to_string()), ('6', sites6.to_string())] {
        if ranges != "none" {
            sets += &format!(
                "set networks{family} {{ type ipv{family}_addr; flags interval; \
                 elements = {{ {ranges} }}; }}\n"
            );
            rules += &format!("{} saddr @networks{family} jump forged\n", ip(family == '4'));
        }
    }
    if let Some(mark) = base.gate {
        for network in base.networks.gated() {
            let daddr = format!("{} daddr {network}", ip(network.addr().is_ipv4()));
            rules += &format!("{daddr} fib daddr type != local {}\n", marked(mark));
        }
    }
    (sets, rules)
}

fn marked(mark: MarkBit) -> String {
    format!("meta mark set meta mark | {:#x}", mark.bits())
}

/// The sets of open flows, the rules that limit them, and those that lead there.
fn flows(most: NonZeroU32) -> (String, String, [&'static str; 2]) {
    let set = |family| {
        format!("set flows{family} {{ type ipv{family}_addr; size 1048576; flags dynamic; }}\n")
    };
    let rule = |family, ip| {
        format!(
            "add @flows{family} {{ {ip} saddr ct count over {most} }} counter goto deny
             {ip} saddr != @flows{family} counter goto deny\n"
        )
    };
    let jumps = [
        "ct state new iifname wg0 jump flow_limits",
        "ct state new icmp type echo-request fib daddr . iif type local jump flow_limits
         ct state new icmpv6 type echo-request fib daddr . iif type local jump flow_limits",
    ];
    (set(4) + &set(6), rule(4, "ip") + &rule(6, "ip6"), jumps)
}

fn openings(opens: &Openings) -> String {
    let range = |(first, last): &(u16, u16)| match first == last {
        true => format!("udp sport {first} ct label set 30\n"),
        false => format!("udp sport {first}-{last} ct label set 30\n"),
    };
    let protocol = |protocol: &u8| format!("meta l4proto {protocol} ct label set 30\n");
    let always = "tcp flags & (fin | syn | rst | ack) == syn ct label set 30
        icmp type echo-request ct label set 30
        icmpv6 type echo-request ct label set 30
        udp sport 123 udp dport 123 ct label set 30\n";
    let ranges = opens.udp_ports.as_slice().iter().map(range);
    [always.to_owned()]
        .into_iter()
        .chain(ranges)
        .chain(opens.protocols.iter().map(protocol))
        .collect()
}

/// The sets and the rules that log denied packets.
fn deny_log(NflogGroup(group): NflogGroup) -> (&'static str, String) {
    let log = format!(r#"log prefix "gatepost-deny " group {group} snaplen 80"#);
    let of_peer = |set: &str, source: &str| {
        format!(
            "iifname wg0 update @{set} {{ {source} limit rate 6/minute burst 5 packets }} limit rate \
             20/second burst 100 packets {log}\n"
        )
    };
    let outside = format!("iifname != wg0 limit rate 1/second burst 20 packets {log}");
    (
        "set denied4 { type ipv4_addr; size 65536; flags dynamic,timeout; timeout 1m; }
         set denied6 { type ipv6_addr; size 65536; flags dynamic,timeout; timeout 1m; }",
        of_peer("denied4", "ip saddr") + &of_peer("denied6", "ip6 saddr") + &outside,
    )
}

/// The fixed part in nft's language, with `more` sets, maps and chains and these `sites`.
pub fn text(base: &FirewallBase, peers: &str, sites: &str, more: &str) -> String {
    let (log_sets, log_rules) = base.deny_log.map(deny_log).unwrap_or_default();
    let (flow_sets, flows, [limited, limited_pings]) =
        base.flows_per_address.map(flows).unwrap_or_default();
    let inbound = match base.allow_inbound {
        true => {
            "ct state new tcp flags & (fin | syn | rst | ack) != syn counter goto deny
             meta priority set none
             jump sites_to
             meta priority set ct reply ip saddr map @peer4
             meta priority set ct reply ip6 saddr map @peer6
             meta priority none counter goto deny
             meta priority set none counter goto passed"
        }
        false => "counter goto deny",
    };
    let (sites_to, sites_by) =
        (sites.replace("ct original", "ct reply"), sites.replace("ct original ", ""));
    let (network_sets, forged) = networks(base);
    let mark = base.gate.map(marked).unwrap_or_default();
    let unmark = base.gate.map(|mark| format!("meta mark set meta mark & {:#x}", !mark.bits()));
    let unmark = unmark.unwrap_or_default();
    let openings = base.gateway_opens.as_ref().map(openings).unwrap_or_default();
    let (jump, opened_here) = match base.gateway_opens {
        Some(_) => ("jump openings", "ct label 30 goto opened"),
        None => ("", ""),
    };
    let nat = match base.masquerade {
        Masquerade::All => "iifname \"wg0\" oifname != \"wg0\" masquerade",
        Masquerade::Internet => {
            "iifname \"wg0\" oifname != \"wg0\" ip daddr @internet4 masquerade
             iifname \"wg0\" oifname != \"wg0\" ip6 daddr @internet6 masquerade"
        }
        Masquerade::None => "",
    };
    let (internet4, internet6) = (internet(base, '4'), internet(base, '6'));
    format!(
        r#"table inet gatepost {{
        comment "managed by gatepost; do not edit"
        {log_sets}
        {internet4}
        {internet6}
        chain deny {{
            {log_rules}
            counter
            ip hdrlength > 5 drop
            exthdr rt exists drop
            iifname "wg0" limit rate 100/second burst 200 packets reject with icmpx admin-prohibited
            drop
        }}
        chain dns {{
            meta l4proto tcp ct original proto-dst 53 goto passed
            meta l4proto udp ct original proto-dst 53 goto passed
            meta l4proto icmp ct protocol tcp ct original proto-dst 53 goto passed
            meta l4proto icmp ct protocol udp ct original proto-dst 53 goto passed
            meta l4proto ipv6-icmp ct protocol tcp ct original proto-dst 53 goto passed
            meta l4proto ipv6-icmp ct protocol udp ct original proto-dst 53 goto passed
        }}
        chain passed {{
            meta nfproto ipv4 @nh,8,8 & 0x18 == 0x0 accept
            meta nfproto ipv4 @nh,8,8 & 0x18 == 0x8 meta priority set 0:2 accept
            meta nfproto ipv4 @nh,8,8 & 0x18 == 0x10 meta priority set 0:6 accept
            meta nfproto ipv4 @nh,8,8 & 0x18 == 0x18 meta priority set 0:4 accept
            accept
        }}
        {more}
        {peers}
        chain sites {{
            {sites}
        }}
        chain sites_to {{
            {sites_to}
        }}
        chain sites_by {{
            {sites_by}
        }}
        {network_sets}
        chain forged {{
            fib saddr oifname "wg0" counter drop
            fib saddr type anycast counter drop
        }}
        chain arrivals {{
            type filter hook prerouting priority 300; policy accept;
            iifname "wg0" goto from_peers
            {forged}
        }}
        chain from_peers {{
            {mark}
            ip hdrlength > 5 fib daddr type local counter drop
            exthdr rt exists fib daddr type local counter drop
            meta l4proto icmp ct state related goto errors
            meta l4proto ipv6-icmp ct state related goto errors
        }}
        chain errors {{
            icmp type redirect counter drop
            meta priority set none
            jump sites_to
            meta priority set ct reply ip saddr map @peer4
            meta priority set ct reply ip6 saddr map @peer6
            meta priority != none meta priority set none accept
            jump sites
            meta priority set ct original ip saddr map @peer4
            meta priority set ct original ip6 saddr map @peer6
            meta priority none counter goto deny
            meta priority set none
            jump sites_by
            meta priority set ip saddr map @peer4
            meta priority set ip6 saddr map @peer6
            meta priority vmap @profile
            meta priority & ffff:fc00 vmap @block
            counter goto deny
        }}
        {flow_sets}
        chain flow_limits {{
            {flows}
        }}
        chain judge {{
            {limited}
            meta priority set none
            jump sites
            meta priority set ct original ip saddr map @peer4
            meta priority set ct original ip6 saddr map @peer6
            meta priority vmap @profile
            meta priority & ffff:fc00 vmap @block
            counter goto deny
        }}
        chain closed {{
            meta priority set 8000:0
            jump sites_to
            meta priority set ct reply ip saddr map @peer4
            meta priority set ct reply ip6 saddr map @peer6
            meta priority none counter goto deny
        }}
        chain opened {{
            meta priority set none
            jump sites_to
            meta priority set ct reply ip saddr map @peer4
            meta priority set ct reply ip6 saddr map @peer6
            meta priority none counter goto deny
            meta priority set none goto passed
        }}
        chain inbound {{
            {inbound}
        }}
        chain forward {{
            type filter hook forward priority -400; policy accept;
            iifname != "wg0" oifname != "wg0" meta sdif 0 accept
            meta sdif != 0 meta sdifname "wg0" counter drop
            iifname != "wg0" oifname != "wg0" accept
            {unmark}
            iifname != "wg0" fib saddr type local counter drop
            ct state invalid,untracked counter drop
            tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
            iifname != "wg0" ct direction original goto inbound
            oifname != "wg0" ct direction reply goto inbound
            oifname "wg0" ct direction original jump closed
            goto judge
        }}
        chain input {{
            type filter hook input priority -400; policy accept;
            iifname != "wg0" meta sdif 0 accept
            meta sdif != 0 meta sdifname "wg0" counter drop
            iifname != "wg0" accept
            {unmark}
            {limited_pings}
            icmp type echo-request fib daddr . iif type local accept
            icmpv6 type echo-request fib daddr . iif type local accept
            ct state invalid,untracked counter drop
            ct direction original goto judge
            {opened_here}
            goto inbound
        }}
        chain icmp_out {{
            icmp type destination-unreachable accept
            icmp type redirect accept
            icmp type time-exceeded accept
            icmp type parameter-problem accept
            icmpv6 type <= 127 accept
            icmp type echo-reply ct direction reply fib saddr . oif type local accept
            icmpv6 type echo-reply ct direction reply fib saddr . oif type local accept
        }}
        chain openings {{
            {openings}
        }}
        chain output {{
            type filter hook output priority filter - 10; policy accept;
            oifname != "wg0" accept
            {opened_here}
            meta l4proto icmp jump icmp_out
            meta l4proto ipv6-icmp jump icmp_out
            ct direction reply goto judge
            ct state invalid,untracked counter drop
            fib daddr type multicast drop
            fib daddr type broadcast drop
            {jump}
            {opened_here}
            goto inbound
        }}
        chain postrouting {{ type nat hook postrouting priority srcnat; policy accept;
            {nat}
        }}
        }}"#
    )
}
