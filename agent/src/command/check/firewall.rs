//! Findings about the firewalls of other programs. Pure.

use gatepost::dataplane::nft::{
    Flowtable, ForeignDrop, ForeignRules, Hook, Lost, Manager, NftError, Packets,
};
use gatepost::model::{Gate, InterfaceName};
use gatepost::plan::gate;

use super::facts::Facts;
use super::finding::Finding;
use super::legacy::{LegacyDrop, LegacyPartly, chain_of, legacy_drops, legacy_partly};
use crate::config::Config;

/// Chains of other programs that drop what a policy allows. Where they cannot be read, the managers that
/// are present are all that is known.
pub fn firewall(config: &Config, facts: &Facts) -> Vec<Finding> {
    let (host, link) = (&facts.host, &config.interface.name);
    let database = facts.database.as_ref().ok();
    let listen_port = database.and_then(|database| database.listen_port);
    let mut findings = match &facts.foreign_drops {
        Ok(drops) => drops.iter().map(|found| foreign_drop(link, listen_port, found)).collect(),
        Err(error) => vec![unread("the firewalls of other programs", error)],
    };
    match &facts.foreign_rules {
        Ok(rules) => findings.extend(rules.iter().map(|found| foreign_rules(config, found))),
        // One failure of both is told once.
        Err(_) if facts.foreign_drops.is_err() => {}
        Err(error) => findings.push(unread("the rules of other programs", error)),
    }
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
    let partly = facts.legacy.iter().flat_map(|it| legacy_partly(it, link.as_str(), listen_port));
    findings.extend(partly.map(|found| legacy_rules(&found)));
    match &facts.flowtables {
        Ok(found) => findings.extend(found.iter().map(|found| flowtable(link, found))),
        Err(_) if facts.foreign_drops.is_err() => {}
        Err(error) => findings.push(unread("the flowtables of other programs", error)),
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            "firewall",
            "no chain of another program drops packets of peers or of WireGuard, in no hook of nftables from \
             prerouting to postrouting, and in none of iptables-legacy",
        ));
    }
    findings
}

fn unread(what: &str, error: &NftError) -> Finding {
    let text = format!("cannot read {what}: {error}");
    Finding::note("firewall", text, "run this command as root, or once more")
}

fn flowtable(link: &InterfaceName, found: &Flowtable) -> Finding {
    if found.takes_ours {
        let text = format!(
            "a rule adds flows of peers to flowtable {found}, and they pass every rule until their peer is \
             removed"
        );
        let remedy = format!("write iifname != {link} oifname != {link} before `flow add` there");
        return Finding::warning("firewall", text, remedy);
    }
    let text =
        format!("flowtable {found} holds {link}, and its flows pass every rule until they end");
    Finding::warning("firewall", text, format!("take {link} out of the flowtable's devices"))
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
    // Without a port, WireGuard's own packets are not followed.
    let port = listen_port.unwrap_or_default();
    let what = lost(found.hook, found.packets, found.lost, link, port);
    let ForeignDrop { family, table, chain, hook, packets, .. } = found;
    let remedy = match (found.manager, *packets) {
        (Some(Manager::Firewalld), Packets::WireGuard) => {
            format!("firewall-cmd --permanent --add-port={port}/udp, then firewall-cmd --reload")
        }
        (Some(Manager::Ufw), Packets::WireGuard) if *hook == Hook::Input => {
            format!("ufw allow {port}/udp")
        }
        (Some(Manager::Ufw), Packets::Host) if *hook == Hook::Input => {
            format!("ufw allow in on {link}")
        }
        (Some(Manager::Firewalld), Packets::Host) => forward_remedy(Manager::Firewalld, link),
        (Some(manager), Packets::Forwarded) => forward_remedy(manager, link),
        (_, packets) => {
            let rule = format!("nft insert rule {family} {table} {chain}");
            let (first, second) = accepting(*hook, packets, link, port);
            match second {
                None => format!("{rule} {first}; add it to the file that loads the ruleset"),
                Some(second) => format!(
                    "{rule} {first}, and the same with {second}; add both to the file that loads the ruleset"
                ),
            }
        }
    };
    judged(*packets, found.lost, format!("{found} drops {what}"), remedy)
}

/// The rule that accepts these packets at a hook, and the condition of another one that it takes, too.
fn accepting(
    hook: Hook,
    packets: Packets,
    link: &InterfaceName,
    port: u16,
) -> (String, Option<String>) {
    match (packets, hook) {
        (Packets::WireGuard, Hook::Output | Hook::Postrouting) => {
            (format!("udp sport {port} accept"), None)
        }
        (Packets::WireGuard, _) => (format!("udp dport {port} accept"), None),
        (Packets::Host, Hook::Output) => (format!("oifname {link} accept"), None),
        (Packets::Host, _) | (Packets::Forwarded, Hook::Prerouting) => {
            (format!("iifname {link} accept"), None)
        }
        (Packets::Forwarded, _) => {
            (format!("iifname {link} accept"), Some(format!("oifname {link}")))
        }
    }
}

/// How bad it is that a chain drops what its rules leave.
fn judged(packets: Packets, lost: Lost, text: String, remedy: String) -> Finding {
    match (packets, lost) {
        // A gateway without services of its own for peers may want it so.
        (Packets::Host, _) => {
            Finding::note("firewall", text, format!("if peers should reach it: {remedy}"))
        }
        (Packets::Forwarded, Lost::Some) => Finding::note("firewall", text, if_lost(&remedy)),
        (Packets::WireGuard | Packets::Forwarded, _) => Finding::warning("firewall", text, remedy),
    }
}

/// What a chain drops, in words.
fn lost(hook: Hook, packets: Packets, lost: Lost, link: &InterfaceName, port: u16) -> String {
    match (packets, lost) {
        (Packets::WireGuard, _) => {
            format!(
                "WireGuard's own packets, because none of its rules accepts them for port {port}"
            )
        }
        (Packets::Host, Lost::Some) if hook == Hook::Output => {
            "what this host itself sends to peers, but for what its rules accept".into()
        }
        (Packets::Host, _) if hook == Hook::Output => format!(
            "what this host itself sends to peers, because none of its rules for {link} accepts any"
        ),
        (Packets::Host, Lost::Some) => {
            "what peers send to this host itself, but for what its rules accept".into()
        }
        (Packets::Host, _) => format!(
            "what peers send to this host itself, because none of its rules for {link} accepts any"
        ),
        (Packets::Forwarded, Lost::All) => {
            format!("traffic of peers, because none of its rules for {link} accepts any")
        }
        (Packets::Forwarded, Lost::Answers) => format!(
            "every answer to peers, because it accepts neither what goes to {link} nor established flows"
        ),
        (Packets::Forwarded, Lost::Most) => {
            "traffic of peers and its answers, but for what single rules accept".into()
        }
        (Packets::Forwarded, Lost::Some) => {
            "traffic of peers that its rules do not accept; it accepts established flows".into()
        }
    }
}

fn if_lost(remedy: &str) -> String {
    format!("if packets are lost that `gatepost explain` allows: {remedy}")
}

fn legacy_drop(link: &InterfaceName, listen_port: Option<u16>, found: &LegacyDrop) -> Finding {
    let LegacyDrop { program, table, hook, packets, lost: how, has_docker } = found;
    let port = listen_port.unwrap_or_default();
    let chain = chain_of(*hook);
    let what = lost(*hook, *packets, *how, link, port);
    let text = format!("chain {chain} of {program} table {table} drops {what}");
    let insert = match has_docker {
        true if *hook == Hook::Forward => format!("{program} -t {table} -I DOCKER-USER"),
        _ => format!("{program} -t {table} -I {chain}"),
    };
    let save = "save it as this host does";
    let remedy = match (*packets, *hook) {
        (Packets::WireGuard, Hook::Output | Hook::Postrouting) => {
            format!("{insert} -p udp --sport {port} -j ACCEPT; {save}")
        }
        (Packets::WireGuard, _) => format!("{insert} -p udp --dport {port} -j ACCEPT; {save}"),
        (Packets::Host, Hook::Output) => format!("{insert} -o {link} -j ACCEPT; {save}"),
        (Packets::Forwarded, Hook::Postrouting) => {
            format!("{insert} -o {link} -j ACCEPT, and rules for what peers send; {save}")
        }
        (Packets::Host, _) | (Packets::Forwarded, Hook::Prerouting) => {
            format!("{insert} -i {link} -j ACCEPT; {save}")
        }
        (Packets::Forwarded, _) => format!(
            "{insert} -i {link} -j ACCEPT, and the same with -o {link}; save both as this host does"
        ),
    };
    judged(*packets, *how, text, remedy)
}

/// Rules of `iptables-legacy` that drop some packets, perhaps on purpose.
fn legacy_rules(found: &LegacyPartly) -> Finding {
    let LegacyPartly { program, table, rules } = found;
    let (first, more) = first_of(rules);
    Finding::note(
        "firewall",
        format!("{program} table {table} drops some packets, {first}{more}"),
        if_lost(&format!("{program} -t {table} -I with what should pass, before these rules")),
    )
}

/// The first rules, and how many more there are.
fn first_of(rules: &[String]) -> (String, String) {
    const FIRST: usize = 3;
    let first = rules.iter().take(FIRST).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = match rules.len().saturating_sub(FIRST) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    (first, more)
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
        if_lost(&remedy),
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
        if_lost(&remedy),
    )
}
