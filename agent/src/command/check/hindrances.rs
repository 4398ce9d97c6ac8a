//! Finds programs and settings of this host that keep packets from peers although policies allow them. Changes
//! nothing.

use std::path::Path;

use gatepost::dataplane::nft::foreign_drops;
use ipnet::IpNet;

use super::facts::read_host;
use super::finding::{Finding, Level};
use super::firewall::foreign_drop;
use super::forwarding::{Families, forwarding};
use crate::config::Config;

/// Chains of other programs that drop, and forwarding that is off, each as a sentence with what to do.
/// `listen_port` and `addresses` are the interface's. What cannot be read is left out.
#[must_use]
pub fn hindrances(config: &Config, listen_port: Option<u16>, addresses: &[IpNet]) -> Vec<String> {
    let link = &config.interface.name;
    let drops = foreign_drops(link, listen_port).unwrap_or_default();
    let drops = drops.iter().map(|found| foreign_drop(link, listen_port, found));
    let host = read_host(Path::new("/"), link);
    let families = Families::of(config, addresses.iter().copied());
    let findings = drops.chain(forwarding(&host, families));
    findings.filter(|finding| finding.level == Level::Warning).map(sentence).collect()
}

fn sentence(Finding { text, remedy, .. }: Finding) -> String {
    match remedy {
        Some(remedy) => format!("{text}: {remedy}"),
        None => text,
    }
}
