//! Cutting flows of addresses that change hands.

use std::collections::BTreeSet;

use ipnet::IpNet;
use tracing::{info, warn};

use super::Host;
use crate::count::count;
use crate::dataplane::conntrack::Cut;
use crate::dataplane::netlink::NetlinkError;
use crate::dataplane::sockets::{self, Destroyed};
use crate::dataplane::{Firewall, Outcome, link};
use crate::model::ObservedState;
use crate::plan::CutArea;

impl<F: Firewall> Host<F> {
    pub(super) fn cut_flows(
        &mut self,
        prefixes: &BTreeSet<IpNet>,
        observed: &ObservedState,
        outcome: &mut Outcome,
    ) -> Result<(), NetlinkError> {
        let area = CutArea::new(prefixes, observed, || self.networks_in_use());
        // A socket that lives on could open a flow anew that was cut. If the kernel does not close it, what it
        // sends is the gateway's own traffic, which no policy of the former holder lets pass.
        let destroyed = sockets::destroy_sockets(&area);
        outcome.sockets_may_be_left |= destroyed.refusal.is_some();
        note_destroyed(destroyed, &mut self.sockets_refusal);
        let cut = self.flows.cut(&area)?;
        note_cut(cut, outcome);
        Ok(())
    }

    /// The networks of other links that are up. If they cannot be read, none is spared.
    fn networks_in_use(&mut self) -> BTreeSet<IpNet> {
        let Ok((_, mut others)) = self.find_links() else { return BTreeSet::new() };
        others.retain(|link| link.up);
        let networks = link::networks(&mut self.rtnetlink, &others);
        networks.map(|networks| networks.into_keys().collect()).unwrap_or_default()
    }
}

fn note_cut(cut: Cut, outcome: &mut Outcome) {
    outcome.flows_cut += cut.flows;
    outcome.flows_listed += cut.listed;
    if cut.offloaded > 0 {
        warn!(
            flows = cut.offloaded,
            "a flowtable of another program lets {} pass every rule until the end: `gatepost check` names \
             it; let no rule add flows of our interface to it",
            count(cut.offloaded, "flow")
        );
    }
}

/// Warns of each refusal once, until there is none or another.
fn note_destroyed(destroyed: Destroyed, warned: &mut Option<Box<str>>) {
    if destroyed.sockets > 0 {
        info!(
            sockets = destroyed.sockets,
            "closed {} of this host to addresses that change hands",
            count(destroyed.sockets, "connection")
        );
    }
    let refusal = destroyed.refusal.map(|error| Box::from(error.to_string()));
    if let Some(refusal) = refusal.as_deref().filter(|_| refusal != *warned) {
        warn!(
            refusal,
            "connections of this host to addresses that change hands may stay open: {refusal}; this \
             takes the modules tcp_diag and udp_diag, and a kernel with CONFIG_INET_DIAG_DESTROY"
        );
    }
    *warned = refusal;
}
