//! What the facts mean, and what to do about it. Pure.

use std::time::Duration;

use gatepost::dataplane::nft::{ForeignDrop, Hook, Manager};
use gatepost::model::{InterfaceName, KeyText};
use serde::Serialize;

use super::facts::{Clock, DatabaseFacts, Facts, HostFacts, Trouble};
use crate::config::{Backend, Config};
use crate::exit::Exit;
use crate::output::{count, span};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// Good to know; nothing is known to be wrong.
    Note,
    /// Something does not work, or may stop working.
    Warning,
    /// The configuration is wrong: no restart will help.
    Wrong,
}

/// One thing that was looked at. The fields are stable: `check --json` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    /// What was looked at, in one word.
    pub subject: &'static str,
    /// What was found.
    pub text: String,
    /// What to do; `null` where nothing needs to be done.
    pub remedy: Option<String>,
}

impl Finding {
    fn ok(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Ok, subject, text: text.into(), remedy: None }
    }

    fn note(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Note, remedy: Some(remedy.into()), ..Self::ok(subject, text) }
    }

    fn warning(subject: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Warning, remedy: Some(remedy.into()), ..Self::ok(subject, text) }
    }

    /// A wrong configuration. Its text says the way out itself, as every error does.
    pub fn wrong(subject: &'static str, text: impl Into<String>) -> Self {
        Self { level: Level::Wrong, ..Self::ok(subject, text) }
    }
}

/// The exit code that the worst finding asks for.
#[must_use]
pub fn exit(findings: &[Finding]) -> Exit {
    match findings.iter().map(|finding| finding.level).max() {
        None | Some(Level::Ok | Level::Note) => Exit::Success,
        Some(Level::Warning) => Exit::Failure,
        Some(Level::Wrong) => Exit::Config,
    }
}

/// Judges everything, in the order in which an operator would look.
#[must_use]
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![configuration(config)];
    let warn = |text: &String| Finding::warning("config", text, "correct or remove it");
    findings.extend(facts.warnings.iter().map(warn));
    findings.extend(key(facts));
    findings.extend(
        facts
            .exposures
            .iter()
            .map(|text| Finding { level: Level::Warning, ..Finding::ok("secrets", text) }),
    );
    findings.extend(database(facts));
    findings.push(wireguard(config.interface.backend, &facts.host));
    findings.extend(forwarding(&facts.host));
    findings.extend(reverse_path(config, &facts.host));
    findings.extend(conntrack(facts));
    findings.extend(mtu(config, &facts.host));
    findings.extend(networkd(config, &facts.host));
    findings.extend(firewall(config, facts));
    findings
}

fn configuration(config: &Config) -> Finding {
    match config.gateway_name() {
        Ok(name) => Finding::ok("config", format!("{}, gateway {name}", config.file.display())),
        Err(error) => Finding::wrong("config", error.to_string()),
    }
}

fn key(facts: &Facts) -> Option<Finding> {
    let ours = match &facts.public_key {
        Ok(key) => *key,
        Err(why) => return Some(Finding::wrong("key", why)),
    };
    let database = facts.database.as_ref().ok();
    Some(match database.map(|database| &database.gateway_key) {
        None => Finding::ok("key", format!("{ours}; not compared with the database")),
        Some(KeyText::Key(key)) if *key == ours => {
            Finding::ok("key", format!("{ours}, as in the gateway's row"))
        }
        Some(KeyText::Key(key)) => Finding::wrong(
            "key",
            format!(
                "the private key's public key is {ours}, the gateway's row says {key}: put the \
                 right key in place, or write this one to the row with `gatepost enroll`"
            ),
        ),
        Some(KeyText::Bad { text, why }) => Finding::wrong(
            "key",
            format!(
                "the gateway's row holds the public key {text:?}, which {why}: write {ours} to it \
                 with `gatepost enroll`"
            ),
        ),
    })
}

fn database(facts: &Facts) -> Vec<Finding> {
    let found = match &facts.database {
        Ok(found) => found,
        Err(Trouble::Configuration(why)) => return vec![Finding::wrong("database", why)],
        Err(Trouble::Database(why)) => {
            return vec![Finding { level: Level::Warning, ..Finding::ok("database", why) }];
        }
    };
    let peers = count(found.peers, "peer");
    let text = format!("{}, schema {}, {peers}", found.place, found.schema_version);
    let mut findings = vec![Finding::ok("database", text), clock(found)];
    if !found.gateway_active {
        findings.push(Finding::warning(
            "gateway",
            format!("gateway {} is inactive or deleted: no peer is served", found.gateway_name),
            "set is_active of its row, or stop this agent",
        ));
    }
    findings
}

fn clock(database: &DatabaseFacts) -> Finding {
    /// A round trip and the snapshot's reading lie between the two readings.
    const TOLERATED: Duration = Duration::from_secs(5);
    let (difference, word) = match database.clock {
        Clock::Ahead(difference) => (difference, "ahead of"),
        Clock::Behind(difference) => (difference, "behind"),
    };
    if difference <= TOLERATED {
        return Finding::ok("clock", "agrees with the database's");
    }
    Finding::warning(
        "clock",
        format!("{} {word} the database's", span(difference)),
        "synchronise both clocks (timedatectl set-ntp true): handshake times are reported by this one",
    )
}

fn wireguard(backend: Backend, host: &HostFacts) -> Finding {
    let release = &host.kernel_release;
    match (backend, host.kernel_wireguard, host.tun_device) {
        (Backend::Auto | Backend::Kernel, true, _) => {
            Finding::ok("wireguard", format!("in kernel {release}"))
        }
        (Backend::Kernel, false, _) => Finding::warning(
            "wireguard",
            format!("kernel {release} has no WireGuard module"),
            "install the distribution's kernel modules, or set interface.backend = \"userspace\"",
        ),
        (Backend::Auto, false, true) => Finding::note(
            "wireguard",
            format!("kernel {release} has no WireGuard module: the slower userspace device serves"),
            "install the distribution's kernel modules for full speed",
        ),
        (Backend::Userspace, _, true) => Finding::ok("wireguard", "userspace, by /dev/net/tun"),
        (Backend::Auto | Backend::Userspace, _, false) => Finding::warning(
            "wireguard",
            "there is no /dev/net/tun, which the userspace device needs",
            "modprobe tun, or give the container the device",
        ),
    }
}

fn forwarding(host: &HostFacts) -> Vec<Finding> {
    let families = [
        ("IPv4", host.forwarding_ipv4, "net.ipv4.ip_forward"),
        ("IPv6", host.forwarding_ipv6, "net.ipv6.conf.all.forwarding"),
    ];
    let judge = |(family, value, key): (&str, Option<u64>, &str)| match value {
        Some(0) => Finding::warning(
            "forwarding",
            format!("{family} is not forwarded: peers reach this host and no other"),
            format!("sysctl -w {key}=1, and write it to /etc/sysctl.d/"),
        ),
        Some(_) => Finding::ok("forwarding", format!("{family} is forwarded")),
        None => Finding::note(
            "forwarding",
            format!("this kernel has no {family}"),
            format!("nothing, unless peers need {family}"),
        ),
    };
    families.map(judge).into()
}

/// Strict filtering (RFC 3704, section 2.2) drops what comes in by another link than the answer
/// would leave by: harmless for tunnel addresses, not where routes are marked or networks moved.
fn reverse_path(config: &Config, host: &HostFacts) -> Option<Finding> {
    let asymmetric = config.interface.fwmark.0 != 0 || !config.interface.site_prefixes.is_empty();
    Some(match host.rp_filter? {
        1 if asymmetric => Finding::warning(
            "rp_filter",
            "strict, while fwmark or site_prefixes may lead packets back by another way",
            format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", config.interface.name),
        ),
        1 => Finding::ok("rp_filter", "strict"),
        2 => Finding::ok("rp_filter", "loose"),
        _ => Finding::ok("rp_filter", "off"),
    })
}

fn conntrack(facts: &Facts) -> Option<Finding> {
    /// A browser opens dozens of flows; a phone at rest holds a few.
    const FLOWS_PER_PEER: u64 = 8;
    let (most, used) = (facts.host.conntrack_max?, facts.host.conntrack_count.unwrap_or(0));
    let peers = facts.database.as_ref().map_or(0, |database| database.peers);
    let wanted = peers.saturating_mul(FLOWS_PER_PEER).max(used.saturating_mul(2));
    let text = format!("room for {most} flows, {used} in use");
    if most >= wanted {
        return Some(Finding::ok("conntrack", text));
    }
    Some(Finding::warning(
        "conntrack",
        format!("{text}, too few for {}", count(peers, "peer")),
        format!(
            "sysctl -w net.netfilter.nf_conntrack_max={wanted}, and write it to /etc/sysctl.d/"
        ),
    ))
}

/// A packet gains 80 bytes in the tunnel when the outer one is IPv6: 40 of IPv6, 8 of UDP, 16 of
/// header, 16 of tag.
fn mtu(config: &Config, host: &HostFacts) -> Option<Finding> {
    const OVERHEAD_BYTES: u64 = 80;
    let (link, uplink_bytes) = host.uplink.as_ref()?;
    let ours = u64::from(config.interface.mtu_bytes);
    if ours + OVERHEAD_BYTES <= *uplink_bytes {
        return Some(Finding::ok("mtu", format!("{ours} in {link}'s {uplink_bytes}")));
    }
    let fitting = uplink_bytes.saturating_sub(OVERHEAD_BYTES).max(1280);
    Some(Finding::warning(
        "mtu",
        format!("{ours} and {OVERHEAD_BYTES} of WireGuard do not fit in {link}'s {uplink_bytes}"),
        format!("set interface.mtu_bytes = {fitting}"),
    ))
}

fn networkd(config: &Config, host: &HostFacts) -> Option<Finding> {
    host.networkd_drops_routes.then(|| {
        Finding::warning(
            "networkd",
            format!(
                "systemd-networkd removes routes that it did not make, {}'s too",
                config.interface.name
            ),
            "write [Network] ManageForeignRoutes=no to /etc/systemd/networkd.conf.d/gatepost.conf \
             and restart systemd-networkd",
        )
    })
}

/// What drops packets that our policies allow. Where the chains cannot be read, who is here is all
/// that is known.
fn firewall(config: &Config, facts: &Facts) -> Vec<Finding> {
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
