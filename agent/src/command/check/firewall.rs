//! Findings about the firewalls of other programs. Pure.

use gatepost::dataplane::nft::{ForeignDrop, ForeignRules, Hook, Manager};
use gatepost::model::{Gate, InterfaceName};
use gatepost::plan::gate;

use super::facts::Facts;
use super::finding::Finding;
use super::legacy::{LegacyChain, LegacyDrop, legacy_drops};
use crate::config::Config;

/// Chains of other programs that drop what a policy allows. Where they cannot be read, the managers that
/// are present are all that is known.
pub fn firewall(config: &Config, facts: &Facts) -> Vec<Finding> {
    let (host, link) = (&facts.host, &config.interface.name);
    let database = facts.database.as_ref().ok();
    let listen_port = database.and_then(|database| database.listen_port);
    let mut findings = match &facts.foreign_drops {
        Ok(drops) => drops.iter().map(|found| foreign_drop(link, listen_port, found)).collect(),
        Err(error) => vec![Finding::note(
            "firewall",
            format!("cannot read the firewalls of other programs: {error}"),
            "run this command as root",
        )],
    };
    findings.extend(facts.foreign_rules.iter().map(|found| foreign_rules(config, found)));
    let reads_legacy = !host.legacy_tables || !facts.legacy.is_empty();
    if facts.foreign_drops.is_err() || !reads_legacy {
        findings.extend(host.managers.iter().map(|manager| present(config, *manager)));
    }
    if !reads_legacy {
        findings.push(Finding::note(
            "firewall",
            "iptables-legacy has tables, and iptables-legacy-save cannot be run to read them",
            "run this command as root, with the package iptables installed",
        ));
    }
    let legacy = facts.legacy.iter().flat_map(|it| legacy_drops(it, link.as_str(), listen_port));
    findings.extend(legacy.map(|found| legacy_drop(link, listen_port, &found)));
    findings.extend(facts.flowtables.iter().map(|flowtable| {
        let link = &config.interface.name;
        Finding::warning(
            "firewall",
            format!(
                "flowtable {flowtable} holds {link}, and its flows pass every rule until they end"
            ),
            format!("take {link} out of the flowtable's devices"),
        )
    }));
    if findings.is_empty() {
        findings.push(Finding::ok(
            "firewall",
            "no chain of another program drops packets of peers, in no hook of nftables from prerouting to \
             postrouting, and in none of iptables-legacy",
        ));
    }
    findings
}

/// Checks which protection remains when another program flushes the ruleset.
pub fn fail_closed(config: &Config, facts: &Facts) -> Vec<Finding> {
    let firewall = &config.firewall;
    let owned = match (firewall.own_table, facts.keeps_owned_tables) {
        (true, Some(true)) => {
            Finding::ok("ownership", "no other program can change the table while the agent runs")
        }
        (true, _) => Finding::note(
            "ownership",
            "this kernel lets every program change the table, and the agent puts it back",
            "none needed; kernels from 6.9 let the agent own it",
        ),
        (false, _) => Finding::note(
            "ownership",
            "every program may change the table, and the agent puts it back",
            "set firewall.own_table = true",
        ),
    };
    let Some(routing) = &facts.routing else { return vec![owned] };
    let gate = match Gate::new(firewall.fail_closed, firewall.fail_closed_mark) {
        None => Finding::note(
            "fail_closed",
            "off: packets of peers pass unfiltered while the table is gone",
            "set firewall.fail_closed = \"auto\"",
        ),
        Some(wanted) => match (gate::obstacle(routing, wanted.mark), wanted.always) {
            (None, _) => {
                Finding::ok("fail_closed", "forwarded packets stop while the table is gone")
            }
            (Some(why), true) => Finding::warning(
                "fail_closed",
                format!("the gate is in force, but {why}"),
                "remove the cause, or set firewall.fail_closed = \"auto\"",
            ),
            (Some(why), false) => Finding::warning(
                "fail_closed",
                format!("packets of peers pass unfiltered while the table is gone: {why}"),
                "remove the cause, or accept it with firewall.fail_closed = false",
            ),
        },
    };
    vec![owned, gate]
}

/// A chain that drops what none of its rules accepts.
pub fn foreign_drop(
    link: &InterfaceName,
    listen_port: Option<u16>,
    found: &ForeignDrop,
) -> Finding {
    // Without a port, no chain for WireGuard's own packets is looked at.
    let port = listen_port.unwrap_or_default();
    let what = match found.hook {
        Hook::Forward => format!("traffic of peers, because none of its rules names {link}"),
        Hook::Input => {
            format!("WireGuard's own packets, because none of its rules names port {port}")
        }
        Hook::Peers => {
            format!("what peers send to this host itself, because none of its rules names {link}")
        }
    };
    let ForeignDrop { family, table, chain, .. } = found;
    let remedy = match (found.manager, found.hook) {
        (Some(manager), Hook::Forward) => forward_remedy(manager, link),
        (Some(Manager::Firewalld), Hook::Input) => {
            format!("firewall-cmd --permanent --add-port={port}/udp, then firewall-cmd --reload")
        }
        (Some(Manager::Ufw), Hook::Input) => format!("ufw allow {port}/udp"),
        (_, Hook::Input) => format!(
            "nft insert rule {family} {table} {chain} udp dport {port} accept; add it to the file that \
             loads the ruleset"
        ),
        (Some(Manager::Firewalld), Hook::Peers) => forward_remedy(Manager::Firewalld, link),
        (Some(Manager::Ufw), Hook::Peers) => format!("ufw allow in on {link}"),
        (_, Hook::Peers) => format!(
            "nft insert rule {family} {table} {chain} iifname {link} accept; add it to the file that \
             loads the ruleset"
        ),
        (None, Hook::Forward) => format!(
            "nft insert rule {family} {table} {chain} iifname {link} accept, and the same with \
             oifname {link}; add both to the file that loads the ruleset"
        ),
    };
    let text = format!("{found} drops {what}");
    match found.hook {
        // A gateway without services of its own for peers may want it so.
        Hook::Peers => {
            Finding::note("firewall", text, format!("if peers should reach it: {remedy}"))
        }
        Hook::Input | Hook::Forward => Finding::warning("firewall", text, remedy),
    }
}

fn legacy_drop(link: &InterfaceName, listen_port: Option<u16>, found: &LegacyDrop) -> Finding {
    let LegacyDrop { program, table, chain, has_docker } = found;
    let port = listen_port.unwrap_or_default();
    let (what, remedy) = match chain {
        LegacyChain::Forward => {
            let user = if *has_docker { "DOCKER-USER" } else { chain.name() };
            let accept = format!("{program} -t {table} -I {user} -i {link} -j ACCEPT");
            let what = format!("traffic of peers, because none of its rules names {link}");
            (what, format!("{accept}, and the same with -o {link}; save both as this host does"))
        }
        LegacyChain::Input => (
            format!("WireGuard's own packets, because none of its rules names port {port}"),
            format!(
                "{program} -t {table} -I INPUT -p udp --dport {port} -j ACCEPT; save it as this host does"
            ),
        ),
    };
    let text = format!("chain {} of {program} table {table} drops {what}", chain.name());
    Finding::warning("firewall", text, remedy)
}

/// Rules that drop some packets, perhaps on purpose.
fn foreign_rules(config: &Config, found: &ForeignRules) -> Finding {
    let link = &config.interface.name;
    let ForeignRules { family, table, chain, first, count, manager, .. } = found;
    let more = match count.saturating_sub(first.len()) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let remedy = match manager {
        Some(manager) => forward_remedy(*manager, link),
        None => format!("nft insert rule {family} {table} {chain} with what should pass"),
    };
    Finding::note(
        "firewall",
        format!("{found} drops some packets, {}{more}", first.join("; ")),
        format!("if packets are lost that `gatepost explain` allows: {remedy}"),
    )
}

fn forward_remedy(manager: Manager, link: &InterfaceName) -> String {
    match manager {
        Manager::Docker => {
            format!("iptables -I DOCKER-USER -i {link} -j ACCEPT, and the same with -o {link}")
        }
        Manager::Firewalld => {
            format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={link}, then firewall-cmd --reload"
            )
        }
        Manager::Ufw => format!("ufw route allow in on {link}, and ufw route allow out on {link}"),
    }
}

fn present(config: &Config, manager: Manager) -> Finding {
    let name = match manager {
        Manager::Docker => "Docker",
        Manager::Firewalld => "firewalld",
        Manager::Ufw => "ufw",
    };
    let remedy = forward_remedy(manager, &config.interface.name);
    Finding::note(
        "firewall",
        format!("{name} has a firewall on this host too, and what it drops is lost"),
        format!("if packets are lost that `gatepost explain` allows: {remedy}"),
    )
}
