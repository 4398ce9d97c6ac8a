//! Expressions that ask the host's routing.

use super::attr::Attr;
use super::expr::{Cmp, Expr, REGISTER, Rule, cmp};

/// Kinds of addresses, from `linux/rtnetlink.h`.
pub const LOCAL: u32 = 2;
pub const BROADCAST: u32 = 3;
pub const ANYCAST: u32 = 4;
pub const MULTICAST: u32 = 5;

/// Which address is looked up, and for which interface (`enum nft_fib_flags`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Source = 0x1,
    Destination = 0x2,
    /// On the interface that the packet leaves by.
    SourceHere = 0x1 | 0x10,
    /// On the interface that the packet came in by.
    DestinationHere = 0x2 | 0x8,
}

/// Loads the name of the link to which the host routes it.
pub fn link_of_address(asked: Asked) -> Expr {
    const OIFNAME: u32 = 2;
    fib(asked as u32, OIFNAME)
}

/// Asks whether it is an address of that kind.
pub fn is_kind(asked: Asked, kind: u32) -> Rule {
    of_kind(asked, Cmp::Eq, kind)
}

/// Compares the kind of an address.
pub fn of_kind(asked: Asked, op: Cmp, kind: u32) -> Rule {
    const ADDRTYPE: u32 = 3;
    vec![fib(asked as u32, ADDRTYPE), cmp(op, &kind.to_ne_bytes())]
}

fn fib(flags: u32, result: u32) -> Expr {
    Expr::new("fib", vec![Attr::be32(3, flags), Attr::be32(2, result), Attr::be32(1, REGISTER)])
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
