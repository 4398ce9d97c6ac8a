//! Finds programs and settings of this host that keep packets from peers although policies allow them. Changes
//! nothing.

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
    judge(link, listen_port, foreign_drops(link, listen_port), off)
}

fn judge(
    link: &InterfaceName,
    listen_port: Option<u16>,
    drops: Result<Vec<ForeignDrop>, NftError>,
    off: Vec<Finding>,
) -> Look {
    let off = off.into_iter().filter(is_warning).map(sentence);
    match drops {
        Err(error) => Look::Partial { found: off.collect(), why: error.to_string() },
        Ok(drops) => {
            let drops = drops.iter().map(|found| foreign_drop(link, listen_port, found));
            Look::Complete(drops.filter(is_warning).map(sentence).chain(off).collect())
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
        let look = |drops| judge(&link, Some(51820), drops, vec![off(), Finding::ok("mtu", "")]);
        let refused = NftError::Open(NetlinkError::Unsuited("no privilege"));
        let Look::Partial { found, why } = look(Err(refused)) else { panic!("a complete look") };
        assert_eq!(found, ["IPv4 forwarding is off: sysctl"]);
        assert!(why.contains("no privilege"), "{why}");
        assert_eq!(look(Ok(vec![])), Look::Complete(found));
    }
}
