//! The expressions that rules are made of, encoded as the `nft` program encodes them, so that it can
//! list our rules and load them again.

use std::borrow::Cow;

use super::attr::{self, Attr, same};
use super::name::Family;
use super::sys::{LIST_ELEM, data, expr, verdict};
use crate::dataplane::netlink::{Attribute, Attributes, NetlinkError};

/// One step of a rule: an instruction of the kernel's packet filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expr {
    name: Cow<'static, str>,
    attrs: Vec<Attr>,
}

/// A rule: expressions from left to right; the first that does not match ends it.
pub type Rule = Vec<Expr>;

/// What `meta` loads or sets (`enum nft_meta_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    Priority = 2,
    Mark = 3,
    IifName = 6,
    OifName = 7,
    NfProto = 15,
    L4Proto = 16,
    /// From Linux 5.6, in the hooks `forward` and `input`.
    Sdif = 33,
    SdifName = 34,
}

/// What `ct` loads or sets (`enum nft_ct_keys`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    State = 0,
    Direction = 1,
    Protocol = 10,
    ProtoDst = 12,
    Labels = 13,
    SrcIp = 19,
    SrcIp6 = 21,
}

impl Ct {
    /// A tuple's source.
    pub const fn source(family: Family) -> Self {
        match family {
            Family::V4 => Self::SrcIp,
            Family::V6 => Self::SrcIp6,
        }
    }
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
    Gt = 4,
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
pub const REGISTER: u32 = 1;
/// The register behind that one's first four bytes: a pair's second part.
const SECOND: u32 = 9;
const VERDICT_REGISTER: u32 = 0;

impl Expr {
    pub fn new(name: &'static str, attrs: Vec<Attr>) -> Self {
        Self { name: name.into(), attrs }
    }

    /// Reads an expression as the kernel dumps it.
    pub fn read(dumped: &Attribute<'_>) -> Result<Self, NetlinkError> {
        let name = dumped.nested().require(expr::NAME)?.text()?;
        let read = |it: Attribute<'_>| match (name, it.kind) {
            ("immediate", 2) | ("cmp", 3) | ("bitwise", 4 | 5) | ("range", 3 | 4) => read_data(&it),
            ("dynset", 7) => Ok(Self::read(&it)?.attr(7)),
            _ => Ok(Attr::leaf(&it)),
        };
        let attrs = match dumped.nested().find(expr::DATA)? {
            Some(data) => data.nested().map(|it| read(it?)).collect::<Result<_, _>>()?,
            None => vec![],
        };
        Ok(Self { name: name.to_owned().into(), attrs })
    }

    /// Appends the expression as an element of a list.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.attr(LIST_ELEM).encode(out);
    }

    pub fn attr(&self, kind: u16) -> Attr {
        let data = Attr::nest(expr::DATA, self.attrs.clone());
        Attr::nest(kind, vec![Attr::text(expr::NAME, &self.name), data])
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes at the end of a path of its attributes.
    pub fn find(&self, path: &[u16]) -> Option<&[u8]> {
        attr::find(&self.attrs, path)
    }

    /// A text among its attributes.
    pub fn text(&self, path: &[u16]) -> Option<&str> {
        let bytes = self.find(path)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }

    /// Whether `found`, read back from the kernel, is this expression. A counter's value may differ.
    fn is(&self, found: &Self) -> bool {
        self.name == found.name && (self.name == "counter" || same(&self.attrs, &found.attrs))
    }
}

/// Data in an expression or an element: a value or a verdict.
fn read_data(dumped: &Attribute<'_>) -> Result<Attr, NetlinkError> {
    let read = |inner: Result<Attribute<'_>, _>| {
        let inner = inner?;
        if inner.kind != data::VERDICT {
            return Ok(Attr::leaf(&inner));
        }
        let verdict = inner.nested().map(|part| part.map(|part| Attr::leaf(&part)));
        Ok(Attr::nest(data::VERDICT, verdict.collect::<Result<_, NetlinkError>>()?))
    };
    let data = dumped.nested().map(read).collect::<Result<_, NetlinkError>>()?;
    Ok(Attr::nest(dumped.kind, data))
}

/// Reads a rule's list of expressions as the kernel dumps it.
pub fn read_rule(list: Attributes<'_>) -> Result<Rule, NetlinkError> {
    list.map(|dumped| Expr::read(&dumped?)).collect()
}

/// Whether `found`, read back from the kernel, is exactly this rule.
pub fn is_rule(rule: &[Expr], found: &[Expr]) -> bool {
    rule.len() == found.len() && rule.iter().zip(found).all(|(expr, found)| expr.is(found))
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

/// Gives the flow what the register holds.
pub fn ct_set(key: Ct) -> Expr {
    Expr::new("ct", vec![Attr::be32(2, key as u32), Attr::be32(4, REGISTER)])
}

/// Loads something of one of the flow's tuples.
pub fn ct_tuple(direction: Direction, key: Ct) -> Expr {
    ct_tuple_into(REGISTER, direction, key)
}

/// Loads something of one of the flow's tuples as the second part of a pair.
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

/// Keeps the bits of a pair's second part that are set in `mask`.
pub fn mask_second(mask: &[u8]) -> Expr {
    mask_in(SECOND, mask)
}

fn mask_in(register: u32, mask: &[u8]) -> Expr {
    bits(register, mask, &vec![0; mask.len()])
}

/// Sets bits of the register's value.
pub fn set_bits(bits_set: u32) -> Expr {
    bits(REGISTER, &(!bits_set).to_ne_bytes(), &bits_set.to_ne_bytes())
}

/// Keeps the bits that are set in `mask`, and then turns those that are set in `turned`.
fn bits(register: u32, mask: &[u8], turned: &[u8]) -> Expr {
    let len = u32::try_from(mask.len()).unwrap_or(u32::MAX);
    Expr::new(
        "bitwise",
        vec![
            Attr::be32(1, register),
            Attr::be32(2, register),
            Attr::be32(3, len),
            Attr::nest(4, vec![Attr::bytes(data::VALUE, mask)]),
            Attr::nest(5, vec![Attr::bytes(data::VALUE, turned)]),
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

/// Goes on if the register's value is not in the set.
pub fn lookup_none(set: &str) -> Expr {
    const INVERTED: u32 = 1;
    Expr::new("lookup", vec![Attr::text(1, set), Attr::be32(2, REGISTER), Attr::be32(5, INVERTED)])
}

/// Replaces the register's value by what the map holds for it.
pub fn map(map: &str) -> Expr {
    let attrs = vec![Attr::text(1, map), Attr::be32(2, REGISTER), Attr::be32(3, REGISTER)];
    Expr::new("lookup", attrs)
}

/// Applies the verdict that the map holds for the register's value.
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

/// Keeps one expression for each value of the register in a dynamic set, and applies it. `operation` is
/// one of `enum nft_dynset_ops`.
pub fn each(operation: u32, set: &str, expr: &Expr) -> Expr {
    let (key, operation) = (Attr::be32(4, REGISTER), Attr::be32(3, operation));
    Expr::new("dynset", vec![key, operation, Attr::text(1, set), expr.attr(7)])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::netlink::{Place, put, put_nested};

    fn read(bytes: &[u8]) -> Result<Rule, NetlinkError> {
        read_rule(Attributes::new(bytes, Place::of("NFT_MSG_NEWRULE")))
    }

    #[test]
    fn expressions_are_read_as_they_are_written() {
        let rule = vec![
            meta(Meta::L4Proto),
            cmp(Cmp::Eq, &[6]),
            mask(&[1, 2]),
            each(1, "denied4", &limit(6, 60, 5)),
            verdict(&Verdict::Jump("dns")),
        ];
        let mut bytes = Vec::new();
        rule.iter().for_each(|expr| expr.encode(&mut bytes));
        assert_eq!(read(&bytes), Ok(rule.clone()));
        assert!(is_rule(&rule, &read(&bytes).unwrap()));
        assert!(!is_rule(&rule[..4], &rule) && !is_rule(&rule, &rule[..4]));
    }

    #[test]
    fn a_malformed_expression_is_an_error_at_any_depth() {
        let expression = |fill: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = Vec::new();
            put_nested(&mut bytes, LIST_ELEM, |out| fill(out));
            read(&bytes).unwrap_err().to_string()
        };
        let named = |text: &str| format!("the kernel sent a malformed NFT_MSG_NEWRULE, {text}");
        assert_eq!(expression(&|_| {}), named("attribute 1: it lacks attribute 1"));
        let cut = [9, 0, 1, 0];
        let in_value = expression(&|out| {
            put(out, expr::NAME, b"cmp\0");
            put_nested(out, expr::DATA, |out| put_nested(out, 3, |out| out.extend(cut)));
        });
        assert_eq!(
            in_value,
            named("attribute 1/2/3/1: its length of 9 bytes goes past the end: 4 are left")
        );
        let in_verdict = expression(&|out| {
            put(out, expr::NAME, b"immediate\0");
            put_nested(out, expr::DATA, |out| {
                put_nested(out, 2, |out| put_nested(out, data::VERDICT, |out| out.extend(cut)));
            });
        });
        assert!(in_verdict.contains("attribute 2/2/2/1"), "{in_verdict}");
    }
}
