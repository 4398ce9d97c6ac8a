//! The expressions that rules are made of, encoded as the `nft` program encodes them, so that our
//! rules list and re-load with it.

use super::attr::{Attr, Attrs, find, find_text, same};
use super::sys::{LIST_ELEM, data, expr, verdict};

/// One step of a rule: an instruction of the kernel's little machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expr {
    name: &'static str,
    attrs: Vec<Attr>,
}

/// A rule: expressions from left to right; the first that does not match ends it.
pub type Rule = Vec<Expr>;

/// What `meta` loads or sets (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Priority = 2,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
}

/// What `ct` loads (`enum nft_ct_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    State = 0,
    Direction = 1,
    Protocol = 10,
    ProtoDst = 12,
    SrcIp = 19,
    SrcIp6 = 21,
}

/// Which of a flow's two tuples (`enum ip_conntrack_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Original = 0,
    Reply = 1,
}

/// `enum nft_cmp_ops`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cmp {
    Eq = 0,
    Neq = 1,
    Lte = 3,
    Gte = 5,
}

/// Where `payload` starts to count (`enum nft_payload_bases`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    Network = 1,
    Transport = 2,
}

/// How a rule ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    Accept,
    Drop,
    Jump(&'a str),
    Goto(&'a str),
}

/// The first 16-byte register: enough for every rule that looks no pair up.
const REGISTER: u32 = 1;
/// What stands in that register behind its first four bytes, and as much again behind it: a pair's
/// second part.
const SECOND: u32 = 9;
const VERDICT_REGISTER: u32 = 0;

impl Expr {
    fn new(name: &'static str, attrs: Vec<Attr>) -> Self {
        Self { name, attrs }
    }

    /// Appends the expression as an element of a list.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.attr(LIST_ELEM).encode(out);
    }

    pub fn attr(&self, kind: u16) -> Attr {
        let data = Attr::nest(expr::DATA, self.attrs.clone());
        Attr::nest(kind, vec![Attr::text(expr::NAME, self.name), data])
    }

    /// Whether `dumped`, read back from the kernel, is this expression. A counter's value may differ.
    fn is(&self, dumped: &[u8]) -> bool {
        let named = find_text(dumped, expr::NAME) == Some(self.name);
        let data = find(dumped, expr::DATA).unwrap_or_default();
        named && (self.name == "counter" || same(&self.attrs, data))
    }
}

/// Whether `dumped`, a rule's expression list, is exactly this rule.
pub fn is_rule(rule: &[Expr], dumped: &[u8]) -> bool {
    let mut list = Attrs(dumped);
    rule.iter().all(|expr| list.next().is_some_and(|(_, found)| expr.is(found)))
        && list.next().is_none()
}

pub fn meta(key: Meta) -> Expr {
    Expr::new("meta", vec![Attr::be32(2, key as u32), Attr::be32(1, REGISTER)])
}

pub fn meta_set(key: Meta) -> Expr {
    Expr::new("meta", vec![Attr::be32(2, key as u32), Attr::be32(3, REGISTER)])
}

/// Loads something of the packet's flow as a whole.
pub fn ct(key: Ct) -> Expr {
    Expr::new("ct", vec![Attr::be32(2, key as u32), Attr::be32(1, REGISTER)])
}

/// Loads something of one of the flow's tuples.
pub fn ct_tuple(direction: Direction, key: Ct) -> Expr {
    ct_tuple_into(REGISTER, direction, key)
}

/// The same, as the second part of a pair.
pub fn ct_tuple_second(direction: Direction, key: Ct) -> Expr {
    ct_tuple_into(SECOND, direction, key)
}

fn ct_tuple_into(register: u32, direction: Direction, key: Ct) -> Expr {
    Expr::new(
        "ct",
        vec![Attr::be32(2, key as u32), Attr::be32(1, register), Attr::bytes(3, [direction as u8])],
    )
}

pub fn cmp(op: Cmp, value: &[u8]) -> Expr {
    Expr::new(
        "cmp",
        vec![
            Attr::be32(1, REGISTER),
            Attr::be32(2, op as u32),
            Attr::nest(3, vec![Attr::bytes(data::VALUE, value)]),
        ],
    )
}

/// Keeps the register's bits that are set in `mask`.
pub fn mask(mask: &[u8]) -> Expr {
    mask_in(REGISTER, mask)
}

/// The same with the second part of a pair.
pub fn mask_second(mask: &[u8]) -> Expr {
    mask_in(SECOND, mask)
}

fn mask_in(register: u32, mask: &[u8]) -> Expr {
    let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    Expr::new(
        "bitwise",
        vec![
            Attr::be32(1, register),
            Attr::be32(2, register),
            Attr::be32(3, len),
            Attr::nest(4, vec![Attr::bytes(data::VALUE, mask)]),
            Attr::nest(5, vec![Attr::bytes(data::VALUE, vec![0; mask.len()])]),
        ],
    )
}

pub fn payload(base: Base, offset_bytes: u32, len_bytes: u32) -> Expr {
    Expr::new(
        "payload",
        vec![
            Attr::be32(1, REGISTER),
            Attr::be32(2, base as u32),
            Attr::be32(3, offset_bytes),
            Attr::be32(4, len_bytes),
        ],
    )
}

/// Goes on if the register's value is in the set.
pub fn lookup(set: &str) -> Expr {
    Expr::new("lookup", vec![Attr::text(1, set), Attr::be32(2, REGISTER)])
}

/// Replaces the register's value by what the map holds for it.
pub fn map(map: &str) -> Expr {
    let attrs = vec![Attr::text(1, map), Attr::be32(2, REGISTER), Attr::be32(3, REGISTER)];
    Expr::new("lookup", attrs)
}

/// Obeys the verdict that the map holds for the register's value.
pub fn verdict_map(map: &str) -> Expr {
    let attrs = vec![Attr::text(1, map), Attr::be32(2, REGISTER), Attr::be32(3, VERDICT_REGISTER)];
    Expr::new("lookup", attrs)
}

pub fn load(value: &[u8]) -> Expr {
    Expr::new(
        "immediate",
        vec![Attr::be32(1, REGISTER), Attr::nest(2, vec![Attr::bytes(data::VALUE, value)])],
    )
}

pub fn verdict(verdict: &Verdict) -> Expr {
    Expr::new(
        "immediate",
        vec![Attr::be32(1, VERDICT_REGISTER), Attr::nest(2, vec![verdict_data(verdict)])],
    )
}

/// A verdict as data: in an `immediate`, or in an element of a verdict map.
pub fn verdict_data(verdict: &Verdict) -> Attr {
    let (code, chain) = match verdict {
        Verdict::Accept => (verdict::ACCEPT, None),
        Verdict::Drop => (verdict::DROP, None),
        Verdict::Jump(chain) => (verdict::JUMP, Some(chain)),
        Verdict::Goto(chain) => (verdict::GOTO, Some(chain)),
    };
    let mut attrs = vec![Attr::bytes(data::VERDICT_CODE, code.to_be_bytes())];
    attrs.extend(chain.map(|chain| Attr::text(data::VERDICT_CHAIN, chain)));
    Attr::nest(data::VERDICT, attrs)
}

pub fn counter() -> Expr {
    Expr::new("counter", vec![])
}

/// Goes on while there are no more than `packets` in `per_secs` seconds, after a burst.
pub fn limit(packets: u64, per_secs: u64, burst: u32) -> Expr {
    Expr::new(
        "limit",
        vec![
            Attr::be64(1, packets),
            Attr::be64(2, per_secs),
            Attr::be32(3, burst),
            Attr::be32(4, 0),
            Attr::be32(5, 0),
        ],
    )
}

/// Keeps one limit for each value of the register in a dynamic set, and asks it.
pub fn limit_each(set: &str, limit: &Expr) -> Expr {
    const UPDATE: u32 = 1;
    Expr::new(
        "dynset",
        vec![Attr::be32(4, REGISTER), Attr::be32(3, UPDATE), Attr::text(1, set), limit.attr(7)],
    )
}

/// Hands the head of the packet to whoever listens on this nflog group.
pub fn log(prefix: &str, group: u16, snap_bytes: u32) -> Expr {
    Expr::new(
        "log",
        vec![Attr::text(2, prefix), Attr::bytes(1, group.to_be_bytes()), Attr::be32(3, snap_bytes)],
    )
}

/// Answers with "administratively prohibited" of the packet's family, and drops it.
pub fn reject_prohibited() -> Expr {
    const ICMPX: u32 = 2;
    const ADMIN_PROHIBITED: u8 = 3;
    Expr::new("reject", vec![Attr::be32(1, ICMPX), Attr::bytes(2, [ADMIN_PROHIBITED])])
}

pub fn masquerade() -> Expr {
    Expr::new("masq", vec![])
}

/// Loads what kind of address the destination is on the interface the packet came in by.
pub fn destination_type_here() -> Expr {
    const ADDRTYPE: u32 = 3;
    const DADDR_AND_IIF: u32 = 0x2 | 0x8;
    Expr::new(
        "fib",
        vec![Attr::be32(3, DADDR_AND_IIF), Attr::be32(2, ADDRTYPE), Attr::be32(1, REGISTER)],
    )
}

/// Loads the largest TCP segment that the packet's route can carry, in network byte order.
pub fn route_mss() -> [Expr; 2] {
    const TCPMSS: u32 = 3;
    const HTON: u32 = 1;
    let to_network = vec![
        Attr::be32(1, REGISTER),
        Attr::be32(2, REGISTER),
        Attr::be32(3, HTON),
        Attr::be32(4, 2),
        Attr::be32(5, 2),
    ];
    [
        Expr::new("rt", vec![Attr::be32(2, TCPMSS), Attr::be32(1, REGISTER)]),
        Expr::new("byteorder", to_network),
    ]
}

/// Lowers the segment size that a SYN offers to the register's value; never raises it
/// (`nft_exthdr_tcp_set_eval` in the kernel).
pub fn set_mss() -> Expr {
    const TCP_OPTION: u32 = 1;
    const MAXSEG: u8 = 2;
    Expr::new(
        "exthdr",
        vec![
            Attr::be32(7, REGISTER),
            Attr::bytes(2, [MAXSEG]),
            Attr::be32(3, 2),
            Attr::be32(4, 2),
            Attr::be32(6, TCP_OPTION),
        ],
    )
}
