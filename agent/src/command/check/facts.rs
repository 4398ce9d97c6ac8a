//! The facts of this host and its database, read without judging them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use gatepost::dataplane::nft::{
    Flowtable, ForeignDrop, ForeignRules, Manager, NftError, flowtables, foreign_drops,
    foreign_rules, keeps_owned_tables, labels_flows,
};
use gatepost::dataplane::{host_routing, lists_flows, networkd, networks_of_other_links};
use gatepost::model::{BlockList, GatewayId, HostRouting, InterfaceName, KeyText, PublicKey};
use gatepost::reconcile::status::Status;
use gatepost::reconcile::{BlockFileError, Provenance};
use gatepost::store::{SCHEMA_VERSION, SharedRole, Store, StoreError};
use ipnet::IpNet;
use nix::sys::statvfs::{FsFlags, statvfs};

use super::hints::{HintsError, heard};
use super::legacy::LegacyRules;
use super::ports::{TakenPort, taken};
use crate::config::{Config, ConfigError, exposure, read_private_key, read_psk_keys, secret_files};
use crate::control::{Client, ControlError};
use crate::error::CommandError;
use crate::wiring::{block_file, last_good};
use crate::{database, runtime};

/// Everything that [`evaluate`](super::evaluate) looks at.
#[derive(Debug)]
pub struct Facts {
    /// Warnings of the configuration.
    pub warnings: Vec<String>,
    /// Secrets that every user may read, one sentence each.
    pub exposures: Vec<String>,
    /// The public key of the local private key.
    pub public_key: Result<PublicKey, ConfigError>,
    /// How many keys open preshared keys.
    pub psk_keys: Result<u64, ConfigError>,
    pub database: Result<DatabaseFacts, DatabaseError>,
    pub host: HostFacts,
    /// Networks of other links, each with the link's name; empty: unknown, too.
    pub networks: BTreeMap<IpNet, Box<str>>,
    /// Chains of other programs that drop packets of this gateway.
    pub foreign_drops: Result<Vec<ForeignDrop>, NftError>,
    /// Rules of other programs that drop some packets of this gateway.
    pub foreign_rules: Result<Vec<ForeignRules>, NftError>,
    /// The rules of `iptables-legacy`, as far as they can be read.
    pub legacy: Vec<LegacyRules>,
    /// Flowtables of other programs that hold the interface, or to which rules add its flows.
    pub flowtables: Result<Vec<Flowtable>, NftError>,
    /// Whether tracked flows can be listed. `None`: unknown.
    pub lists_flows: Option<bool>,
    /// Whether this kernel labels flows. `None`: unknown.
    pub labels_flows: Option<bool>,
    /// Whether this kernel keeps a table that belongs to an agent. `None`: unknown.
    pub keeps_owned_tables: Option<bool>,
    /// The host's routing on which the gate depends. `None`: unknown.
    pub routing: Option<HostRouting>,
    /// The origin of the last good rows; `None`: there are none. An error counts as a finding.
    pub last_good: Result<Option<Provenance>, String>,
    /// How many bytes this process can still write beside them.
    pub last_good_room: Result<u64, String>,
    /// This host's block list.
    pub block_list: Result<BlockList, BlockFileError>,
    /// Whether hints may be heard. `None`: there is no `[hints]`, or the gateway is unknown.
    pub hints: Option<Result<(), HintsError>>,
    /// Ports that the agent needs, and that another program has.
    pub taken_ports: Vec<TakenPort>,
    /// The running agent's status.
    pub agent: Result<Status, ControlError>,
}

/// Why the database could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFacts {
    /// Which database, and as whom.
    pub place: String,
    pub schema_version: i32,
    /// Owners and rights in gatepost's schema that are not as they should be, one line each.
    pub wrong_rights: Vec<String>,
    /// Tables whose changes no trigger announces.
    pub unannounced: Vec<String>,
    /// Why tables refuse this gateway's reports.
    pub refusals: Vec<String>,
    pub gateway_id: GatewayId,
    pub gateway_name: String,
    pub gateway_key: KeyText,
    pub gateway_active: bool,
    /// WireGuard's UDP port; `None`: the row holds an impossible one.
    pub listen_port: Option<u16>,
    pub vpn_cidr: IpNet,
    pub peers: u64,
    /// How many of them have a preshared key.
    pub sealed_peers: u64,
    /// The rights that the server gives the role, if gateways share it.
    pub shared_role: Option<SharedRole>,
    /// Schemas that triggers search, and in which the role may create something.
    pub writable_schemas: Vec<String>,
    /// `max_prepared_transactions` of the server.
    pub prepared_at_most: u32,
    pub clock: Clock,
}

/// This host's clock, compared with the database's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    Ahead(Duration),
    Behind(Duration),
}

/// Contents of files under `/proc`, `/sys`, `/lib` and `/etc`. `None`: the file does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    pub kernel_release: String,
    pub kernel_wireguard: bool,
    pub tun_device: bool,
    pub forwarding_ipv4: Option<u64>,
    pub forwarding_ipv6: Option<u64>,
    /// The stricter value of `all` and the WireGuard interface.
    pub rp_filter: Option<u64>,
    pub conntrack_max: Option<u64>,
    pub conntrack_count: Option<u64>,
    /// Name and MTU in bytes of the default route's link.
    pub uplink: Option<(String, u64)>,
    /// systemd-networkd runs and removes routes that it did not create.
    pub networkd_drops_routes: bool,
    /// Other firewall managers on this host, as far as their files show.
    pub managers: Vec<Manager>,
    /// `iptables-legacy` has tables, whose chains are not part of nf_tables.
    pub legacy_tables: bool,
}

/// Reads everything. A failure to read something is a fact, too.
///
/// # Errors
/// The runtime cannot be created.
pub fn gather(config: &Config) -> Result<Facts, CommandError> {
    let host = read_host(Path::new("/"), &config.interface.name);
    let files = secret_files(config);
    let database = runtime::on_this_thread()?.block_on(read_database(config));
    let listen_port = database.as_ref().ok().and_then(|database| database.listen_port);
    let agent = Client::new(&config.control.socket).status();
    let agent_runs = !matches!(agent, Err(ControlError::NoAgent { .. }));
    Ok(Facts {
        hints: database.as_ref().ok().and_then(|database| heard(config, database.gateway_id)),
        taken_ports: taken(config, listen_port, agent_runs),
        warnings: config.warnings.clone(),
        exposures: files.iter().filter_map(|path| exposure(path)).collect(),
        public_key: read_private_key(config).map(|key| key.public_key()),
        psk_keys: read_psk_keys(config)
            .map(|keys| keys.map_or(0, |keys| keys.key_ids().count() as u64)),
        legacy: if host.legacy_tables { read_legacy() } else { Vec::new() },
        host,
        networks: networks_of_other_links(&config.interface.name).unwrap_or_default(),
        foreign_drops: foreign_drops(&config.interface.name, listen_port),
        foreign_rules: foreign_rules(&config.interface.name, listen_port),
        flowtables: flowtables(&config.interface.name),
        lists_flows: lists_flows().ok(),
        labels_flows: labels_flows().ok(),
        keeps_owned_tables: keeps_owned_tables().ok(),
        routing: host_routing().ok(),
        last_good: last_good(config)
            .map(|rows| rows.map(|rows| rows.provenance))
            .map_err(|error| error.to_string()),
        last_good_room: room_beside(&config.cache.file),
        block_list: block_file(config).load(),
        agent,
        database,
    })
}

/// The room on the file's disk, of its folder or the nearest one that exists.
fn room_beside(file: &Path) -> Result<u64, String> {
    let folder = file.ancestors().skip(1).find(|folder| folder.is_dir());
    let folder = folder.unwrap_or(Path::new("/"));
    let disk = statvfs(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    if disk.flags().contains(FsFlags::ST_RDONLY) {
        return Err(format!("{} is read-only", folder.display()));
    }
    Ok(disk.blocks_available() * disk.fragment_size())
}

async fn read_database(config: &Config) -> Result<DatabaseFacts, DatabaseError> {
    let store = Store::connect(&database::options(config)?)?;
    let hello = store.hello().await?;
    let (rows, _) = store.snapshot().await?;
    let wrong_rights = store.wrong_rights().await?;
    let refusals = match hello.schema_version {
        SCHEMA_VERSION.. => store.try_reports().await?,
        _ => Vec::new(),
    };
    let unannounced = store.unwatched().await?;
    let shared_role = store.shared_role().await?;
    let writable_schemas = store.writable_schemas().await?;
    let prepared_at_most = store.prepared_at_most().await?;
    let clock = match SystemTime::now().duration_since(rows.taken_at) {
        Ok(ahead) => Clock::Ahead(ahead),
        Err(behind) => Clock::Behind(behind.duration()),
    };
    Ok(DatabaseFacts {
        place: store.place().to_string(),
        schema_version: hello.schema_version,
        wrong_rights,
        unannounced,
        refusals,
        shared_role,
        writable_schemas,
        prepared_at_most,
        gateway_id: rows.gateway.id,
        gateway_name: rows.gateway.name,
        gateway_key: rows.gateway.public_key,
        gateway_active: rows.gateway.active,
        listen_port: u16::try_from(rows.gateway.listen_port).ok().filter(|port| *port != 0),
        vpn_cidr: rows.gateway.vpn_cidr,
        sealed_peers: rows.peers.iter().filter(|peer| peer.preshared_key.is_some()).count() as u64,
        peers: rows.peers.len() as u64,
        clock,
    })
}

/// Reads the output of the programs of `iptables-legacy`, if they are installed and may be run.
fn read_legacy() -> Vec<LegacyRules> {
    let programs = ["iptables-legacy", "ip6tables-legacy"].into_iter();
    let saved = programs.filter_map(|program| {
        let save = format!("{program}-save");
        let output = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(&save));
        let path = output.into_iter().find(|path| path.exists())?;
        let output = Command::new(path).output().ok().filter(|output| output.status.success())?;
        Some(LegacyRules { program, text: String::from_utf8_lossy(&output.stdout).into_owned() })
    });
    saved.collect()
}

/// Reads the host's files below `root`.
#[must_use]
pub fn read_host(root: &Path, interface: &InterfaceName) -> HostFacts {
    let host = Host(root);
    let release = host.text("proc/sys/kernel/osrelease").unwrap_or_default();
    let filter = |link: &str| host.number(&format!("proc/sys/net/ipv4/conf/{link}/rp_filter"));
    HostFacts {
        kernel_wireguard: host.has("sys/module/wireguard") || host.has_module(&release),
        tun_device: host.has("dev/net/tun"),
        forwarding_ipv4: host.number("proc/sys/net/ipv4/ip_forward"),
        forwarding_ipv6: host.number("proc/sys/net/ipv6/conf/all/forwarding"),
        rp_filter: filter("all").max(filter(interface.as_str())),
        conntrack_max: host.number("proc/sys/net/netfilter/nf_conntrack_max"),
        conntrack_count: host.number("proc/sys/net/netfilter/nf_conntrack_count"),
        uplink: host.uplink(),
        networkd_drops_routes: networkd::removes(root, networkd::FOREIGN_ROUTES),
        managers: host.managers(),
        legacy_tables: host.has_legacy_tables(),
        kernel_release: release,
    }
}

struct Host<'a>(&'a Path);

impl Host<'_> {
    fn has(&self, path: &str) -> bool {
        self.0.join(path).exists()
    }

    fn text(&self, path: &str) -> Option<String> {
        std::fs::read_to_string(self.0.join(path)).ok().map(|text| text.trim().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    fn has_module(&self, release: &str) -> bool {
        let lists = ["modules.dep", "modules.builtin"];
        lists.iter().any(|list| {
            let list = self.text(&format!("lib/modules/{release}/{list}")).unwrap_or_default();
            list.contains("/wireguard.ko")
        })
    }

    /// Only root may read which tables there are; others see that their modules are loaded.
    fn has_legacy_tables(&self) -> bool {
        let modules = || self.text("proc/modules").unwrap_or_default();
        [("ip", "iptable_"), ("ip6", "ip6table_")].iter().any(|(family, module)| {
            let names = format!("proc/net/{family}_tables_names");
            match self.text(&names) {
                Some(tables) => !tables.is_empty(),
                None if self.has(&names) => modules().lines().any(|it| it.starts_with(module)),
                None => false,
            }
        })
    }

    fn uplink(&self) -> Option<(String, u64)> {
        let name = default_link(&self.text("proc/net/route")?)?.to_owned();
        let mtu_bytes = self.number(&format!("sys/class/net/{name}/mtu"))?;
        Some((name, mtu_bytes))
    }

    fn managers(&self) -> Vec<Manager> {
        let ufw = self.text("etc/ufw/ufw.conf").unwrap_or_default();
        let present = [
            (Manager::Docker, self.has("run/docker.pid")),
            (Manager::Firewalld, self.has("run/firewalld.pid")),
            (Manager::Ufw, ufw.lines().any(|line| line.trim() == "ENABLED=yes")),
        ];
        present.into_iter().filter(|(_, is)| *is).map(|(manager, _)| manager).collect()
    }
}

/// The link of the IPv4 default route, from the text of `/proc/net/route`.
fn default_link(routes: &str) -> Option<&str> {
    routes.lines().skip(1).find_map(|line| {
        let words = line.split_whitespace().collect::<Vec<_>>();
        match words.as_slice() {
            [link, "00000000", _, _, _, _, _, "00000000", ..] => Some(*link),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn host_facts_come_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let name = "gatepost0".parse().unwrap();
        assert_eq!(read_host(root, &name), HostFacts::default());

        write(root, "proc/sys/kernel/osrelease", "6.12.0\n");
        write(root, "lib/modules/6.12.0/modules.dep", "kernel/net/wireguard/wireguard.ko.xz:\n");
        write(root, "proc/sys/net/ipv4/ip_forward", "1\n");
        write(root, "proc/sys/net/ipv4/conf/all/rp_filter", "0\n");
        write(root, "proc/sys/net/ipv4/conf/gatepost0/rp_filter", "1\n");
        write(
            root,
            "proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
             eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n\
             eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\n",
        );
        write(root, "sys/class/net/eth0/mtu", "1500\n");
        write(root, "run/systemd/netif/state", "");
        write(root, "etc/ufw/ufw.conf", "# ufw\nENABLED=yes\n");
        let host = read_host(root, &name);
        assert!(host.kernel_wireguard && !host.tun_device);
        assert_eq!((host.forwarding_ipv4, host.forwarding_ipv6), (Some(1), None));
        assert_eq!(host.rp_filter, Some(1));
        assert_eq!(host.uplink, Some(("eth0".into(), 1500)));
        assert_eq!(host.managers, [Manager::Ufw]);
        assert!(!host.legacy_tables);
        assert!(host.networkd_drops_routes);

        write(root, "proc/net/ip_tables_names", "nat\nfilter\n");
        assert!(read_host(root, &name).legacy_tables);
        // What cannot be read: this, like the file for others than root.
        std::fs::remove_file(root.join("proc/net/ip_tables_names")).unwrap();
        std::fs::create_dir(root.join("proc/net/ip_tables_names")).unwrap();
        write(root, "proc/modules", "ip_tables 36864 0 - Live 0x0\nip6table_nat 1 0 - Live 0x0\n");
        assert!(!read_host(root, &name).legacy_tables);
        write(root, "proc/modules", "iptable_filter 16384 1 - Live 0x0\n");
        assert!(read_host(root, &name).legacy_tables);
    }
}
