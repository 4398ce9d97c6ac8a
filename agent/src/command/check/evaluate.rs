//! Turns facts into findings, each with its remedy. Pure.

use std::time::Duration;

use gatepost::model::{InterfaceName, KeyText};
use gatepost::plan::usable_network;
use gatepost::reconcile::{Provenance, SyncMode};
use gatepost::store::{SCHEMA_VERSION, StoreError};

use super::facts::{Clock, DatabaseError, DatabaseFacts, Facts, HostFacts};
use super::finding::Finding;
use super::firewall::{fail_closed, firewall};
use super::forwarding::{Families, forwarding};
use super::running::running;
use super::shared::{shared_role, writable};
use super::{hints, ports};
use crate::config::{Backend, Config};
use crate::database;
use crate::output::{bytes as bytes_text, count, span};

/// Evaluates everything, in the order in which an operator would look.
#[must_use]
pub fn evaluate(config: &Config, facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![configuration(config)];
    let warn = |text: &String| Finding::warning("config", text, "correct or remove it");
    findings.extend(facts.warnings.iter().map(warn));
    findings.extend(gateway(config, facts));
    findings.push(key(config, facts));
    findings.extend(psk_keys(facts));
    findings.extend(facts.exposures.iter().map(|text| Finding::failure("secrets", text)));
    findings.extend(of_database(config.sync.mode, facts));
    findings.extend(facts.hints.as_ref().map(hints::finding));
    findings.extend(last_good(config, facts));
    findings.extend(blocks(facts));
    findings.extend(pool(facts));
    findings.push(wireguard(config.interface.backend, &config.interface.name, &facts.host));
    findings.extend(facts.taken_ports.iter().map(ports::finding));
    findings.extend(forwarding(&facts.host, families_in_use(config, facts)));
    findings.extend(reverse_path(config, &facts.host));
    findings.extend(flows(config, facts));
    findings.extend(labels(facts));
    findings.extend(conntrack(facts));
    findings.extend(mtu(config, &facts.host));
    findings.extend(networkd(config, &facts.host));
    findings.extend(firewall(config, facts));
    findings.extend(fail_closed(config, facts));
    findings.extend(running(facts, &findings));
    findings
}

fn configuration(config: &Config) -> Finding {
    match config.gateway_name() {
        Ok(name) => Finding::ok("config", format!("{}, gateway {name}", config.file.display())),
        Err(error) => Finding::config_error("config", &error),
    }
}

/// The database role must be bound to the configured gateway; the loop refuses any other.
fn gateway(config: &Config, facts: &Facts) -> Option<Finding> {
    let name = config.gateway_name().ok()?;
    let bound = &facts.database.as_ref().ok()?.gateway_name;
    (bound != name).then(|| {
        let text = format!(
            "the database role is bound to gateway {bound}, but [gateway] name is {name}: correct \
             [gateway] name or the role in [database] url, or bind the role with `gatepost grant`"
        );
        Finding::wrong("gateway", text)
    })
}

fn key(config: &Config, facts: &Facts) -> Finding {
    let ours = match &facts.public_key {
        Ok(key) => *key,
        Err(error) => return Finding::config_error("key", error),
    };
    let database = facts.database.as_ref().ok();
    match database.map(|database| &database.gateway_key) {
        None => Finding::ok("key", format!("{ours}; not compared with the database")),
        Some(_) if gateway(config, facts).is_some() => {
            Finding::ok("key", format!("{ours}; not compared with another gateway's row"))
        }
        Some(KeyText::Key(key)) if *key == ours => {
            Finding::ok("key", format!("{ours}, matches the gateway's row"))
        }
        Some(KeyText::Key(key)) => Finding::wrong(
            "key",
            format!(
                "the private key belongs to public key {ours}, but the gateway's row has {key}: \
                 install the right private key, or replace the row's key by this one's with \
                 `gatepost enroll --new-key`"
            ),
        ),
        Some(KeyText::Bad { text, why }) => Finding::wrong(
            "key",
            format!(
                "the gateway's row has public key {text:?}, which {why}: store {ours} in it with \
                 `gatepost enroll`"
            ),
        ),
    }
}

fn psk_keys(facts: &Facts) -> Option<Finding> {
    let sealed = facts.database.as_ref().map_or(0, |database| database.sealed_peers);
    match &facts.psk_keys {
        Err(error) => Some(Finding::config_error("psk_keys", error)),
        Ok(0) if sealed == 0 => None,
        Ok(0) => Some(Finding::warning(
            "psk_keys",
            format!("{} with a preshared key, but no sealing key was found", count(sealed, "peer")),
            "name the file of sealing keys in gateway.psk_keys_file, or save it as psk.keys beside \
             the configuration; this command does not see keys that only the unit passes to the agent",
        )),
        Ok(keys) => Some(Finding::ok("psk_keys", count(*keys, "key"))),
    }
}

/// The remedy for a schema that is not as it should be.
const MIGRATE: &str = "run `gatepost migrate` as an owner of the database";

fn of_database(mode: SyncMode, facts: &Facts) -> Vec<Finding> {
    let found = match &facts.database {
        Ok(found) => found,
        Err(DatabaseError::Config(error)) => {
            return vec![Finding::config_error("database", error)];
        }
        Err(DatabaseError::Store(error @ StoreError::Config { .. })) => {
            return vec![Finding::wrong("database", error.to_string())];
        }
        Err(DatabaseError::Store(error)) => {
            let remedy = database::remedy(error).map(str::to_owned);
            return vec![Finding { remedy, ..Finding::failure("database", error.to_string()) }];
        }
    };
    let peers = count(found.peers, "peer");
    let text = format!("{}, schema {}, {peers}", found.place, found.schema_version);
    let mut findings = vec![Finding::ok("database", text), clock(found)];
    if let Some(first) = found.wrong_rights.first() {
        let text =
            format!("{} owners or rights are wrong, first: {first}", found.wrong_rights.len());
        findings.push(Finding::warning("rights", text, MIGRATE));
    }
    if !found.unannounced.is_empty() {
        let text = format!(
            "changes to {} are not announced (triggers missing, or the table was recreated or \
             partitioned, or is fed by logical replication)",
            found.unannounced.join(", ")
        );
        findings.push(Finding::warning("triggers", text, MIGRATE));
    }
    if found.schema_version < SCHEMA_VERSION {
        findings.push(Finding::warning(
            "schema",
            format!("this version of gatepost comes with schema {SCHEMA_VERSION}"),
            MIGRATE,
        ));
    }
    findings.extend(found.shared_role.iter().flat_map(shared_role));
    findings.extend(writable(&found.writable_schemas));
    findings.extend(prepared(mode, found.prepared_at_most));
    findings.extend(found.refusals.iter().map(|refusal| {
        Finding::warning(
            "reports",
            format!("the database refuses reports: {refusal}"),
            "correct the trigger, or give gatepost_owner the right; reports wait until then",
        )
    }));
    if !found.gateway_active {
        findings.push(Finding::warning(
            "gateway",
            format!("gateway {} is inactive or deleted, so no peer is served", found.gateway_name),
            "set is_active in its row, or stop this agent",
        ));
    }
    findings
}

/// A writer that prepares its transaction fails if a notification is in it.
fn prepared(mode: SyncMode, at_most: u32) -> Option<Finding> {
    (mode == SyncMode::Listen && at_most > 0).then(|| {
        Finding::warning(
            "sync",
            format!(
                "with sync.mode = \"listen\", PREPARE TRANSACTION fails after a change of peers or policies, and \
                 this server allows it (max_prepared_transactions = {at_most})"
            ),
            "set sync.mode = \"auto\", which polls here, or max_prepared_transactions = 0 if no program prepares",
        )
    })
}

/// The tunnel's network must be one that this host needs for nothing else.
fn pool(facts: &Facts) -> Option<Finding> {
    let pool = facts.database.as_ref().ok()?.vpn_cidr.trunc();
    if let Err(error) = usable_network(pool, &facts.networks) {
        return Some(Finding::wrong("pool", error.to_string()));
    }
    let mut within = facts.networks.iter().filter(|(network, _)| pool.contains(*network));
    Some(match within.next() {
        None => Finding::ok("pool", pool.to_string()),
        Some((network, link)) => Finding::warning(
            "pool",
            format!("link {link} has {network}, which lies in the tunnel's network {pool}"),
            "peers with addresses in it are not reached: change vpn_cidr or that link's addresses",
        ),
    })
}

fn clock(database: &DatabaseFacts) -> Finding {
    /// A round trip and a snapshot lie between the two readings.
    const TOLERATED: Duration = Duration::from_secs(5);
    let (difference, word) = match database.clock {
        Clock::Ahead(difference) => (difference, "ahead of"),
        Clock::Behind(difference) => (difference, "behind"),
    };
    if difference <= TOLERATED {
        return Finding::ok("clock", "matches the database's clock");
    }
    Finding::warning(
        "clock",
        format!("{} {word} the database's clock", span(difference)),
        "synchronise both clocks (timedatectl set-ntp true); handshake times come from this host's",
    )
}

/// Checks the rows that a boot without the database would find, and whether the agent can keep them up to date.
fn last_good(config: &Config, facts: &Facts) -> Vec<Finding> {
    /// A full disk that takes no withdrawal costs the whole file.
    const ENOUGH_BYTES: u64 = 1024 * 1024;
    let file = config.cache.file.display();
    let found = match &facts.last_good {
        Ok(None | Some(Provenance::Sealed)) => None,
        Ok(Some(Provenance::Unsealed)) => Some(Finding::note(
            "last good",
            format!("{file} is of an earlier version and has no checksum"),
            "the agent writes it anew at its next full read of the database",
        )),
        Err(error) => Some(Finding::failure("last good", error)),
    };
    let room = match &facts.last_good_room {
        Ok(bytes) if *bytes >= ENOUGH_BYTES => None,
        Ok(bytes) => Some(format!("{} left on the disk of {file}", bytes_text(*bytes))),
        Err(error) => Some(format!("{file} cannot be written: {error}")),
    };
    let remedy =
        "make room, or correct [cache] file; else a boot without the database starts with no rows";
    let room = room.map(|text| Finding::warning("last good", text, remedy));
    found.into_iter().chain(room).collect()
}

fn blocks(facts: &Facts) -> Option<Finding> {
    match &facts.block_list {
        Err(error) => Some(Finding::failure("blocked", error.to_string())),
        Ok(list) => match list.iter().count() as u64 {
            0 => None,
            blocks => Some(Finding::note(
                "blocked",
                format!("{} on this host", count(blocks, "block")),
                "`gatepost blocked` lists them, `gatepost unblock` lifts one",
            )),
        },
    }
}

fn wireguard(backend: Backend, link: &InterfaceName, host: &HostFacts) -> Finding {
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
            format!(
                "kernel {release} has no WireGuard module, so the slower userspace device is used"
            ),
            format!(
                "install the distribution's kernel modules for full speed, or start the device before the \
                 agent: `systemctl enable --now gatepost-device@{link}`"
            ),
        ),
        (Backend::Userspace, _, true) => {
            Finding::ok("wireguard", "userspace, through /dev/net/tun")
        }
        (Backend::Auto | Backend::Userspace, _, false) => Finding::warning(
            "wireguard",
            "the userspace device needs /dev/net/tun, which does not exist",
            "modprobe tun, or pass the device to the container",
        ),
    }
}

/// Assumes IPv4 where the database is unknown.
fn families_in_use(config: &Config, facts: &Facts) -> Families {
    let pool = facts.database.as_ref().map(|database| database.vpn_cidr);
    let found = Families::of(config, pool.ok());
    Families { ipv4: found.ipv4 || pool.is_err(), ..found }
}

/// Strict filtering (RFC 3704, section 2.2) drops a packet that arrives by another link than its reply
/// would leave by. That is harmless for tunnel addresses, but not with marked routes or site networks.
fn reverse_path(config: &Config, host: &HostFacts) -> Option<Finding> {
    let asymmetric = config.interface.fwmark.0 != 0 || !config.interface.site_prefixes.is_empty();
    Some(match host.rp_filter? {
        1 if asymmetric => Finding::warning(
            "rp_filter",
            "strict, but with fwmark or site_prefixes replies may take another link",
            format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", config.interface.name),
        ),
        1 => Finding::ok("rp_filter", "strict"),
        2 => Finding::ok("rp_filter", "loose"),
        _ => Finding::ok("rp_filter", "off"),
    })
}

/// The next holder of an address must not inherit its flows, so they must be found first.
fn flows(config: &Config, facts: &Facts) -> Option<Finding> {
    (config.firewall.flush_conntrack && facts.lists_flows == Some(false)).then(|| {
        Finding::warning(
            "conntrack",
            "tracked flows cannot be listed, so no peer can be added or removed",
            "modprobe nf_conntrack_netlink, or set firewall.flush_conntrack = false",
        )
    })
}

/// A label shows that the gateway itself opened a flow.
fn labels(facts: &Facts) -> Option<Finding> {
    (facts.labels_flows == Some(false)).then(|| {
        Finding::warning(
            "conntrack",
            "this kernel has no connection labels, so the gateway itself cannot open connections to \
             peers",
            "use a kernel with CONFIG_NF_CONNTRACK_LABELS",
        )
    })
}

fn conntrack(facts: &Facts) -> Option<Finding> {
    /// A browser opens dozens of flows; an idle phone keeps a few.
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
        format!("{text}; too little for {}", count(peers, "peer")),
        format!("sysctl -w net.netfilter.nf_conntrack_max={wanted}, and save it in /etc/sysctl.d/"),
    ))
}

/// The tunnel adds up to 80 bytes to a packet: 40 of IPv6, 8 of UDP, 16 of WireGuard's header and 16
/// of its tag.
fn mtu(config: &Config, host: &HostFacts) -> Option<Finding> {
    const OVERHEAD_BYTES: u64 = 80;
    /// IPv6 allows no less (RFC 8200, section 5).
    const LEAST_BYTES: u64 = 1280;
    let (link, uplink_bytes) = host.uplink.as_ref()?;
    let ours = u64::from(config.interface.mtu_bytes);
    if ours + OVERHEAD_BYTES <= *uplink_bytes {
        return Some(Finding::ok("mtu", format!("{ours}, fits in {uplink_bytes} of {link}")));
    }
    let fitting = uplink_bytes.saturating_sub(OVERHEAD_BYTES).max(LEAST_BYTES);
    let remedy = if fitting < ours {
        format!("set interface.mtu_bytes = {fitting}")
    } else {
        format!("raise the MTU of {link} to {}", ours + OVERHEAD_BYTES)
    };
    let text =
        format!("{ours} plus {OVERHEAD_BYTES} of WireGuard exceed the {uplink_bytes} of {link}");
    Some(Finding::warning("mtu", text, remedy))
}

fn networkd(config: &Config, host: &HostFacts) -> Option<Finding> {
    host.networkd_drops_routes.then(|| {
        Finding::warning(
            "networkd",
            format!(
                "systemd-networkd removes routes that it did not create, also those of {}",
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
