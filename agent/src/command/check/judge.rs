//! What the facts mean, and what to do about it. Pure.

use std::time::Duration;

use gatepost::model::KeyText;
use ipnet::IpNet;

use super::facts::{Clock, DatabaseFacts, Facts, HostFacts, Trouble};
use super::finding::{Finding, Level};
use super::firewall::firewall;
use crate::config::{Backend, Config};
use crate::output::{count, span};

/// Judges everything, in the order in which an operator would look.
#[must_use]
pub fn judge(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![configuration(config)];
    let warn = |text: &String| Finding::warning("config", text, "correct or remove it");
    findings.extend(facts.warnings.iter().map(warn));
    findings.extend(gateway(config, facts));
    findings.push(key(config, facts));
    findings.extend(psk_keys(facts));
    findings.extend(
        facts
            .exposures
            .iter()
            .map(|text| Finding { level: Level::Warning, ..Finding::ok("secrets", text) }),
    );
    findings.extend(database(facts));
    findings.push(wireguard(config.interface.backend, &facts.host));
    findings.extend(forwarding(config, facts));
    findings.extend(reverse_path(config, &facts.host));
    findings.extend(flows(config, facts));
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

/// Whether the role that logs in acts for the gateway that the configuration names. The loop
/// refuses any other.
fn gateway(config: &Config, facts: &Facts) -> Option<Finding> {
    let name = config.gateway_name().ok()?;
    let bound = &facts.database.as_ref().ok()?.gateway_name;
    (bound != name).then(|| {
        let text = format!(
            "the database's role acts for gateway {bound}, the configuration says {name}: correct \
             [gateway] name or the role in [database] url, or bind the role with `gatepost grant`"
        );
        Finding::wrong("gateway", text)
    })
}

fn key(config: &Config, facts: &Facts) -> Finding {
    let ours = match &facts.public_key {
        Ok(key) => *key,
        Err(why) => return Finding::wrong("key", why),
    };
    let database = facts.database.as_ref().ok();
    match database.map(|database| &database.gateway_key) {
        None => Finding::ok("key", format!("{ours}; not compared with the database")),
        Some(_) if gateway(config, facts).is_some() => {
            Finding::ok("key", format!("{ours}; not compared with another gateway's row"))
        }
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
    }
}

fn psk_keys(facts: &Facts) -> Option<Finding> {
    let sealed = facts.database.as_ref().map_or(0, |database| database.sealed_peers);
    match &facts.psk_keys {
        Err(why) => Some(Finding::wrong("psk_keys", why)),
        Ok(0) if sealed == 0 => None,
        Ok(0) => Some(Finding::warning(
            "psk_keys",
            format!("{} with a preshared key, and no key here to open it", count(sealed, "peer")),
            "name the file in gateway.psk_keys_file, or put it beside the configuration as \
             psk.keys; what only the unit hands to its agent is not seen here",
        )),
        Ok(keys) => Some(Finding::ok("psk_keys", count(*keys, "key"))),
    }
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

fn forwarding(config: &Config, facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    // A host that forwards IPv6 stops listening to router advertisements unless told otherwise: one
    // that has its address from them would go off the net.
    let uplink = host.uplink.as_ref().map_or("UPLINK", |(name, _)| name.as_str());
    let forward_ipv6 = format!(
        "sysctl -w net.ipv6.conf.{uplink}.accept_ra=2 net.ipv6.conf.all.forwarding=1, in this \
         order, and write both to /etc/sysctl.d/"
    );
    let forward_ipv4 = "sysctl -w net.ipv4.ip_forward=1, and write it to /etc/sysctl.d/";
    let (ipv4, ipv6) = families_in_use(config, facts);
    vec![
        forwarding_of("IPv4", ipv4, host.forwarding_ipv4, forward_ipv4),
        forwarding_of("IPv6", ipv6, host.forwarding_ipv6, &forward_ipv6),
    ]
}

fn forwarding_of(family: &str, is_used: bool, value: Option<u64>, remedy: &str) -> Finding {
    let unless = format!("nothing, unless peers need {family}");
    match (value, is_used) {
        (Some(0), true) => {
            let text = format!("{family} is not forwarded: peers reach this host and no other");
            Finding::warning("forwarding", text, remedy)
        }
        (Some(0), false) => {
            let text = format!("{family} is not forwarded, and no peer has an address of it");
            Finding::note("forwarding", text, unless)
        }
        (Some(_), _) => Finding::ok("forwarding", format!("{family} is forwarded")),
        (None, _) => Finding::note("forwarding", format!("this kernel has no {family}"), unless),
    }
}

/// Whether peers have IPv4 addresses, and IPv6 ones. IPv4 while the database does not tell.
fn families_in_use(config: &Config, facts: &Facts) -> (bool, bool) {
    let pool = facts.database.as_ref().map(|database| database.vpn_cidr);
    let interface = &config.interface;
    let named = interface.addresses.iter().chain(&interface.site_prefixes).copied();
    let prefixes: Vec<IpNet> = named.chain(pool.ok()).collect();
    let has = |is_family: fn(&IpNet) -> bool| prefixes.iter().any(is_family);
    let has_ipv4 = has(|prefix| matches!(prefix, IpNet::V4(_)));
    (has_ipv4 || pool.is_err(), has(|prefix| matches!(prefix, IpNet::V6(_))))
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

/// Whoever gets an address that another had must not inherit its flows.
fn flows(config: &Config, facts: &Facts) -> Option<Finding> {
    (config.firewall.flush_conntrack && facts.lists_flows == Some(false)).then(|| {
        Finding::warning(
            "conntrack",
            "tracked flows cannot be listed: no peer can be added or removed",
            "modprobe nf_conntrack_netlink, or set firewall.flush_conntrack = false",
        )
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

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
