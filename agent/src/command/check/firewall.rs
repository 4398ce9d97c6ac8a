//! What filters of others mean for our packets. Pure.

use gatepost::dataplane::nft::{ForeignDrop, Hook, Manager};
use gatepost::model::InterfaceName;

use super::facts::Facts;
use super::finding::Finding;
use crate::config::Config;

/// What drops packets that our policies allow. Where the chains cannot be read, who is here is all
/// that is known.
pub fn firewall(config: &Config, facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    let mut findings = match &facts.foreign_drops {
        Ok(drops) => drops.iter().map(|found| foreign_drop(config, facts, found)).collect(),
        Err(why) => vec![Finding::note(
            "firewall",
            format!("whether others drop our packets was not seen: {why}"),
            "run this command as root",
        )],
    };
    if facts.foreign_drops.is_err() || host.legacy_filter {
        findings.extend(host.neighbours.iter().map(|manager| neighbour(config, *manager)));
    }
    if host.legacy_filter {
        findings.push(Finding::note(
            "firewall",
            "iptables-legacy filters here too; its chains are not read",
            format!(
                "if packets that `gatepost explain` allows vanish: iptables-legacy -I FORWARD -i {0} \
                 -j ACCEPT, and -o {0}",
                config.interface.name
            ),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("firewall", "no chain of others drops what a policy allows"));
    }
    findings
}

fn foreign_drop(config: &Config, facts: &Facts, found: &ForeignDrop) -> Finding {
    let link = &config.interface.name;
    let database = facts.database.as_ref().ok();
    let port = database.and_then(|database| database.listen_port).unwrap_or_default();
    let what = match found.hook {
        Hook::Forward => format!("what peers send, for no rule of it names {link}"),
        Hook::Input => {
            format!("what is sent to this host, for no rule of it names {link} or {port}")
        }
    };
    let ForeignDrop { family, table, chain, .. } = found;
    let remedy = match (found.manager, found.hook) {
        (Some(manager), Hook::Forward) => forward_remedy(manager, link),
        (Some(Manager::Firewalld), Hook::Input) => {
            format!("firewall-cmd --permanent --add-port={port}/udp, then --reload")
        }
        (Some(Manager::Ufw), Hook::Input) => format!("ufw allow {port}/udp"),
        (_, Hook::Input) => format!(
            "nft insert rule {family} {table} {chain} udp dport {port} accept, and iifname {link} \
             accept; keep them where the ruleset is kept"
        ),
        (None, Hook::Forward) => format!(
            "nft insert rule {family} {table} {chain} iifname {link} accept, and oifname {link} \
             accept; keep them where the ruleset is kept"
        ),
    };
    Finding::warning("firewall", format!("{found} drops {what}"), remedy)
}

fn forward_remedy(manager: Manager, link: &InterfaceName) -> String {
    match manager {
        Manager::Docker => format!("iptables -I DOCKER-USER -i {link} -j ACCEPT, and -o {link}"),
        Manager::Firewalld => {
            format!("firewall-cmd --permanent --zone=trusted --add-interface={link}, then --reload")
        }
        Manager::Ufw => format!("ufw route allow in on {link}, and out on {link}"),
    }
}

fn neighbour(config: &Config, manager: Manager) -> Finding {
    let who = match manager {
        Manager::Docker => "Docker",
        Manager::Firewalld => "firewalld",
        Manager::Ufw => "ufw",
    };
    let remedy = forward_remedy(manager, &config.interface.name);
    Finding::note(
        "firewall",
        format!("{who} filters here too, and its drop is final"),
        format!("if packets that `gatepost explain` allows vanish: {remedy}"),
    )
}
