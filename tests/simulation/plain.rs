//! What rows ask for, worked out slowly and without the code that is tried: it must agree with that.

use std::net::IpAddr;
use std::time::SystemTime;

use gatepost::model::policy::Verdict;
use gatepost::model::policy::reference::{Sender, verdict};
use gatepost::model::{
    BlockList, DesiredState, KeyText, ObservedState, PeerRow, PolicyRow, Profile, PublicKey, Tag,
};
use ipnet::IpNet;

use super::tables::{Tables, local};

/// The rows of one moment, and the host's block list.
pub struct Plain<'a> {
    tables: &'a Tables,
    blocks: &'a BlockList,
    policies: Vec<PolicyRow>,
    at: SystemTime,
}

impl<'a> Plain<'a> {
    pub fn new(tables: &'a Tables, blocks: &'a BlockList, at: SystemTime) -> Self {
        Self { tables, blocks, policies: tables.policies.values().cloned().collect(), at }
    }

    fn is_eligible(&self, row: &PeerRow) -> bool {
        self.tables.gateway.active
            && row.bars == Default::default()
            && row.revoked_at.is_none_or(|revoked| revoked > self.at)
            && !self.blocks.bars(row)
    }

    fn eligible(&self) -> impl Iterator<Item = &PeerRow> {
        self.tables.peers.values().filter(|row| self.is_eligible(row))
    }

    fn reaches(&self, row: &PeerRow, destination: IpAddr, is_question: bool) -> bool {
        let group_ids = self.tables.memberships.get(&row.user_id).cloned().unwrap_or_default();
        let sender = Sender { user_id: row.user_id, device_id: row.device_id, group_ids };
        let server = destination.to_string();
        is_question && self.tables.gateway.dns_servers.contains(&server)
            || verdict(&self.policies, &sender, destination, Verdict::Deny) == Verdict::Allow
    }

    /// Whether any row lets this peer send from there to there.
    pub fn may_pass(
        &self,
        sender: PublicKey,
        source: IpAddr,
        destination: IpAddr,
        is_question: bool,
    ) -> bool {
        let names = |row: &&PeerRow| row.public_key == KeyText::Key(sender);
        self.eligible().filter(names).any(|row| {
            prefixes(row).any(|prefix| prefix.contains(&source))
                && self.reaches(row, destination, is_question)
        })
    }

    /// Whether a row that contends with no other lets somebody send from there to there.
    pub fn must_pass(&self, source: IpAddr, destination: IpAddr, is_question: bool) -> bool {
        let row = self.eligible().find(|row| row.assigned_ip.addr() == source);
        let contends = |row: &PeerRow, other: &PeerRow| {
            let shares = |prefix| prefixes(other).any(|it| it == prefix);
            row.id != other.id && (row.public_key == other.public_key || prefixes(row).any(shares))
        };
        row.is_some_and(|row| {
            !self.eligible().any(|other| contends(row, other))
                && self.reaches(row, destination, is_question)
        })
    }
}

/// What a row asks for of the gateway.
fn prefixes(row: &PeerRow) -> impl Iterator<Item = IpNet> {
    let local = local();
    let is_of_site =
        move |prefix: &IpNet| local.site_prefixes.iter().any(|site| site.contains(prefix));
    let sites = row.allowed_ips.iter().copied().filter(is_of_site);
    std::iter::once(row.assigned_ip).chain(sites)
}

/// Whether a kernel holds all that is desired, and nothing else.
pub fn is_as(state: &ObservedState, desired: &DesiredState) -> bool {
    let wanted = desired.interface();
    let link = state.interface.as_ref().is_some_and(|link| {
        *link.name == *wanted.name.as_str()
            && link.up
            && link.listen_port == wanted.listen_port
            && link.mtu_bytes == wanted.mtu_bytes
            && link.public_key == Some(wanted.private_key.public_key())
            && link.addresses.keys().eq(&wanted.addresses)
    });
    let routes = desired.routes().iter().all(|route| state.routes.contains_key(route));
    let is_left =
        |(route, tag): (&IpNet, &Tag)| *tag == Tag::Ours && !desired.routes().contains(route);
    let table = state.firewall.as_ref().is_some_and(|table| {
        let (places, wanted) = (table.assignments(), desired.firewall());
        let nothing = Profile::default();
        let reaches = |prefix| table.profile_of(prefix).map_or(&nothing, |profile| profile);
        table.base() == Some(&wanted.base)
            && places.keys().eq(wanted.assignments.keys())
            && wanted.assignments.iter().all(|(prefix, profile)| reaches(prefix) == &**profile)
    });
    link && routes && !state.routes.iter().any(is_left) && table && state.peers == *desired.peers()
}
