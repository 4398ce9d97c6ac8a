//! What rules ask of a packet: its addresses and its links.

use super::attr::Attr;
use super::expr::{
    Base, Cmp, Expr, Meta, REGISTER, Rule, Verdict, cmp, counter, mask, meta, payload, verdict,
};
use super::name::Family;
use crate::model::{FirewallBase, InterfaceName};

/// Which of a packet's two addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// Loads the first bytes of a packet's source address.
pub fn source(family: Family, bytes: u8) -> Rule {
    address_of(Side::Source, family, bytes)
}

/// Loads the first bytes of one of a packet's addresses.
pub fn address_of(side: Side, family: Family, bytes: u8) -> Rule {
    let offset = match (family, side) {
        (Family::V4, Side::Source) => 12,
        (Family::V4, Side::Destination) => 16,
        (Family::V6, Side::Source) => 8,
        (Family::V6, Side::Destination) => 24,
    };
    vec![
        meta(Meta::NfProto),
        cmp(Cmp::Eq, &[family.nfproto()]),
        payload(Base::Network, offset, bytes.into()),
    ]
}

/// Asks whether an IPv4 packet has options.
pub fn has_options() -> Rule {
    const HEADER_LENGTH: u8 = 0x0f;
    const WORDS_WITHOUT_OPTIONS: u8 = 5;
    vec![
        meta(Meta::NfProto),
        cmp(Cmp::Eq, &[Family::V4.nfproto()]),
        payload(Base::Network, 0, 1),
        mask(&[HEADER_LENGTH]),
        cmp(Cmp::Gt, &[WORDS_WITHOUT_OPTIONS]),
    ]
}

/// Asks whether an IPv6 packet has a routing header, of whatever type.
pub fn has_routing_header() -> Rule {
    const ROUTING: u8 = 43;
    const PRESENT: u32 = 1;
    let present = vec![
        Attr::be32(1, REGISTER),
        Attr::bytes(2, [ROUTING]),
        Attr::be32(3, 0),
        Attr::be32(4, 1),
        Attr::be32(5, PRESENT),
    ];
    vec![
        meta(Meta::NfProto),
        cmp(Cmp::Eq, &[Family::V6.nfproto()]),
        Expr::new("exthdr", present),
        cmp(Cmp::Eq, &[1]),
    ]
}

pub fn iif(op: Cmp, base: &FirewallBase) -> Rule {
    named(Meta::IifName, op, &base.interface)
}

pub fn oif(op: Cmp, base: &FirewallBase) -> Rule {
    named(Meta::OifName, op, &base.interface)
}

/// Packets that come by no VRF. This is asked first, because the name of the link by which a packet came
/// into a VRF costs three times as much.
pub fn in_no_vrf() -> Rule {
    in_vrf(Cmp::Eq)
}

/// What a peer sends while our link is in a VRF, whose own name `iif` then sees. No policy speaks of VRFs.
pub fn drop_in_vrf(base: &FirewallBase) -> Rule {
    let ours = named(Meta::SdifName, Cmp::Eq, &base.interface);
    [in_vrf(Cmp::Neq), ours, vec![counter(), verdict(&Verdict::Drop)]].concat()
}

fn in_vrf(op: Cmp) -> Rule {
    vec![meta(Meta::Sdif), cmp(op, &0u32.to_ne_bytes())]
}

fn named(key: Meta, op: Cmp, interface: &InterfaceName) -> Rule {
    [vec![meta(key)], name_is(op, interface)].concat()
}

/// Compares the name of a link.
pub fn name_is(op: Cmp, interface: &InterfaceName) -> Rule {
    let mut name = interface.as_str().as_bytes().to_vec();
    name.resize(16, 0);
    vec![cmp(op, &name)]
}
