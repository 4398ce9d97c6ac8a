//! The fixed part of our table: what it holds whatever peers there are.
//!
//! In the words of the `nft` program (with `w` for the WireGuard interface; what depends on the
//! [`FirewallBase`] is marked):
//!
//! ```text
//! chain arrivals {                                            # one hook: each costs every packet
//!   type filter hook prerouting priority 300; policy accept;
//!   iifname w goto from_peers
//!   ip saddr POOL jump forged
//!   ip saddr @networks4 jump forged                           # sites; and IPv6
//!   ip daddr POOL fib daddr type != local meta mark set mark | B    # gate
//! }
//! chain forged {                                              # if the host routes it to the tunnel
//!   fib saddr oifname w counter drop
//!   fib saddr type anycast counter drop
//! }
//! chain from_peers {
//!   meta mark set mark | B                                    # gate
//!   ip hdrlength > 5 fib daddr type local counter drop        # source routes
//!   exthdr rt exists fib daddr type local counter drop        # routing headers of IPv6
//!   meta l4proto icmp ct state related goto errors            # and ICMPv6
//! }
//! chain errors {                                              # told by a peer about a flow
//!   icmp type redirect counter drop
//!   meta priority set none
//!   jump sites_to
//!   meta priority set ct reply ip saddr map @peer4            # and IPv6
//!   meta priority != none meta priority set none accept       # a flow toward the tunnel
//!   jump sites
//!   meta priority set ct original ip saddr map @peer4         # and IPv6
//!   meta priority none counter goto deny                      # a flow outside the tunnel
//!   meta priority set none
//!   jump sites_by
//!   meta priority set ip saddr map @peer4                     # and IPv6
//!   meta priority vmap @profile                               # as in `judge`
//!   meta priority & ffff:fc00 vmap @block
//!   counter goto deny
//! }
//! chain forward {
//!   type filter hook forward priority -400; policy accept;
//!   iifname != w oifname != w meta sdif 0 accept              # not ours
//!   meta sdif != 0 meta sdifname w counter drop               # while our link is in a VRF
//!   iifname != w oifname != w accept                          # another link in a VRF
//!   meta mark set mark & ~B                                   # gate
//!   iifname != w fib saddr type local counter drop
//!   ct state invalid,untracked counter drop
//!   tcp flags syn / syn,rst tcp option maxseg size set rt mtu
//!   iifname != w ct direction original goto inbound
//!   oifname != w ct direction reply goto inbound
//!   oifname w ct direction original jump closed
//!   goto judge
//! }
//! chain closed {                                              # to a prefix that changes hands
//!   meta priority set 8000:0
//!   jump sites_to
//!   meta priority set ct reply ip saddr map @peer4            # and IPv6
//!   meta priority none counter goto deny
//! }
//! chain opened {                                              # by the gateway
//!   meta priority set none
//!   jump sites_to
//!   meta priority set ct reply ip saddr map @peer4            # and IPv6
//!   meta priority none counter goto deny                      # it has no place
//!   meta priority set none goto passed
//! }
//! chain inbound {                                             # opened toward a peer, not by one
//!   ct state new tcp flags != syn / fin,syn,rst,ack counter goto deny    # allow_inbound, to the end
//!   meta priority set none
//!   jump sites_to
//!   meta priority set ct reply ip saddr map @peer4            # and IPv6
//!   meta priority none counter goto deny                      # it has no place
//!   meta priority set none counter goto passed
//!   counter goto deny                                         # else, instead of all these
//! }
//! chain input {
//!   type filter hook input priority -400; policy accept;
//!   iifname != w meta sdif 0 accept
//!   meta sdif != 0 meta sdifname w counter drop
//!   iifname != w accept
//!   meta mark set mark & ~B                                   # gate
//!   ct state new icmp type echo-request fib daddr . iif type local jump flow_limits    # flows_per_address
//!   icmp type echo-request fib daddr . iif type local accept  # and ICMPv6
//!   ct state invalid,untracked counter drop
//!   ct direction original goto judge
//!   ct label 30 goto opened                                        # gateway_opens
//!   goto inbound
//! }
//! chain output {
//!   type filter hook output priority filter - 10; policy accept;
//!   oifname != w accept
//!   ct label 30 goto opened                                        # gateway_opens
//!   meta l4proto icmp jump icmp_out                           # and ICMPv6
//!   ct direction reply goto judge
//!   ct state invalid,untracked counter drop
//!   fib daddr type multicast drop                             # and broadcast
//!   jump openings                                             # gateway_opens
//!   ct label 30 goto opened                                        # gateway_opens
//!   goto inbound
//! }
//! chain icmp_out {                                            # made by the kernel
//!   icmp type destination-unreachable accept                  # and the other errors
//!   icmpv6 type <= 127 accept
//!   icmp type echo-reply ct direction reply fib saddr . oif type local accept    # and ICMPv6
//! }
//! chain openings {                                            # empty: the gateway opens nothing
//!   tcp flags syn / fin,syn,rst,ack ct label set 30
//!   icmp type echo-request ct label set 30                    # and ICMPv6
//!   udp sport 123 udp dport 123 ct label set 30
//!   udp sport 32768-60999 ct label set 30                     # each range of ports
//!   meta l4proto gre ct label set 30                          # each protocol
//! }
//! chain flow_limits {                                         # empty without flows_per_address
//!   add @flows4 { ip saddr ct count over N } counter goto deny
//!   ip saddr != @flows4 counter goto deny                     # the set is full; and IPv6
//! }
//! chain judge {
//!   ct state new iifname w jump flow_limits                   # flows_per_address
//!   meta priority set none                                    # a missed look-up keeps the old value
//!   jump sites
//!   meta priority set ct original ip saddr map @peer4         # and IPv6
//!   meta priority vmap @profile                               # a profile's own chain
//!   meta priority & ffff:fc00 vmap @block                     # or that of its block
//!   counter goto deny
//! }
//! chain sites { }                                             # one look-up per prefix length in use;
//! chain sites_to { }                                          # the same of the flow's destination
//! chain sites_by { }                                          # and of the packet's source
//! chain dns {
//!   meta l4proto tcp ct original proto-dst 53 goto passed     # and UDP
//!   meta l4proto icmp ct protocol tcp ct original proto-dst 53 goto passed    # errors; UDP, ICMPv6
//! }
//! chain passed {                                              # allowed by a profile
//!   meta nfproto ipv4 @nh,8,8 & 0x18 == 0x0 accept
//!   meta nfproto ipv4 @nh,8,8 & 0x18 == 0x8 meta priority set 0:2 accept    # and 10: 6, 18: 4
//!   accept
//! }
//! chain deny {
//!   iifname w update @denied4 { ip saddr limit rate 6/minute } limit rate 20/second
//!     burst 100 packets log prefix "gatepost-deny " group 71 snaplen 80      # deny_log; and IPv6
//!   iifname != w limit rate 1/second burst 20 packets log ...              # deny_log
//!   counter
//!   ip hdrlength > 5 drop                                     # no answer along a source route
//!   exthdr rt exists drop
//!   iifname w limit rate 100/second burst 200 packets reject with icmpx admin-prohibited
//!   drop
//! }
//! chain postrouting {                                         # empty: masquerade none
//!   type nat hook postrouting priority srcnat; policy accept;
//!   iifname w oifname != w masquerade                         # all
//!   iifname w oifname != w ip daddr @internet4 masquerade     # internet; and IPv6
//! }
//! ```
//!
//! Every packet of a flow is judged, by the flow's tuple, in both directions: the original tuple's
//! source is the peer that opened it, the reply tuple's source is the real destination. So a
//! change acts on the next packet of every live flow. What the gateway itself opens toward peers has
//! no profile: it passes by its label (see `gateway`), to addresses that have a place.
//!
//! The look-ups pass a profile's number on in the packet's priority. What passes has the priority again
//! that its type of service gives it. Those that other programs set are kept in the forward hook, where
//! our chain comes first, and lost if they were set before.
//!
//! The chain that translates stays when nothing is to be masqueraded any more: without it the kernel
//! would stop translating the flows that it has begun to, and their answers would be denied.
//!
//! Interfaces are matched by name: an index (`iif`) would go stale, and fail open, when the
//! interface is created again.

use super::attr::Attr;
use super::chain::Hook;
use super::element::Element;
use super::expr::Rule;
use super::flows;
use super::gateway;
use super::name::{
    ARRIVALS, CLOSED, DENY, DNS, ERRORS, FORGED, FORWARD, FROM_PEERS, Family, ICMP_OUT, INBOUND,
    INPUT, JUDGE, LIMITS, OPENED, OPENINGS, OUTPUT, PASSED, POSTROUTING, SITES, SITES_BY, SITES_TO,
    TABLE,
};
use super::owner::Ownership;
use super::rules;
use super::sender;
use super::set::Set;
use super::sys::{table, verdict};
use crate::model::policy::internet;
use crate::model::{Address, FirewallBase, Masquerade, Ranges};

/// The priorities of hooks before and behind those of all others (`enum nf_ip_hook_priorities`).
const FIRST: i32 = -400;
const LAST: i32 = 300;

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Sets and chains that depend on the base alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

impl Fixed {
    pub fn of(base: &FirewallBase) -> Self {
        let mut sets = vec![Set::Chains, Set::Blocks];
        for family in Family::BOTH {
            sets.push(Set::Peers(family));
            if base.deny_log.is_some() {
                sets.push(Set::DenyLog(family));
            }
            if base.flows_per_address.is_some() {
                sets.push(Set::Flows(family));
            }
            if !networks(base, family).is_empty() {
                sets.push(Set::Networks(family));
            }
            if base.masquerade == Masquerade::Internet {
                sets.push(Set::Internet(family));
            }
        }
        let chains = vec![
            plain(DENY, rules::deny(base)),
            plain(PASSED, rules::passed()),
            plain(DNS, rules::dns()),
            plain(SITES, vec![]),
            plain(SITES_TO, vec![]),
            plain(SITES_BY, vec![]),
            plain(LIMITS, flows::limits(base)),
            plain(JUDGE, [flows::limited(base), rules::judge()].concat()),
            plain(INBOUND, rules::inbound(base)),
            plain(CLOSED, rules::closed()),
            plain(OPENED, gateway::opened()),
            plain(ERRORS, sender::errors()),
            plain(FROM_PEERS, sender::from_peers(base)),
            plain(FORGED, sender::forged(base)),
            hooked(ARRIVALS, "filter", 0, LAST, sender::arrivals(base)),
            hooked(FORWARD, "filter", 2, FIRST, rules::forward(base)),
            plain(ICMP_OUT, gateway::icmp_out()),
            plain(OPENINGS, gateway::openings(base)),
            hooked(INPUT, "filter", 1, FIRST, gateway::input(base)),
            hooked(OUTPUT, "filter", 3, -10, gateway::output(base)),
            hooked(POSTROUTING, "nat", 4, 100, rules::postrouting(base)),
        ];
        Self { sets, chains }
    }
}

/// What is sent to declare the table, with the comment that listings show.
pub fn table_declaration(ownership: Ownership) -> Vec<Attr> {
    const COMMENT: &str = "managed by gatepost; do not edit";
    let mut hint = vec![0, u8::try_from(COMMENT.len() + 1).unwrap_or(u8::MAX)];
    hint.extend_from_slice(COMMENT.as_bytes());
    hint.push(0);
    vec![
        Attr::text(table::NAME, TABLE),
        Attr::be32(table::FLAGS, ownership.flags()),
        Attr::bytes(table::USERDATA, hint),
    ]
}

/// The elements that the base itself puts into its sets.
pub fn fixed_elements(base: &FirewallBase, set: &Set) -> Vec<Element> {
    match set {
        Set::Internet(Family::V4) => ranges(&internet::<u32>()),
        Set::Internet(Family::V6) => ranges(&internet::<u128>()),
        Set::Networks(family) => networks(base, *family),
        _ => vec![],
    }
}

fn networks(base: &FirewallBase, family: Family) -> Vec<Element> {
    match family {
        Family::V4 => ranges(&base.networks.sites4),
        Family::V6 => ranges(&base.networks.sites6),
    }
}

fn ranges<T: Address>(ranges: &Ranges<T>) -> Vec<Element> {
    ranges.as_slice().iter().copied().flat_map(Element::range).collect()
}

fn plain(name: &'static str, rules: Vec<Rule>) -> Chain {
    Chain { name, hook: None, rules }
}

fn hooked(
    name: &'static str,
    kind: &'static str,
    number: u32,
    priority: i32,
    rules: Vec<Rule>,
) -> Chain {
    let policy = Some(verdict::ACCEPT.cast_unsigned());
    Chain { name, hook: Some(Hook { kind: kind.into(), number, priority, policy }), rules }
}
