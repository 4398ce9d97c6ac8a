//! Which networks can be a tunnel's.

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Networks that every host needs for itself.
const RESERVED: [IpNet; 7] = [
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([224, 0, 0, 0], 3),
    v6(0, 8),
    v6(0xfe80, 10),
    v6(0xff00, 8),
];
const SHORTEST4: u8 = 8;
const SHORTEST6: u8 = 16;

/// Why a network can be no tunnel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsuited {
    /// They have addresses in common.
    Reserved(IpNet),
    TooWide {
        shortest: u8,
    },
}

/// Whether a network can be a tunnel's: the pool, or a site prefix.
///
/// # Errors
/// [`Unsuited`]
pub fn check_network(network: IpNet) -> Result<(), Unsuited> {
    let shares = |reserved: &&IpNet| reserved.contains(&network) || network.contains(*reserved);
    let shortest = if network.addr().is_ipv4() { SHORTEST4 } else { SHORTEST6 };
    match RESERVED.iter().find(shares) {
        _ if network.prefix_len() < shortest => Err(Unsuited::TooWide { shortest }),
        Some(reserved) => Err(Unsuited::Reserved(*reserved)),
        None => Ok(()),
    }
}

impl fmt::Display for Unsuited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved(reserved) => {
                write!(f, "has addresses of {reserved}, which every host needs for itself")
            }
            Self::TooWide { shortest } => write!(f, "is wider than /{shortest}"),
        }
    }
}

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), len))
}

const fn v6(first: u16, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(std::net::Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_hosts_need_and_those_that_are_too_wide_are_refused() {
        let check = |text: &str| check_network(text.parse().unwrap());
        for good in ["10.0.0.0/8", "100.64.0.0/10", "192.0.2.0/24", "fd00::/16", "2001:db8::/64"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let reserved = |text: &str| Err(Unsuited::Reserved(text.parse().unwrap()));
        assert_eq!(check("127.1.0.0/16"), reserved("127.0.0.0/8"));
        assert_eq!(check("169.0.0.0/8"), reserved("169.254.0.0/16"));
        assert_eq!(check("240.0.0.0/24"), reserved("224.0.0.0/3"));
        assert_eq!(check("::/16"), reserved("::/8"));
        assert_eq!(check("fe80::/64"), reserved("fe80::/10"));
        assert_eq!(check("ff02::/16"), reserved("ff00::/8"));
        assert_eq!(check("0.0.0.0/0"), Err(Unsuited::TooWide { shortest: 8 }));
        assert_eq!(check("fd00::/15"), Err(Unsuited::TooWide { shortest: 16 }));
    }
}
