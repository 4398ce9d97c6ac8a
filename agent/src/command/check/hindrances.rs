//! Finds programs and settings of this host that keep packets from peers although policies allow them. Changes
//! nothing, and starts no program: of `iptables-legacy` it sees only whether there are tables.

use std::path::Path;

use gatepost::dataplane::nft::{ForeignDrop, NftError, foreign_drops};
use gatepost::model::InterfaceName;
use ipnet::IpNet;

use super::facts::read_host;
use super::finding::{Finding, Level};
use super::firewall::foreign_drop;
use super::forwarding::{Families, forwarding};
use crate::config::Config;
use crate::hindrances::Look;

/// Chains of other programs that drop, and forwarding that is off, each as a sentence with what to do.
/// `listen_port` and `addresses` are the interface's.
#[must_use]
pub fn hindrances(config: &Config, listen_port: Option<u16>, addresses: &[IpNet]) -> Look {
    let link = &config.interface.name;
    let host = read_host(Path::new("/"), link);
    let off = forwarding(&host, Families::of(config, addresses.iter().copied()));
    let legacy = host.legacy_tables.then(legacy_tables);
    judge(link, listen_port, foreign_drops(link, listen_port), legacy.into_iter().chain(off))
}

/// Their rules are not part of nf_tables.
fn legacy_tables() -> Finding {
    Finding::warning(
        "firewall",
        "iptables-legacy has tables, and their rules may drop packets of peers",
        "`gatepost check`, as root, looks into them",
    )
}

fn judge(
    link: &InterfaceName,
    listen_port: Option<u16>,
    drops: Result<Vec<ForeignDrop>, NftError>,
    others: impl Iterator<Item = Finding>,
) -> Look {
    let others = others.filter(is_warning).map(sentence);
    match drops {
        Err(error) => Look::Partial { found: others.collect(), why: error.to_string() },
        Ok(drops) => {
            let drops = drops.iter().map(|found| foreign_drop(link, listen_port, found));
            Look::Complete(drops.filter(is_warning).map(sentence).chain(others).collect())
        }
    }
}

fn is_warning(finding: &Finding) -> bool {
    finding.level == Level::Warning
}

fn sentence(Finding { text, remedy, .. }: Finding) -> String {
    match remedy {
        Some(remedy) => format!("{text}: {remedy}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use gatepost::dataplane::NetlinkError;

    use super::*;

    #[test]
    fn firewalls_that_cannot_be_read_are_not_called_harmless() {
        let link = "gatepost0".parse().unwrap();
        let off = || Finding::warning("forwarding", "IPv4 forwarding is off", "sysctl");
        let look =
            |drops| judge(&link, Some(51820), drops, [off(), Finding::ok("mtu", "")].into_iter());
        let refused = NftError::Open(NetlinkError::Unsuited("no privilege"));
        let Look::Partial { found, why } = look(Err(refused)) else { panic!("a complete look") };
        assert_eq!(found, ["IPv4 forwarding is off: sysctl"]);
        assert!(why.contains("no privilege"), "{why}");
        assert_eq!(look(Ok(vec![])), Look::Complete(found));
    }
}
