//! What rules ask of a packet: its addresses and its links.

use super::expr::{Base, Cmp, Meta, Rule, cmp, meta, payload};
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

pub fn iif(op: Cmp, base: &FirewallBase) -> Rule {
    named(Meta::IifName, op, &base.interface)
}

pub fn oif(op: Cmp, base: &FirewallBase) -> Rule {
    named(Meta::OifName, op, &base.interface)
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
