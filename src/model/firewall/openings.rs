//! The flows that the gateway itself may open toward peers.

use std::collections::BTreeSet;

/// The flows that the gateway itself may open, besides TCP connections, pings and NTP.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Openings {
    /// A datagram from one of these ports opens a flow. From any other port it may be a service's
    /// answer to a flow that the kernel has forgotten.
    pub udp_ports: Ports,
    /// Protocols of which every packet opens a flow.
    pub protocols: BTreeSet<u8>,
}

/// Ports as inclusive ranges: sorted, disjoint, not adjacent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    #[must_use]
    pub fn as_slice(&self) -> &[(u16, u16)] {
        &self.0
    }
}

impl FromIterator<(u16, u16)> for Ports {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|(first, last)| first <= last).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, before)) if first <= before.saturating_add(1) => {
                    *before = last.max(*before)
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_are_sorted_and_merged() {
        let ports: Ports = [(9, 8), (100, 200), (7, 7), (201, 300), (150, 160), (65_535, 65_535)]
            .into_iter()
            .collect();
        assert_eq!(ports.as_slice(), [(7, 7), (100, 300), (65_535, 65_535)]);
    }
}
