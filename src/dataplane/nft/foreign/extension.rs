//! What the extensions of `iptables` ask of a packet, by their structures in the kernel's headers. Pure.

use super::super::expr::Expr;
use super::condition::{Ask, INVALID, Match};
use super::way::{Datagrams, Link, Named, Way};

const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

/// Whether packets match an extension of iptables.
pub fn matches_extension(expr: &Expr, way: Way) -> Match {
    let name = expr.text(&[MATCH_NAME]).unwrap_or_default();
    let info = expr.find(&[MATCH_INFO]).unwrap_or_default();
    let states = match name {
        "comment" => return Match::Yes,
        // `struct xt_state_info`
        "state" => info.first().copied().map(u32::from),
        "conntrack" => conntrack_states(info),
        "udp" | "tcp" | "multiport" => return of_port(name, info, way.wireguard),
        "addrtype" => return of_address_type(info, way),
        _ => None,
    };
    match states {
        Some(INVALID) => Match::No,
        Some(states) => Match::Some(Ask::States(states)),
        None => Ask::other(format!("match {name}")),
    }
}

/// The states for which `struct xt_conntrack_mtinfo3` asks, if it asks for nothing else.
fn conntrack_states(info: &[u8]) -> Option<u32> {
    const FLAGS_AT: usize = 146;
    const INVERTED_AT: usize = 148;
    const STATES_AT: usize = 150;
    // XT_CONNTRACK_STATE and XT_CONNTRACK_STATE_ALIAS
    const STATE: u16 = 1 | 1 << 13;
    let asks_only_that = word(info, FLAGS_AT)? & !STATE == 0 && word(info, INVERTED_AT)? & 1 == 0;
    asks_only_that.then_some(u32::from(word(info, STATES_AT)?))
}

/// `struct xt_addrtype_info_v1`: kinds of source and destination, and which of both are inverted. What is sent to
/// this host has a destination of its own.
fn of_address_type(info: &[u8], way: Way) -> Match {
    const LOCAL: u16 = 1 << 2;
    const INVERTED: u16 = 1 << 1;
    const BYTES: usize = 8;
    let asked = word(info, 0).zip(word(info, 2)).zip(word(info, 4));
    match asked.filter(|_| info.len() <= BYTES && way.outgoing == Link::Absent) {
        Some(((0, kinds), flags)) if kinds != 0 => {
            let is_local = kinds & LOCAL != 0;
            if is_local != (flags & INVERTED != 0) { Match::Yes } else { Match::No }
        }
        _ => Ask::other("match addrtype".to_owned()),
    }
}

/// `iptables` compares ports by structures of its own, in host order.
fn of_port(name: &str, info: &[u8], wireguard: Option<Datagrams>) -> Match {
    let any = || Ask::other(format!("match {name}"));
    let Some(wireguard) = wireguard else { return any() };
    let found = match name {
        "tcp" => Some(Match::No),
        "udp" => of_udp(info, wireguard),
        _ => of_multiport(info, wireguard),
    };
    found.unwrap_or_else(any)
}

/// `struct xt_udp`: a source and a destination range, and which of both are inverted.
fn of_udp(info: &[u8], wireguard: Datagrams) -> Option<Match> {
    let inverted = *info.get(8)?;
    let source = (word(info, 0)?..=word(info, 2)?, inverted & 1 != 0);
    let destination = (word(info, 4)?..=word(info, 6)?, inverted & 2 != 0);
    let (port, (range, is_inverted), (other, other_is_inverted)) = match wireguard {
        Datagrams::To(port) => (port, destination, source),
        Datagrams::From(port) => (port, source, destination),
    };
    if range.contains(&port) == is_inverted {
        return Some(Match::No);
    }
    let all = 0..=u16::MAX;
    let is_of_port = !is_inverted && range != all;
    let all_others = other == all && !other_is_inverted;
    let ask = Ask::Other("match udp".into());
    Some(match (all_others, is_of_port) {
        (true, true) => Match::Named(Named::Us),
        (true, false) => Match::Named(Named::Protocol),
        (false, true) => Match::OfPort(ask),
        (false, false) => Match::Some(ask),
    })
}

/// `struct xt_multiport_v1`: which ports are compared, a count, the ports, which of them begin a range, and
/// whether it is inverted.
fn of_multiport(info: &[u8], wireguard: Datagrams) -> Option<Match> {
    const SOURCE: u8 = 0;
    const DESTINATION: u8 = 1;
    const BEGINS_AT: usize = 32;
    const INVERTED_AT: usize = 47;
    let (port, end, other_end) = match wireguard {
        Datagrams::To(port) => (port, DESTINATION, SOURCE),
        Datagrams::From(port) => (port, SOURCE, DESTINATION),
    };
    let (compared, is_inverted) = (*info.first()?, *info.get(INVERTED_AT)? != 0);
    let count = usize::from(*info.get(1)?);
    let number = |n: usize| word(info, 2 + 2 * n).filter(|_| n < count.min(15));
    let begins = |n: usize| info.get(BEGINS_AT + n).is_some_and(|begins| *begins != 0);
    let is_in = (0..count).any(|n| match number(n).zip(number(n + 1)) {
        Some((first, last)) if begins(n) => (first..=last).contains(&port),
        _ => number(n) == Some(port),
    });
    match (compared, is_in, is_inverted) {
        (compared, ..) if compared == other_end => None,
        (_, true, false) => Some(Match::Named(Named::Us)),
        (compared, false, true) if compared == end => Some(Match::Named(Named::Protocol)),
        (_, true, true) => Some(Match::No),
        (compared, false, false) if compared == end => Some(Match::No),
        _ => None,
    }
}

fn word(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|it| it.to_ne_bytes()).collect()
    }

    #[test]
    fn ports_in_the_structures_of_iptables_are_found() {
        let to = |port| Some(Datagrams::To(port));
        let of = |name: &str, info: &[u8], port| of_port(name, info, to(port));
        let udp = words(&[0, u16::MAX, 51820, 51830, 0]);
        assert_eq!(of("udp", &udp, 51820), Match::Named(Named::Us));
        assert_eq!(of("udp", &udp, 51831), Match::No);
        assert_eq!(of("tcp", &udp, 51820), Match::No);
        assert!(matches!(of_port("udp", &udp, None), Match::Some(_)), "any packet");
        assert!(matches!(of("udp", &[], 7), Match::Some(_)));
        let from = |source: u16, first: u16, last: u16| words(&[source, source, first, last, 0]);
        assert_eq!(of("udp", &from(67, 68, 68), 51820), Match::No, "from a port to another one");
        assert!(matches!(of("udp", &from(7, 51820, 51820), 51820), Match::OfPort(_)));
        assert!(matches!(of("udp", &from(53, 0, u16::MAX), 51820), Match::Some(_)));
        let not = [words(&[0, u16::MAX, 5, 7]), vec![2, 0]].concat();
        assert_eq!(of("udp", &not, 7), Match::No);
        assert_eq!(of("udp", &not, 8), Match::Named(Named::Protocol));
        let sent = |info: &[u8]| of_port("udp", info, Some(Datagrams::From(51820)));
        assert_eq!(sent(&words(&[51820, 51820, 0, u16::MAX, 0])), Match::Named(Named::Us));
        assert_eq!(sent(&words(&[53, 53, 0, u16::MAX, 0])), Match::No);
        assert!(matches!(sent(&udp), Match::Some(_)), "to the port of another host");
    }

    #[test]
    fn what_is_sent_to_this_host_has_a_local_destination() {
        let of = |words: [u16; 4], way| of_address_type(&self::words(&words), way);
        let (local, broadcast) = ([0, 4, 0, 0], [0, 8, 0, 0]);
        assert_eq!(of(local, Way::TO_HOST), Match::Yes);
        assert_eq!(of(broadcast, Way::TO_HOST), Match::No);
        assert_eq!(of([0, 4, 2, 0], Way::TO_HOST), Match::No, "inverted");
        for unknown in [of(local, Way::FROM_PEERS), of([4, 4, 0, 0], Way::TO_HOST)] {
            assert!(matches!(unknown, Match::Some(_)), "{unknown:?}");
        }
    }

    #[test]
    fn lists_of_ports_hold_ranges() {
        let of = |compared: u8, inverted: u8, port| {
            let mut info = vec![0; 48];
            info[..2].copy_from_slice(&[compared, 3]);
            info[2..10].copy_from_slice(&words(&[53, 51000, 52000, 7]));
            (info[33], info[47]) = (1, inverted);
            of_port("multiport", &info, Some(Datagrams::To(port)))
        };
        for port in [53, 51000, 51820, 52000] {
            assert_eq!(of(1, 0, port), Match::Named(Named::Us), "{port}");
            assert_eq!(of(1, 1, port), Match::No, "{port}");
        }
        assert_eq!(of(1, 0, 7), Match::No, "it counts three");
        assert_eq!(of(1, 1, 7), Match::Named(Named::Protocol));
        assert!(matches!(of(0, 0, 53), Match::Some(_)), "of the source");
        assert_eq!(of(2, 0, 53), Match::Named(Named::Us));
        assert!(matches!(of(2, 0, 7), Match::Some(_)), "the source may be in it");
        assert!(matches!(of_port("multiport", &[1, 200], Some(Datagrams::To(7))), Match::Some(_)));
    }

    #[test]
    fn states_of_iptables_count_if_it_asks_for_nothing_else() {
        let asks = |flags: u16, inverted: u16, states: u16| {
            let mut info = vec![0; 160];
            for (at, word) in [(146, flags), (148, inverted), (150, states)] {
                info[at..at + 2].copy_from_slice(&word.to_ne_bytes());
            }
            conntrack_states(&info)
        };
        assert_eq!(asks(1, 0, 6), Some(6));
        assert_eq!(asks(1 | 1 << 13, 0, 2), Some(2));
        assert_eq!(asks(1, 1, 6), None, "inverted");
        assert_eq!(asks(1 | 1 << 12, 0, 6), None, "a direction, too");
    }
}
