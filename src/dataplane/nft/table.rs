//! The fixed part of our table: what stands in it whoever the peers are.
//!
//! In the words of the `nft` program (with `w` for the WireGuard interface; what depends on the
//! [`FirewallBase`] is marked):
//!
//! ```text
//! chain forward {
//!   type filter hook forward priority filter - 10; policy accept;
//!   iifname != w oifname != w accept                          # not ours
//!   ct state invalid,untracked counter drop
//!   tcp flags syn / syn,rst tcp option maxseg size set rt mtu
//!   iifname != w goto inbound
//!   oifname != w ct direction reply accept                    # allow_inbound
//!   goto judge
//! }
//! chain inbound {                                             # toward a peer, not from one
//!   ct direction reply goto judge
//!   ct state new tcp flags != syn / fin,syn,rst,ack counter goto deny    # allow_inbound
//!   counter accept                                            # allow_inbound
//!   counter goto deny                                         # else
//! }
//! chain input {
//!   type filter hook input priority filter - 10; policy accept;
//!   iifname != w accept
//!   fib daddr . iif type local icmp type echo-request accept  # and ICMPv6
//!   ct state invalid,untracked counter drop
//!   ct direction reply accept                                 # flows that the gateway opened
//!   goto judge
//! }
//! chain judge {
//!   meta priority set none                                    # a missed look-up keeps the old value
//!   jump sites
//!   meta priority set ct original ip saddr map @peer4         # and IPv6
//!   meta priority vmap @profile
//!   counter goto deny
//! }
//! chain sites { }                                             # one look-up per prefix length in use
//! chain dns {
//!   meta l4proto tcp ct original proto-dst 53 accept          # and UDP
//! }
//! chain deny {
//!   update @denied4 { ip saddr limit rate 6/minute } log prefix "gatepost-deny " group 5 snaplen 80
//!                                                             # deny_log; and IPv6
//!   counter
//!   iifname w limit rate 100/second burst 200 packets reject with icmpx admin-prohibited
//!   drop
//! }
//! chain postrouting {                                         # unless masquerade is none
//!   type nat hook postrouting priority srcnat; policy accept;
//!   iifname w oifname != w masquerade                         # all
//!   iifname w oifname != w ip daddr @internet4 masquerade     # internet; and IPv6
//! }
//! ```
//!
//! Every packet of a flow is judged, by the flow's tuple, in both directions: the original tuple's
//! source is the peer that opened it, the reply tuple's source is the real destination. So a
//! change acts on the next packet of every live flow. What the gateway itself sends to peers is
//! not filtered: there is no output hook.
//!
//! Interfaces are matched by name: an index (`iif`) would go stale, and fail open, when the
//! interface is made anew.

use super::attr::{Attr, find, find_be32, find_in, find_text};
use super::expr::{
    Base, Cmp, Ct, Direction, Expr, Meta, Rule, Verdict, cmp, counter, ct, ct_tuple,
    destination_type_here, limit, limit_each, load, log, lookup, map, mask, masquerade, meta,
    meta_set, payload, reject_prohibited, route_mss, set_mss, verdict, verdict_map,
};
use super::set::{Element, Family, Set};
use super::sys::{NFPROTO_IPV4, NFPROTO_IPV6, chain, table};
use crate::model::policy::internet;
use crate::model::{FirewallBase, InterfaceName, Masquerade};

pub const TABLE: &str = "gatepost";
pub const DENY: &str = "deny";
pub const DNS: &str = "dns";
pub const SITES: &str = "sites";
const JUDGE: &str = "judge";
const INBOUND: &str = "inbound";
const FORWARD: &str = "forward";

/// The nflog group and prefix under which denied packets are told.
pub const DENY_LOG_GROUP: u16 = 5;
pub const DENY_LOG_PREFIX: &str = "gatepost-deny ";

const TCP: u8 = 6;
const UDP: u8 = 17;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hook {
    kind: &'static str,
    /// `enum nf_inet_hooks`.
    number: u32,
    priority: i32,
}

/// Sets and chains that depend on the base alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    pub sets: Vec<Set>,
    pub chains: Vec<Chain>,
}

impl Fixed {
    pub fn of(base: &FirewallBase) -> Self {
        let mut sets = vec![Set::Chains];
        for family in Family::BOTH {
            sets.push(Set::Peers(family));
            if base.deny_log {
                sets.push(Set::DenyLog(family));
            }
            if base.masquerade == Masquerade::Internet {
                sets.push(Set::Internet(family));
            }
        }
        let mut chains = vec![
            plain(DENY, deny(base)),
            plain(DNS, vec![dns(TCP), dns(UDP)]),
            plain(SITES, vec![]),
            plain(JUDGE, judge()),
            plain(INBOUND, inbound(base)),
            hooked(FORWARD, "filter", 2, -10, forward(base)),
            hooked("input", "filter", 1, -10, input(base)),
        ];
        if base.masquerade != Masquerade::None {
            chains.push(hooked("postrouting", "nat", 4, 100, postrouting(base)));
        }
        Self { sets, chains }
    }
}

impl Chain {
    /// What is sent to declare it.
    pub fn declaration(&self) -> Vec<Attr> {
        let mut attrs = plain_chain(self.name);
        attrs.extend(self.shape());
        attrs
    }

    /// Whether `dumped`, read back from the kernel, declares this chain.
    pub fn is(&self, dumped: &[u8]) -> bool {
        let mut sent = Vec::new();
        self.shape().iter().for_each(|attr| attr.encode(&mut sent));
        let flags = find_be32(dumped, chain::FLAGS).unwrap_or_default();
        let number = |attrs: &[u8], kind| find_in(attrs, &[chain::HOOK, kind]).map(<[u8]>::to_vec);
        flags == if self.hook.is_some() { chain::FLAG_BASE } else { 0 }
            && find_text(dumped, chain::NAME) == Some(self.name)
            && [chain::TYPE, chain::POLICY]
                .iter()
                .all(|kind| find(&sent, *kind) == find(dumped, *kind))
            && [chain::HOOK_HOOKNUM, chain::HOOK_PRIORITY]
                .iter()
                .all(|kind| number(&sent, *kind) == number(dumped, *kind))
    }

    fn shape(&self) -> Vec<Attr> {
        const ACCEPT: u32 = 1;
        let Some(hook) = &self.hook else { return vec![] };
        vec![
            Attr::text(chain::TYPE, hook.kind),
            Attr::be32(chain::POLICY, ACCEPT),
            Attr::nest(
                chain::HOOK,
                vec![
                    Attr::be32(chain::HOOK_HOOKNUM, hook.number),
                    Attr::bytes(chain::HOOK_PRIORITY, hook.priority.to_be_bytes()),
                ],
            ),
        ]
    }
}

/// What is sent to declare or name a chain without a hook.
pub fn plain_chain(name: &str) -> Vec<Attr> {
    vec![Attr::text(chain::TABLE, TABLE), Attr::text(chain::NAME, name)]
}

/// What is sent to declare the table, with the comment that listings show.
pub fn table_declaration() -> Vec<Attr> {
    const COMMENT: &str = "managed by gatepost; do not edit";
    let mut hint = vec![0, u8::try_from(COMMENT.len() + 1).unwrap_or(u8::MAX)];
    hint.extend_from_slice(COMMENT.as_bytes());
    hint.push(0);
    vec![
        Attr::text(table::NAME, TABLE),
        Attr::be32(table::FLAGS, 0),
        Attr::bytes(table::USERDATA, hint),
    ]
}

/// The rule that looks a flow's opener up among the site prefixes of one length.
pub fn site_rule(family: Family, prefix_len: u8) -> Rule {
    let bits = usize::from(family.address_bytes()) * 8;
    let netmask: Vec<u8> = (0..bits / 8)
        .map(|byte| {
            let set = usize::from(prefix_len).saturating_sub(byte * 8).min(8);
            !u8::try_from(0xff_u32 >> set).unwrap_or_default()
        })
        .collect();
    let site = Set::Sites(family, prefix_len).to_string();
    vec![opener(family), mask(&netmask), map(&site), meta_set(Meta::Priority)]
}

/// The interface named by the rules of a dumped `forward` chain; to be proved by comparing.
pub fn interface_in(chain: &str, exprs: &[u8]) -> Option<InterfaceName> {
    if chain != FORWARD {
        return None;
    }
    super::attr::Attrs(exprs).find_map(|(_, expr)| {
        let value = find_in(expr, &[super::sys::expr::DATA, 3, super::sys::data::VALUE])?;
        let name = value.split(|byte| *byte == 0).next()?;
        (value.len() == 16).then(|| std::str::from_utf8(name).ok()?.parse().ok())?
    })
}

/// The elements that the base itself puts into its sets.
pub fn fixed_elements(set: &Set) -> Vec<Element> {
    fn elements<T: crate::model::Address>() -> Vec<Element> {
        internet::<T>().as_slice().iter().copied().flat_map(Element::range).collect()
    }
    match set {
        Set::Internet(Family::V4) => elements::<u32>(),
        Set::Internet(Family::V6) => elements::<u128>(),
        _ => vec![],
    }
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
    Chain { name, hook: Some(Hook { kind, number, priority }), rules }
}

fn forward(base: &FirewallBase) -> Vec<Rule> {
    let foreign = [iif(Cmp::Neq, base), oif(Cmp::Neq, base), vec![verdict(&Verdict::Accept)]];
    let mut clamp = tcp_flags(SYN | RST, Cmp::Eq, SYN);
    clamp.extend(route_mss());
    clamp.push(set_mss());
    let mut rules = vec![
        foreign.concat(),
        drop_invalid(),
        clamp,
        [iif(Cmp::Neq, base), goto(INBOUND)].concat(),
    ];
    if base.allow_inbound {
        // Not back into the tunnel: such a flow was opened by a peer, and its profile judges.
        let answers = [oif(Cmp::Neq, base), is_reply(), vec![verdict(&Verdict::Accept)]];
        rules.push(answers.concat());
    }
    rules.push(goto(JUDGE));
    rules
}

fn inbound(base: &FirewallBase) -> Vec<Rule> {
    let mut rules = vec![[is_reply(), goto(JUDGE)].concat()];
    if base.allow_inbound {
        // Conntrack picks up a TCP flow in the middle. One that a peer opened, and that was denied
        // since, must not come back as one that was opened from outside.
        let resumed = [
            ct_state(NEW),
            tcp_flags(FIN | SYN | RST | ACK, Cmp::Neq, SYN),
            vec![counter()],
            goto(DENY),
        ];
        rules.push(resumed.concat());
        rules.push(vec![counter(), verdict(&Verdict::Accept)]);
    } else {
        rules.push([vec![counter()], goto(DENY)].concat());
    }
    rules
}

fn input(base: &FirewallBase) -> Vec<Rule> {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    vec![
        [iif(Cmp::Neq, base), vec![verdict(&Verdict::Accept)]].concat(),
        ping(NFPROTO_IPV4, ICMP, 8),
        ping(NFPROTO_IPV6, ICMPV6, 128),
        drop_invalid(),
        [is_reply(), vec![verdict(&Verdict::Accept)]].concat(),
        goto(JUDGE),
    ]
}

/// An echo request to an address that the interface itself has.
fn ping(nfproto: u8, l4proto: u8, echo_request: u8) -> Rule {
    const LOCAL: u32 = 2;
    vec![
        destination_type_here(),
        cmp(Cmp::Eq, &LOCAL.to_ne_bytes()),
        meta(Meta::NfProto),
        cmp(Cmp::Eq, &[nfproto]),
        meta(Meta::L4Proto),
        cmp(Cmp::Eq, &[l4proto]),
        payload(Base::Transport, 0, 1),
        cmp(Cmp::Eq, &[echo_request]),
        verdict(&Verdict::Accept),
    ]
}

fn judge() -> Vec<Rule> {
    let assigned = |family| {
        vec![opener(family), map(&Set::Peers(family).to_string()), meta_set(Meta::Priority)]
    };
    vec![
        vec![load(&0u32.to_ne_bytes()), meta_set(Meta::Priority)],
        vec![verdict(&Verdict::Jump(SITES))],
        assigned(Family::V4),
        assigned(Family::V6),
        vec![meta(Meta::Priority), verdict_map(&Set::Chains.to_string())],
        [vec![counter()], goto(DENY)].concat(),
    ]
}

fn dns(l4proto: u8) -> Rule {
    const PORT: u16 = 53;
    vec![
        meta(Meta::L4Proto),
        cmp(Cmp::Eq, &[l4proto]),
        ct_tuple(Direction::Original, Ct::ProtoDst),
        cmp(Cmp::Eq, &PORT.to_be_bytes()),
        verdict(&Verdict::Accept),
    ]
}

fn deny(base: &FirewallBase) -> Vec<Rule> {
    let mut rules = Vec::new();
    if base.deny_log {
        rules.push(tell(Family::V4, NFPROTO_IPV4, 12));
        rules.push(tell(Family::V6, NFPROTO_IPV6, 8));
    }
    rules.push(vec![counter()]);
    let answer = vec![limit(100, 1, 200), reject_prohibited()];
    rules.push([iif(Cmp::Eq, base), answer].concat());
    rules.push(vec![verdict(&Verdict::Drop)]);
    rules
}

/// Logs a few packets a minute of each source.
fn tell(family: Family, nfproto: u8, source_offset_bytes: u32) -> Rule {
    const HEAD_BYTES: u32 = 80;
    vec![
        meta(Meta::NfProto),
        cmp(Cmp::Eq, &[nfproto]),
        payload(Base::Network, source_offset_bytes, family.address_bytes().into()),
        limit_each(&Set::DenyLog(family).to_string(), &limit(6, 60, 5)),
        log(DENY_LOG_PREFIX, DENY_LOG_GROUP, HEAD_BYTES),
    ]
}

fn postrouting(base: &FirewallBase) -> Vec<Rule> {
    let leaving = [iif(Cmp::Eq, base), oif(Cmp::Neq, base)].concat();
    let to_internet = |family, nfproto, destination_offset_bytes| {
        vec![
            meta(Meta::NfProto),
            cmp(Cmp::Eq, &[nfproto]),
            payload(Base::Network, destination_offset_bytes, Family::address_bytes(family).into()),
            lookup(&Set::Internet(family).to_string()),
        ]
    };
    let destinations = match base.masquerade {
        Masquerade::None => vec![],
        Masquerade::All => vec![vec![]],
        Masquerade::Internet => vec![
            to_internet(Family::V4, NFPROTO_IPV4, 16),
            to_internet(Family::V6, NFPROTO_IPV6, 24),
        ],
    };
    let rule = |destination| [leaving.clone(), destination, vec![masquerade()]].concat();
    destinations.into_iter().map(rule).collect()
}

const INVALID_OR_UNTRACKED: u32 = 0x41;
const NEW: u32 = 0x08;

fn ct_state(states: u32) -> Rule {
    vec![ct(Ct::State), mask(&states.to_ne_bytes()), cmp(Cmp::Neq, &0u32.to_ne_bytes())]
}

fn drop_invalid() -> Rule {
    [ct_state(INVALID_OR_UNTRACKED), vec![counter(), verdict(&Verdict::Drop)]].concat()
}

fn is_reply() -> Rule {
    vec![ct(Ct::Direction), cmp(Cmp::Eq, &[Direction::Reply as u8])]
}

fn tcp_flags(among: u8, op: Cmp, flags: u8) -> Rule {
    const FLAGS_OFFSET: u32 = 13;
    vec![
        meta(Meta::L4Proto),
        cmp(Cmp::Eq, &[TCP]),
        payload(Base::Transport, FLAGS_OFFSET, 1),
        mask(&[among]),
        cmp(op, &[flags]),
    ]
}

fn iif(op: Cmp, base: &FirewallBase) -> Rule {
    named(Meta::IifName, op, &base.interface)
}

fn oif(op: Cmp, base: &FirewallBase) -> Rule {
    named(Meta::OifName, op, &base.interface)
}

fn named(key: Meta, op: Cmp, interface: &InterfaceName) -> Rule {
    let mut name = interface.as_str().as_bytes().to_vec();
    name.resize(16, 0);
    vec![meta(key), cmp(op, &name)]
}

/// Loads the address of the flow's opener.
fn opener(family: Family) -> Expr {
    let key = match family {
        Family::V4 => Ct::SrcIp,
        Family::V6 => Ct::SrcIp6,
    };
    ct_tuple(Direction::Original, key)
}

fn goto(chain: &str) -> Rule {
    vec![verdict(&Verdict::Goto(chain))]
}
